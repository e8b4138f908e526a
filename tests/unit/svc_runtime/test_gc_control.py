"""Full garbage collections happen when they hurt nobody: counted, not timed."""

import asyncio
import gc
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry

from svc_runtime.gc_control import GcControl, GcPauses
from tests.unit.scheduler_shell.waiting import until


class Cycle:
    """Garbage that only the collector can free."""

    def __init__(self) -> None:
        self.me = self


class Bench:
    """A control whose service is idle when the test says so."""

    def __init__(self) -> None:
        self.idle = False
        self.pauses = GcPauses("autellix_test")
        self.control = GcControl(lambda: self.idle, self.pauses, due_after=3, overdue_s=100.0, look_s=0.001)

    @property
    def full(self) -> int:
        """Full collections so far."""
        return self.pauses.count[2]


@pytest.fixture
def bench() -> Iterator[Bench]:
    before = gc.get_threshold(), gc.get_freeze_count(), len(gc.callbacks)
    bench = Bench()
    bench.control.start()
    yield bench
    bench.control.stop()
    assert (gc.get_threshold(), gc.get_freeze_count(), len(gc.callbacks)) == before


def survivors(middle_collections: int) -> list[Cycle]:
    """Objects that live through so many collections of the middle generation."""
    kept: list[Cycle] = []
    while gc.get_count()[2] < middle_collections:
        kept.append(Cycle())
    return kept


def test_what_is_there_at_the_start_is_frozen_after_one_collection(bench: Bench) -> None:
    assert bench.full == 1
    assert gc.get_freeze_count() > 1000
    frozen_before = gc.get_freeze_count()
    gc.collect()
    assert gc.get_freeze_count() == pytest.approx(frozen_before, abs=100), "frozen objects are not visited"


def test_python_makes_no_full_collection_by_itself(bench: Bench) -> None:
    """Ten times of what makes Python's own settings collect."""
    kept = survivors(100)
    assert len(kept) > 100_000
    assert bench.full == 1
    assert bench.pauses.count[1] >= 100
    assert bench.pauses.count[0] > bench.pauses.count[1]


def test_a_busy_service_is_never_stopped_for_a_due_one(bench: Bench) -> None:
    kept = survivors(3)
    assert not any(bench.control.look(now) for now in (0.0, 1.0, 99.9))
    assert bench.full == 1
    assert kept


def test_a_due_one_waits_for_two_idle_looks_and_then_happens_once(bench: Bench) -> None:
    kept = survivors(3)
    assert not bench.control.look(0.0)
    bench.idle = True
    assert not bench.control.look(1.0), "between two calls of a burst"
    bench.idle = False
    assert not bench.control.look(2.0)
    bench.idle = True
    assert not bench.control.look(3.0)
    assert bench.control.look(4.0)
    assert not bench.control.look(5.0), "nothing is due any more"
    assert bench.full == 2
    assert kept


def test_an_idle_service_with_nothing_due_is_left_alone(bench: Bench) -> None:
    bench.idle = True
    assert not any(bench.control.look(float(now)) for now in range(1000))
    assert bench.full == 1


def test_a_service_that_never_idles_is_stopped_when_it_is_overdue(bench: Bench) -> None:
    kept = survivors(3)
    assert not bench.control.look(0.0)
    assert not bench.control.look(99.0)
    assert bench.control.look(100.0)
    assert not bench.control.look(300.0), "the wait begins anew when the next is due"
    assert bench.full == 2
    assert kept


def test_cycles_that_outlived_young_collections_are_freed_by_the_full_one(bench: Bench) -> None:
    kept = survivors(3)
    bench.control.look(0.0)
    old = {id(item) for item in kept}
    del kept
    assert sum(id(item) in old and isinstance(item, Cycle) for item in gc.get_objects()) > 1000
    bench.control.look(100.0)
    assert not any(isinstance(item, Cycle) for item in gc.get_objects())


def test_of_two_controls_in_one_process_the_first_takes_over_and_gives_back() -> None:
    before = gc.get_threshold()
    first, second = Bench(), Bench()
    first.control.start()
    second.control.start()
    assert (first.full, second.full) == (1, 0)
    first.control.stop()
    assert gc.get_threshold() == before
    second.control.stop()
    assert gc.get_threshold() == before
    assert gc.get_freeze_count() == 0


async def test_run_takes_over_looks_and_gives_back() -> None:
    before = gc.get_threshold()
    bench = Bench()
    bench.idle = True
    running = asyncio.create_task(bench.control.run())
    await until(lambda: bench.full == 1)
    kept = survivors(3)
    await until(lambda: bench.full == 2)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert gc.get_threshold() == before
    assert gc.get_freeze_count() == 0
    assert kept


def test_pauses_are_shown_by_generation(bench: Bench) -> None:
    registry = CollectorRegistry()
    registry.register(bench.pauses)
    gc.collect(0)
    gc.collect(1)

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"autellix_test_{name}", labels)

    for generation, count in enumerate(bench.pauses.count):
        assert value("gc_pauses_total", generation=str(generation)) == count >= 1
        assert value("gc_pause_seconds_total", generation=str(generation)) > 0
    assert value("gc_longest_pause_seconds") == bench.pauses.longest_s > 0
