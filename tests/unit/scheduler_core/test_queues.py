"""The multi-level queue: order, quanta, promotion."""

from array import array

import pytest

from scheduler_svc.core.call import Call
from scheduler_svc.core.call_states import CallState
from scheduler_svc.core.config import CoreConfig, ServiceUnit
from scheduler_svc.core.events import CallSpec
from scheduler_svc.core.ids import CallId, ProgramId, StreamHandle
from scheduler_svc.core.policies import make_policy
from scheduler_svc.core.prices import PS_PER_S
from scheduler_svc.core.process_table import Program
from scheduler_svc.core.queues import MultilevelQueue, promote, starves_in_s, use_quantum
from tests.unit.scheduler_core.world import FRONTEND, TENANT

SECONDS = ServiceUnit.SECONDS
POLICY = make_policy(CoreConfig(policy="plas", service_unit=SECONDS, levels=3, first_quantum_s=1.0))


def make_call(seq: int, *, level: int = 0, running: bool = False, program: Program | None = None) -> Call:
    spec = CallSpec(
        call_id=CallId(f"call-{seq}"),
        frontend_id=FRONTEND,
        stream_handle=StreamHandle(seq),
        tenant=TENANT,
        program_id=ProgramId("p"),
        model="tiny",
        prompt_token_ids=[1],
        max_tokens=1,
    )
    return Call(
        spec=spec,
        program=program or make_program(),
        seq=seq,
        arrived_s=0.0,
        tokens=array("i", [1]),
        level=level,
        state=CallState.RUNNING if running else CallState.QUEUED,
        waiting_since_s=0.0,
    )


def make_program() -> Program:
    return Program(
        tenant=TENANT,
        program_id=ProgramId("p"),
        session_key="",
        class_name="",
        single_call=False,
        seq=1,
        opened_s=0.0,
    )


def test_calls_are_counted_by_level() -> None:
    calls = [
        make_call(1),
        make_call(2, level=2),
        make_call(3, level=2, running=True),
        make_call(4, running=True),
    ]
    queue = queue_of(*calls)
    assert queue.level_counts(3) == [2, 0, 2]
    calls[0].level = 1
    queue.refile(calls[0])
    assert queue.level_counts(3) == [1, 1, 2]


def queue_of(*calls: Call) -> MultilevelQueue:
    queue = MultilevelQueue(POLICY)
    for call in calls:
        queue.add(call)
    return queue


def order(queue: MultilevelQueue) -> list[int]:
    return [call.seq for call in queue.walk()]


def test_level_first_then_running_then_arrival() -> None:
    queue = queue_of(
        make_call(1, level=1),
        make_call(2, level=1, running=True),
        make_call(3),
        make_call(4, running=True),
        make_call(5, level=2, running=True),
        make_call(6),
    )
    assert order(queue) == [4, 3, 6, 2, 1, 5]
    assert (queue.running_count, queue.waiting_count, len(queue)) == (3, 3, 6)


def test_the_walk_is_lazy() -> None:
    queue = queue_of(*(make_call(seq) for seq in range(1000)))
    walk = queue.walk()
    assert [next(walk).seq for _ in range(3)] == [0, 1, 2]


def test_a_call_is_found_again_after_its_state_changed() -> None:
    call = make_call(1)
    queue = queue_of(call, make_call(2, running=True))
    call.state = CallState.RUNNING
    queue.refile(call)
    assert order(queue) == [1, 2]
    assert queue.waiting_count == 0
    queue.discard(call)
    assert call not in queue
    queue.discard(call)
    assert order(queue) == [2]


def test_a_running_call_may_displace_those_after_it() -> None:
    calls = [make_call(seq, level=level, running=True) for seq, level in [(1, 0), (2, 0), (3, 1), (4, 2)]]
    queue = queue_of(*calls)
    assert [call.seq for call in queue.running_after(calls[1])] == [4, 3]
    assert [call.seq for call in queue.running_after(calls[3])] == []


def test_a_waiting_call_may_displace_lower_levels_only() -> None:
    waiting = make_call(1, level=1)
    queue = queue_of(waiting, make_call(2, level=1, running=True), make_call(3, level=2, running=True))
    assert [call.seq for call in queue.running_after(waiting)] == [3]


class TestQuantum:
    def test_is_used_up_step_by_step(self) -> None:
        call = make_call(1)
        assert not use_quantum(call, 600_000_000_000, POLICY)
        assert use_quantum(call, 600_000_000_000, POLICY)
        assert (call.level, call.quantum_used_ps) == (1, 0)

    def test_the_next_level_gives_its_own(self) -> None:
        call = make_call(1, level=1)
        assert not use_quantum(call, 2 * PS_PER_S - 1, POLICY)
        assert use_quantum(call, 1, POLICY), "exact to the picosecond"

    def test_nobody_leaves_the_last_level(self) -> None:
        call = make_call(1, level=2)
        assert not use_quantum(call, 10**6 * PS_PER_S, POLICY)
        assert call.level == 2


class TestStarvation:
    def starving(self, *, level: int = 1, service_s: float = 2.0, waited_s: float = 0.0) -> Call:
        call = make_call(1, level=level)
        call.program.completed_service_ps = round(service_s * PS_PER_S)
        call.program.completed_waiting_s = waited_s
        return call

    def test_counts_program_and_call(self) -> None:
        call = self.starving(service_s=2.0, waited_s=5.0)
        call.service_ps = PS_PER_S
        assert starves_in_s(call, beta=10.0, now=4.0, unit=SECONDS) == pytest.approx(10.0 * 3.0 - 5.0 - 4.0)

    def test_not_from_the_first_level(self) -> None:
        assert starves_in_s(self.starving(level=0), beta=10.0, now=1e9, unit=SECONDS) is None

    def test_no_service_at_all_does_not_divide_by_zero(self) -> None:
        left_s = starves_in_s(self.starving(service_s=0.0), beta=10.0, now=1.0, unit=SECONDS)
        assert left_s is not None
        assert left_s <= 0

    def test_promotion_sets_level_and_quantum_and_keeps_lifetime_counters(self) -> None:
        call = self.starving()
        call.service_ps, call.quantum_used_ps = 7 * PS_PER_S, PS_PER_S // 2
        promote(call, now=50.0)
        assert (call.level, call.quantum_used_ps) == (0, 0)
        assert call.service_s == 7.0
        assert call.waiting_s(50.0) == 50.0
        call.level = 1
        call.service_ps += PS_PER_S
        left_s = starves_in_s(call, beta=10.0, now=54.0, unit=SECONDS)
        assert left_s == pytest.approx(10.0 - 4.0), "the share of call and program restarts"
