"""What goes wrong and what users do unasked: drawn after results, so that trouble keeps pace with progress.

Each kind looks for something to happen to and says whether it found it. Kinds are tallied by name, and a long
run must have seen every one.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from scheduler_svc.core import events as ev
from scheduler_svc.core.ids import CallId, ExecutorId, ProgramId, TenantId
from sim.calls import BAD_CALLS
from sim.draws import Shape, draw_policy_changes
from sim.executor import Pending, SimulatedExecutor
from sim.ledger import CallRecord
from sim.machines import Machines
from sim.mischief import SPOILERS
from sim.traffic import FRONTENDS, Traffic
from sim.world import Spoiled, World

BAD_EXECUTORS: list[tuple[dict[str, Any], str]] = [
    ({"num_blocks": 1}, "UNSUPPORTED_EXECUTOR"),
    ({"max_num_batched_tokens": 0}, "UNSUPPORTED_EXECUTOR"),
    ({"model_fingerprint": "other"}, "MODEL_MISMATCH"),
]
"""What is wrong with a registration, and the reason for which it is refused."""
CANCELS = (ev.CancelReason.CLIENT, ev.CancelReason.STOP_STRING, ev.CancelReason.DEADLINE)


class Faults:
    """Faults of an episode. Quiet once `stop` was called."""

    def __init__(self, world: World, shape: Shape, machines: Machines, traffic: Traffic) -> None:
        self._world = world
        self._shape = shape
        self._chance = shape.fault_chance
        self._machines = machines
        self._traffic = traffic
        self._random = world.random
        self._kinds = list(KINDS.items())
        self._weights = [weight for _, (weight, _) in self._kinds]
        world.after_result = self._after_result
        world.spoil = self._spoil

    def stop(self) -> None:
        """Nothing goes wrong from here on."""
        self._chance = 0.0

    def _after_result(self) -> None:
        if self._chance and self._random.random() < self._chance:
            (name, (_, act)), *_ = self._random.choices(self._kinds, self._weights)
            if act(self):
                self._world.tally.add("fault", name)

    def _spoil(self, executor: SimulatedExecutor, pending: Pending) -> Spoiled | None:
        """Now and then a result breaks the protocol."""
        if not self._chance or self._random.random() >= self._chance / 3:
            return None
        name = self._random.choice(list(SPOILERS))
        event = SPOILERS[name](self._world, executor, pending)
        if event is not None:
            self._world.tally.add("protocol", name)
        return event

    # ── executors ───────────────────────────────────────────────────────────────────────────────────

    def _any_executor(self) -> SimulatedExecutor | None:
        attached = list(self._world.attached.values())
        return self._random.choice(attached) if attached else None

    def lose_executor(self) -> bool:
        executor = self._any_executor()
        if executor is None:
            return False
        if executor.pending:
            self._world.tally.add("fault", "executor lost with a plan in flight")
        self._world.lose(executor)
        return True

    def register_again(self) -> bool:
        """Its former stream is not known to be gone; the news of that comes later and means nothing."""
        executor = self._any_executor()
        if executor is None:
            return False
        spec = executor.spec
        self._machines.join(spec.executor_id)
        stale = ev.ExecutorLost(executor_id=spec.executor_id, epoch=spec.epoch)
        self._world.agenda.after(1.0, lambda: self._world.feed(stale))
        return True

    def drain_executor(self) -> bool:
        executor = self._any_executor()
        if executor is None:
            return False
        self._world.drain(executor)
        return True

    def slow_down(self) -> bool:
        """The next results of an executor come much later, while others go on."""
        executor = self._any_executor()
        if executor is None:
            return False
        stall_s = self._random.choice((1.0, 10.0, 60.0))
        executor.busy_until_s = max(executor.busy_until_s, self._world.now) + stall_s
        return True

    def replace_model(self) -> bool:
        self._machines.replace_model(self._random.choice(self._machines.models))
        return True

    def refuse_executor(self) -> bool:
        """One that cannot work, and one with other weights than its fellows, are refused and change
        nothing."""
        executor = self._any_executor()
        if executor is None:
            return False
        changes, reason = self._random.choice(BAD_EXECUTORS)
        spec = replace(executor.spec, executor_id=ExecutorId("stranger"), **changes)
        self._world.feed_refused(ev.ExecutorJoined(executor=spec), reason)
        return True

    def drain_unknown(self) -> bool:
        self._world.feed_refused(ev.ExecutorDrainRequested(executor_id=ExecutorId("nobody")), "NO_EXECUTOR")
        return True

    def late_result(self) -> bool:
        """A result and news of the loss of an executor that is not attached: nobody cares."""
        result = ev.StepCompleted(executor_id=ExecutorId("nobody"), step=1, handles=[], tokens=[], step_s=1.0)
        self._world.feed(result)
        self._world.feed(ev.ExecutorLost(executor_id=ExecutorId("nobody"), epoch=1))
        return True

    # ── calls and programs ──────────────────────────────────────────────────────────────────────────

    def _any_live(self) -> CallRecord | None:
        live = list(self._world.ledger.live.values())
        return self._random.choice(live) if live else None

    def cancel_call(self) -> bool:
        record = self._any_live()
        if record is None:
            return False
        self._world.cancel(record, self._random.choice(CANCELS))
        return True

    def cancel_in_flight(self) -> bool:
        """Cancels a call while a result with a token of it is on its way."""
        executor = self._any_executor()
        if executor is None or not executor.pending or not executor.pending[-1].samplers:
            return False
        record = self._world.record_of(executor, self._random.choice(executor.pending[-1].samplers))
        if record is None or not record.is_live:
            return False
        self._world.cancel(record, self._random.choice(CANCELS))
        return True

    def cancel_ended(self) -> bool:
        """A cancel that comes too late changes nothing."""
        ended = [record for record in self._world.ledger.records.values() if record.end is not None]
        if not ended:
            return False
        self._world.cancel(self._random.choice(ended), ev.CancelReason.CLIENT)
        return True

    def fail_call(self) -> bool:
        """A call fails in its next row."""
        record = self._any_live()
        if record is None or record.held_by is None or record.held is None or record.held.ended:
            return False
        record.held_by.failing[record.spec.call_id] = "broken on purpose"
        return True

    def end_program(self) -> bool:
        return self._with_live_program(
            lambda tenant, program_id: self._world.feed(ev.ProgramEnded(tenant=tenant, program_id=program_id))
        )

    def cancel_program(self) -> bool:
        return self._with_live_program(self._world.cancel_program)

    def _with_live_program(self, act: Callable[[TenantId, ProgramId], None]) -> bool:
        record = self._any_live()
        if record is None:
            return False
        act(record.spec.tenant, record.spec.program_id)
        return True

    def lose_frontend(self) -> bool:
        self._world.lose_frontend(self._random.choice(FRONTENDS))
        return True

    def submit_twice(self) -> bool:
        record = self._any_live()
        if record is None:
            return False
        spec = self._traffic.calls.changed(record.spec)
        self._world.submit(self._traffic.calls.refused_record(spec, {"CALL_DUPLICATE"}))
        return True

    def submit_bad_call(self) -> bool:
        record = self._any_live()
        if record is None:
            return False
        reason = self._random.choice(list(BAD_CALLS))
        name = f"{record.spec.call_id}-bad-{self._world.events}"
        spec = self._traffic.calls.changed(
            record.spec, call_id=CallId(name), output_token_ids=(), prompt_block_hashes=b""
        )
        spec = self._traffic.calls.changed(spec, **BAD_CALLS[reason])
        self._world.submit(self._traffic.calls.refused_record(spec, {reason}))
        return True

    def ask_as_a_stranger(self) -> bool:
        """Another tenant's program looks as if there were none."""
        record = self._any_live()
        if record is None:
            return False
        event = ev.ProgramCancelled(tenant=TenantId("stranger"), program_id=record.spec.program_id)
        self._world.feed_refused(event, "PROGRAM_UNKNOWN")
        return True

    # ── the scheduler itself ────────────────────────────────────────────────────────────────────────

    def step_clock_back(self) -> bool:
        self._world.clock_error_s = self._random.choice((0.01, 5.0))
        return True

    def switch_policy(self) -> bool:
        changes = draw_policy_changes(self._random, self._shape)
        self._world.feed(ev.PolicyChanged(changes=changes))
        self._world.tally.add("policy", changes["policy"])
        return True

    def refuse_policy(self) -> bool:
        """Options that cannot be are refused and change nothing."""
        self._world.feed_refused(ev.PolicyChanged(changes={"policy": "astrology"}), "PARAMETER_OUT_OF_RANGE")
        return True


KINDS: dict[str, tuple[float, Callable[[Faults], bool]]] = {
    "executor lost": (3, Faults.lose_executor),
    "executor registered again": (1, Faults.register_again),
    "executor asked to drain": (1, Faults.drain_executor),
    "executor slow": (2, Faults.slow_down),
    "executor refused": (1, Faults.refuse_executor),
    "drain of nobody": (0.5, Faults.drain_unknown),
    "result of nobody": (0.5, Faults.late_result),
    "model replaced": (0.5, Faults.replace_model),
    "call cancelled": (4, Faults.cancel_call),
    "call cancelled in flight": (4, Faults.cancel_in_flight),
    "cancel too late": (1, Faults.cancel_ended),
    "call fails": (2, Faults.fail_call),
    "call submitted twice": (1, Faults.submit_twice),
    "bad call": (4, Faults.submit_bad_call),
    "program ended early": (1, Faults.end_program),
    "program cancelled": (1, Faults.cancel_program),
    "stranger": (0.5, Faults.ask_as_a_stranger),
    "frontend lost": (1, Faults.lose_frontend),
    "clock stepped back": (1, Faults.step_clock_back),
    "policy switched": (2, Faults.switch_policy),
    "policy refused": (0.5, Faults.refuse_policy),
}
"""Name -> relative frequency, and what happens."""
