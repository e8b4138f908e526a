"""The one writer: turns, requests, time, and what happens to errors."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from scheduler_svc.core.effects import Effect, RefuseCall
from scheduler_svc.core.errors import CoreError, ProtocolBroken, Refusal, Refused
from scheduler_svc.core.events import Event, ExecutorLost, FrontendLost, PlanDue, TimePassed
from scheduler_svc.core.ids import FrontendId
from scheduler_svc.shell.core_loop import CoreLoop, Turn, TurnTimings
from scheduler_svc.shell.server import SchedulerServer
from tests.unit.scheduler_shell.conftest import settings
from tests.unit.scheduler_shell.manual_clock import ManualClock
from tests.unit.scheduler_shell.scripted_core import ScriptedCore
from tests.unit.scheduler_shell.waiting import until


def lost(name: str) -> FrontendLost:
    return FrontendLost(frontend_id=FrontendId(name))


def effect(handle: int) -> RefuseCall:
    return RefuseCall(frontend_id=FrontendId("f"), handle=handle, refusal=Refusal(reason="X", message="x"))


class Bench:
    """A loop with everything around it recorded."""

    def __init__(self, core: ScriptedCore) -> None:
        self.core = core
        self.clock = ManualClock()
        self.carried_out: list[Sequence[Effect]] = []
        self.turns: list[TurnTimings] = []
        self.loop = CoreLoop(core, self.clock, carry_out=self.carried_out.append, on_turn=self.turns.append)

    @asynccontextmanager
    async def running(self) -> AsyncIterator["asyncio.Task[None]"]:
        task = asyncio.create_task(self.loop.run())
        try:
            yield task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def test_a_burst_is_one_turn_with_one_planning_at_its_end() -> None:
    bench = Bench(ScriptedCore())
    for name in "abc":
        bench.loop.post(lost(name))
    async with bench.running():
        await until(lambda: bench.turns)
    assert bench.core.events == [lost("a"), lost("b"), lost("c"), PlanDue()]
    assert [turn.events for turn in bench.turns] == [3]
    assert len(set(bench.core.times)) == 1


async def test_effects_are_carried_out_in_order_after_planning() -> None:
    handles = iter(range(10))
    bench = Bench(ScriptedCore(lambda event: [effect(next(handles))]))
    bench.loop.post(lost("a"))
    bench.loop.post(lost("b"))
    async with bench.running():
        await until(lambda: bench.turns)
    assert [[item.handle for item in effects] for effects in bench.carried_out] == [[0, 1, 2]]


async def test_flushing_carries_out_what_was_decided_before() -> None:
    handles = iter(range(10))
    bench = Bench(ScriptedCore(lambda event: [effect(next(handles))]))
    bench.loop.post(lost("a"))

    def decide(turn: Turn) -> None:
        turn.flush()
        turn.apply(lost("b"))

    async with bench.running():
        await bench.loop.request(decide)
    assert [[item.handle for item in effects] for effects in bench.carried_out] == [[0], [1, 2]]


async def test_time_passes_once_a_second() -> None:
    bench = Bench(ScriptedCore())
    async with bench.running():
        for expected in (1, 2):
            await until(lambda: bench.clock.sleeping_for(1.0))
            bench.clock.advance(1.0)
            await until(lambda expected=expected: len(bench.core.seen(TimePassed)) == expected)
    assert bench.core.times[0] == 1001.0


async def test_a_request_answers_its_caller_and_a_refusal_goes_there_too() -> None:
    bench = Bench(ScriptedCore())

    def refuse(turn: Turn) -> None:
        raise Refused(Refusal(reason="PROGRAM_UNKNOWN", message="no"))

    async with bench.running() as running:
        assert await bench.loop.request(lambda turn: turn.now) == 1000.0
        with pytest.raises(Refused):
            await bench.loop.request(refuse)
        assert not running.done()


async def test_a_request_whose_caller_has_gone_is_not_run() -> None:
    bench = Bench(ScriptedCore())
    bench.loop.enqueue(lambda turn: turn.apply(lost("a"))).cancel()
    bench.loop.post(lost("b"))
    async with bench.running():
        await until(lambda: bench.turns)
    assert bench.core.seen(FrontendLost) == [lost("b")]


async def test_a_peer_s_mistake_goes_back_to_the_peer_and_the_turn_goes_on() -> None:
    def respond(event: Event) -> list[Effect]:
        if isinstance(event, ExecutorLost):
            raise ProtocolBroken("nonsense")
        return []

    bench = Bench(ScriptedCore(respond))
    refused = bench.loop.enqueue(lambda turn: turn.apply(ExecutorLost(executor_id="e", epoch=1)))
    bench.loop.post(lost("a"))
    async with bench.running() as running:
        await until(lambda: bench.turns)
        assert not running.done()
    assert str(refused.exception()) == "nonsense"
    assert bench.core.seen(FrontendLost) == [lost("a")]


class Peer:
    """Whoever posts events that may be too late, or nonsense."""

    def __init__(self, *, counts: bool = True) -> None:
        self.counts = counts
        self.mistakes: list[str] = []

    def still_counts(self) -> bool:
        return self.counts

    def not_taken(self, error: CoreError) -> None:
        self.mistakes.append(str(error))


async def test_a_posted_event_that_makes_no_sense_is_told_to_its_speaker_alone() -> None:
    def respond(event: Event) -> list[Effect]:
        if event == lost("nonsense"):
            raise ProtocolBroken("who is that")
        return []

    bench = Bench(ScriptedCore(respond))
    broken, sound = Peer(), Peer()
    bench.loop.post(lost("nonsense"), broken)
    bench.loop.post(lost("a"), sound)
    async with bench.running() as running:
        await until(lambda: bench.turns)
        assert not running.done()
    assert (broken.mistakes, sound.mistakes) == (["who is that"], [])
    assert bench.core.seen(FrontendLost)[-1] == lost("a")


async def test_whether_a_posted_event_still_counts_is_asked_when_its_turn_comes() -> None:
    bench = Bench(ScriptedCore())
    late, in_time = Peer(), Peer(counts=False)
    bench.loop.post(lost("late"), late)
    bench.loop.post(lost("in time"), in_time)
    late.counts, in_time.counts = False, True
    async with bench.running():
        await until(lambda: bench.turns)
    assert bench.core.seen(FrontendLost) == [lost("in time")]


@pytest.mark.parametrize(
    "error", [AssertionError("invariant"), KeyError("x"), ProtocolBroken("of our own making")]
)
async def test_a_bug_of_ours_ends_the_loop(error: Exception) -> None:
    def respond(event: Event) -> list[Effect]:
        raise error

    bench = Bench(ScriptedCore(respond))
    bench.loop.post(lost("a"))
    async with bench.running() as running:
        with pytest.raises(type(error)):
            await asyncio.wait_for(asyncio.shield(running), 10)
        assert bench.turns == []


async def test_a_broken_invariant_ends_the_process_at_once() -> None:
    def respond(event: Event) -> list[Effect]:
        assert not isinstance(event, TimePassed), "blocks do not add up"
        return []

    clock = ManualClock()
    server = SchedulerServer(settings(drain_s=3600), core=ScriptedCore(respond), clock=clock)
    running = asyncio.create_task(server.run(asyncio.Event()))
    await until(lambda: clock.sleeping_for(1.0))
    clock.advance(1.0)
    with pytest.raises(AssertionError, match="blocks do not add up"):
        await asyncio.wait_for(running, 10)
