"""The multi-level queue against a sorted list, under every policy: both serve alike, whatever is done."""

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from scheduler_svc.core.call import Call
from scheduler_svc.core.call_states import CallState
from scheduler_svc.core.config import CoreConfig, Tie
from scheduler_svc.core.policies import POLICIES, Policy, make_policy
from scheduler_svc.core.process_table import Program
from scheduler_svc.core.queues import MultilevelQueue
from tests.unit.scheduler_core.test_queues import make_call, make_program

LEVELS = 4
configs = st.builds(
    CoreConfig,
    policy=st.sampled_from(list(POLICIES)),
    tie=st.sampled_from([*Tie]),
    running_first=st.booleans(),
    levels=st.just(LEVELS),
)


class NaiveQueue:
    """Calls in a list, sorted anew for every question; places in line kept beside them."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.calls: list[Call] = []
        self.line: dict[Call, int] = {}
        self.filed_level: dict[Call, int] = {}
        self.entries = 0

    def enter(self, call: Call) -> None:
        self.entries += 1
        self.line[call] = self.entries
        self.filed_level[call] = call.level

    def refile(self, call: Call) -> None:
        if self.filed_level[call] != call.level:
            self.enter(call)

    def key(self, call: Call) -> tuple[Any, ...]:
        waits = call.state is not CallState.RUNNING and self.policy.running_first
        return (call.level, waits, *self.policy.tie(call, self.line[call]))

    def order(self) -> list[Call]:
        return sorted(self.calls, key=self.key)

    def of_state(self, state: CallState) -> list[Call]:
        return [call for call in self.order() if call.state is state]


class QueueMachine(RuleBasedStateMachine):
    """Rules are what the lifecycle does; every answer is compared after each."""

    @initialize(config=configs)
    def start(self, config: CoreConfig) -> None:
        self.policy = make_policy(config)
        self.queue = MultilevelQueue(self.policy)
        self.naive = NaiveQueue(self.policy)
        self.outside: list[Call] = []
        self.programs: list[Program] = []
        for seq in range(4):
            program = make_program()
            program.seq, program.single_call = seq + 1, seq % 2 == 1
            self.programs.append(program)
        self.submitted = 0

    def _top(self) -> int:
        return self.policy.levels.last

    @rule(program=st.integers(0, 3), level=st.integers(0, LEVELS - 1), running=st.booleans())
    def add(self, program: int, level: int, running: bool) -> None:
        self.submitted += 1
        level = min(level, self._top())
        call = make_call(self.submitted, level=level, running=running, program=self.programs[program])
        self._enter(call)

    def _enter(self, call: Call) -> None:
        self.queue.add(call)
        self.naive.calls.append(call)
        self.naive.enter(call)

    @precondition(lambda self: self.naive.calls)
    @rule(data=st.data())
    def discard(self, data: st.DataObject) -> None:
        call = self._any(data)
        self.queue.discard(call)
        self.naive.calls.remove(call)
        self.outside.append(call)
        assert call.queue_key is None

    @precondition(lambda self: self.outside)
    @rule(data=st.data())
    def come_back(self, data: st.DataObject) -> None:
        call = self.outside.pop(data.draw(st.integers(0, len(self.outside) - 1)))
        self._enter(call)

    @precondition(lambda self: self.naive.calls)
    @rule(data=st.data())
    def start_or_preempt(self, data: st.DataObject) -> None:
        call = self._any(data)
        runs = call.state is CallState.RUNNING
        call.state = CallState.QUEUED if runs else CallState.RUNNING
        self.queue.refile(call)
        self.naive.refile(call)

    @precondition(lambda self: self.naive.calls)
    @rule(data=st.data(), level=st.integers(0, LEVELS - 1))
    def change_level(self, data: st.DataObject, level: int) -> None:
        call = self._any(data)
        call.level = min(level, self._top())
        self.queue.refile(call)
        self.naive.refile(call)

    @precondition(lambda self: self.naive.calls)
    @rule(data=st.data(), level=st.integers(0, LEVELS - 1))
    def use_quantum_up(self, data: st.DataObject, level: int) -> None:
        call = self._any(data)
        call.level = min(level, self._top())
        self.queue.to_tail(call)
        self.naive.enter(call)

    @rule(config=configs)
    def change_policy(self, config: CoreConfig) -> None:
        before = self.naive.order()
        self.policy = self.naive.policy = make_policy(config)
        for call in before:
            call.level = min(call.level, self._top())
            self.naive.enter(call)
        self.queue.use(self.policy)

    def _any(self, data: st.DataObject) -> Call:
        return self.naive.calls[data.draw(st.integers(0, len(self.naive.calls) - 1))]

    @invariant()
    def both_serve_alike(self) -> None:
        if not hasattr(self, "queue"):
            return
        running, waiting = (self.naive.of_state(s) for s in (CallState.RUNNING, CallState.QUEUED))
        assert list(self.queue.walk()) == self.naive.order()
        assert list(self.queue.running()) == running
        assert list(self.queue.waiting()) == waiting
        assert self.queue.waiting_first() is (waiting[0] if waiting else None)
        assert (self.queue.running_count, self.queue.waiting_count) == (len(running), len(waiting))
        assert len(self.queue) == len(self.naive.calls)
        assert all(call in self.queue for call in self.naive.calls)
        assert not any(call in self.queue for call in self.outside)

    @invariant()
    def both_count_alike(self) -> None:
        if not hasattr(self, "queue"):
            return
        running = self.naive.of_state(CallState.RUNNING)
        levels = [call.level for call in self.naive.calls]
        assert self.queue.level_counts(LEVELS) == [levels.count(level) for level in range(LEVELS)]
        for level in range(LEVELS):
            assert self.queue.running_upto(level) == sum(call.level <= level for call in running)

    @invariant()
    def both_displace_alike(self) -> None:
        if not hasattr(self, "queue"):
            return
        order = self.naive.order()
        for place, call in enumerate(order):
            after = [other for other in order[place + 1 :] if other.state is CallState.RUNNING]
            assert list(self.queue.running_after(call)) == after[::-1]
            if call.state is not CallState.RUNNING:
                running = self.naive.of_state(CallState.RUNNING)
                assert [other for other in running if self.queue.goes_before(call, other)] == after


QueueMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestQueueMachine = QueueMachine.TestCase
