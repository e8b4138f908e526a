"""Two cores side by side: the columnar planner and the plain one, which is its oracle.

Both are fed the same events. Their effects must be equal after every event; their calls, blocks, counters and
plans in flight whenever they are looked at. Looking refreshes the lane, so it is not done every time.
"""

from dataclasses import fields
from random import Random
from typing import Any

from scheduler_svc.core.call import Call
from scheduler_svc.core.config import CoreConfig, PlannerKind, ServiceUnit
from scheduler_svc.core.core import Core
from scheduler_svc.core.effects import Effect, EmitTokens
from scheduler_svc.core.errors import Refused
from scheduler_svc.core.events import Event
from scheduler_svc.core.executor import Executor
from scheduler_svc.core.invariants import check
from tests.unit.scheduler_core.world import World

CALL_FIELDS = (
    "state", "handle", "blocks", "block_hashes", "kept", "computed", "planned", "in_flight", "sampling",
    "level", "enqueued", "quantum_used_ps", "entry_path", "queue_key", "service_ps", "cost_ps", "waited_s",
    "waiting_since_s", "computed_ever", "cost_at_start_ps", "preemptions", "losses", "started",
)  # fmt: skip
PROGRAM_FIELDS = (
    "ended", "service_ps", "cost_ps", "completed_service_ps", "completed_cost_ps", "path",
    "completed_waiting_s", "finished_calls", "tokens", "preemptions",
)  # fmt: skip
KV_FIGURES = ("available", "plain", "held", "host_plain", "evicted", "swaps_pending", "live_footprint")


class TwinWorld(World):
    """A world whose core has a plain twin."""

    def __init__(self, looks: Random, *, look_every: int, **config: Any) -> None:
        """
        Args:
            look_every: Mean number of events between two looks at the state.
        """
        defaults = {"service_unit": ServiceUnit.SECONDS, "preemption_grace_s": 0.0}
        self.twin = Core(CoreConfig(**(defaults | config | {"planner": PlannerKind.PLAIN})))
        self._looks = looks
        self._look_every = look_every
        self.steady_rows = 0
        """Rows that were in the lane, over all plans."""
        super().__init__(executors=(), **(config | {"planner": PlannerKind.COLUMNAR}))

    def feed(self, event: Event) -> list[Effect]:
        effects = self._handle(self.core, event)
        expected = self._handle(self.twin, event)
        assert effects == expected, f"{event}:\n{effects}\nbut plain:\n{expected}"
        self.emits_in_event = [effect for effect in effects if isinstance(effect, EmitTokens)]
        for effect in effects:
            self._obey(effect)
        self.steady_rows += sum(executor.lane.rows for executor in self.core.fleet if executor.lane)
        if self._looks.random() * self._look_every < 1:
            self.look()
        return effects

    def _handle(self, core: Core, event: Event) -> list[Effect]:
        try:
            return core.handle(event, self.now)
        except Refused:
            return []

    def look(self) -> None:
        check(self.core)
        check(self.twin)
        assert self.core.counters == self.twin.counters
        ours, theirs = list(self.core.registry.all_live()), list(self.twin.registry.all_live())
        for call, twin in zip(ours, theirs, strict=True):
            assert_same_call(call, twin)
        for program, twin_program in zip(self.core.table.all(), self.twin.table.all(), strict=True):
            for name in PROGRAM_FIELDS:
                assert getattr(program, name) == getattr(twin_program, name), name
        for executor, twin_executor in zip(self.core.fleet, self.twin.fleet, strict=True):
            assert_same_executor(executor, twin_executor)


def assert_same_call(call: Call, twin: Call) -> None:
    assert call.spec == twin.spec
    assert call.tokens == twin.tokens, call.spec.call_id
    for name in CALL_FIELDS:
        ours, plain = getattr(call, name), getattr(twin, name)
        assert ours == plain, f"{call.spec.call_id}.{name} is {ours}, plain {plain}"


def assert_same_executor(executor: Executor, twin: Executor) -> None:
    for name in KV_FIGURES:
        assert getattr(executor.kv, name) == getattr(twin.kv, name), name
    assert executor.prices == twin.prices
    assert executor.to_release == twin.to_release
    for name in ("next_step", "steps_done", "next_handle"):
        assert getattr(executor, name) == getattr(twin, name), name
    assert [call.spec for call in executor.queue.walk()] == [call.spec for call in twin.queue.walk()]
    for step, plain in zip(executor.in_flight, twin.in_flight, strict=True):
        assert (step.step, step.features) == (plain.step, plain.features)
        ours = [row_of(row) for row in executor.rows_of(step).values()]
        assert ours == [row_of(row) for row in plain.rows.values()]


def row_of(row: Any) -> list[Any]:
    values = {field.name: getattr(row, field.name) for field in fields(row)}
    return [values.pop("call").spec.call_id, *(value for name, value in values.items() if name != "slot")]
