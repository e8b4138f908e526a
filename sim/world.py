"""The world around the core: it feeds events, obeys effects and holds both to what is true.

Every event goes through `feed`: the core handles it, its effects are carried out at once (executors execute
plans, the ledger judges what frontends are told), and the invariants of the core are checked. The methods
that make events know what must come of them, e.g. that a cancelled call has ended when `cancel` returns.
"""

import heapq
from collections.abc import Callable
from random import Random
from typing import Any

from scheduler_svc.core import effects as ef
from scheduler_svc.core import events as ev
from scheduler_svc.core.core import Core
from scheduler_svc.core.errors import Refused
from scheduler_svc.core.ids import CallHandle, CallId, ExecutorId, FrontendId
from scheduler_svc.core.invariants import check
from sim.agenda import Agenda
from sim.broken import Broken, require
from sim.executor import HeldCall, Pending, SimulatedExecutor, StepCost
from sim.ledger import CallRecord, Ledger
from sim.tally import Tally
from sim.trace import Trace

Spoiled = ev.StepCompleted | ev.CallPrepared
"""What an executor sends that breaks the protocol."""

START_S = 1000.0
"""Virtual time at which an episode begins."""


class World:
    """The core, the executors and the frontends of one episode.

    Args:
        check_every: Invariants are checked after every so many events; 0: never.
    """

    def __init__(
        self, core: Core, random: Random, tally: Tally, *, check_every: int, trace: Trace | None
    ) -> None:
        self.core = core
        self.random = random
        self.tally = tally
        self.agenda = Agenda(START_S)
        self.ledger = Ledger()
        self.attached: dict[ExecutorId, SimulatedExecutor] = {}
        self.fingerprints: dict[str, str] = {}
        """model -> fingerprint of its newest registration."""
        self.on_gone: Callable[[SimulatedExecutor], None] = lambda executor: None
        """Called when the core closed an executor or it was lost."""
        self.spoil: Callable[[SimulatedExecutor, Pending], Spoiled | None] = lambda *_: None
        """Asked before a result is delivered: a result that breaks the protocol, or None."""
        self.after_result: Callable[[], None] = lambda: None
        self.dirty = False
        """Whether something has happened since the last plans were made."""
        self.events = 0
        self.swapped_before = (tally.work.blocks_swapped_out, tally.work.blocks_swapped_in)
        """Blocks that were copied in the episodes before this one."""
        self.clock_error_s = 0.0
        """The next plans are asked for with a time that lies this far back."""
        self._check_every = check_every
        self._trace = trace
        self._breaking: ExecutorId | None = None
        self._deadlines: list[tuple[float, int, CallRecord]] = []
        self._last_spec: dict[str, ev.ExecutorSpec] = {}
        self._obey: dict[type, Callable[[Any], object]] = {
            ef.AnnounceCall: self._announce,
            ef.SendPlan: self._send_plan,
            ef.CloseExecutor: self._close_executor,
            ef.EmitTokens: self.ledger.emitted,
            ef.ReportStarted: self.ledger.started,
            ef.FinishCall: self._finish_call,
            ef.RefuseCall: self._refuse_call,
        }

    @property
    def now(self) -> float:
        return self.agenda.now

    # ── the one way in ──────────────────────────────────────────────────────────────────────────────

    def feed(self, event: Any, *, early_s: float = 0.0) -> None:
        """Lets the core handle an event, carries out what it says, checks the invariants.

        Args:
            early_s: How far back the time lies that the core is told.

        Raises: Refused when the core does; Broken; AssertionError from the invariants.
        """
        now = self.now - early_s
        if self._trace is not None:
            self._trace.event(now, event)
        effects = self.core.handle(event, now)
        if self._trace is not None:
            self._trace.effects(now, effects)
        obey = self._obey
        for effect in effects:
            obey[type(effect)](effect)
        self.dirty = True
        self.events += 1
        if self._check_every and self.events % self._check_every == 0:
            check(self.core)

    def feed_refused(self, event: Any, reason: str) -> None:
        """Feeds an event that the core must refuse for `reason`."""
        try:
            self.feed(event)
        except Refused as refused:
            require(refused.refusal.reason == reason, f"refused for {refused.refusal.reason}, not {reason}")
            self.tally.add("refusal", reason)
        else:
            raise Broken(f"taken and not refused for {reason}: {event}")

    def plan(self) -> None:
        """Has plans made."""
        early_s, self.clock_error_s = self.clock_error_s, 0.0
        self.feed(ev.PlanDue(), early_s=early_s)
        self.dirty = False

    def tick(self) -> None:
        """Time passes: calls whose deadline is over have ended when this returns."""
        due: list[CallRecord] = []
        while self._deadlines and self._deadlines[0][0] <= self.now:
            due.append(heapq.heappop(self._deadlines)[2])
        for record in due:
            record.may_fail.add("DEADLINE_EXCEEDED")
        self.feed(ev.TimePassed())
        for record in due:
            require(not record.is_live, f"{record.spec.call_id} lives beyond its deadline")

    # ── calls ───────────────────────────────────────────────────────────────────────────────────────

    def submit(self, record: CallRecord) -> bool:
        """Submits a call; the core must take it just when it has no reason to refuse it."""
        record.submitted_s = self.now
        record.refusals |= self._reasons_to_refuse(record.spec)
        record.must_refuse = bool(record.refusals)
        self.ledger.submitted(record)
        self.feed(ev.CallSubmitted(call=record.spec))
        if record.refused is not None:
            return False
        self.ledger.accepted(record)
        self.tally.add("call", "accepted")
        due_s = record.due_s()
        if due_s is not None:
            heapq.heappush(self._deadlines, (due_s, self.events, record))
        return True

    def _reasons_to_refuse(self, spec: ev.CallSpec) -> set[str]:
        reasons: set[str] = set()
        program = self.core.program(spec.tenant, spec.program_id)
        if program is None:
            reasons.add("PROGRAM_UNKNOWN")
        elif program.state.value in ("ended", "timed_out", "cancelled"):
            reasons.add("PROGRAM_ENDED")
        if len(self.ledger.live) >= self.core.config.live_calls_max:
            reasons.add("QUEUE_FULL")
        if spec.model not in self.fingerprints:
            return reasons | {"MODEL_UNKNOWN"}
        longest = self.longest_call(spec.model)
        if len(spec.prompt_token_ids) >= longest:
            reasons.add("PROMPT_TOO_LONG")
        elif len(spec.prompt_token_ids) + spec.max_tokens > longest:
            reasons.add("PARAMETER_OUT_OF_RANGE")
        return reasons

    def longest_call(self, model: str) -> int:
        """Tokens of the longest call that the door lets in for a model that was ever served."""
        specs = [executor.spec for executor in self.executors_of(model)] or [self._last_spec[model]]
        return max(spec.max_call_tokens for spec in specs)

    def cancel(self, record: CallRecord, reason: ev.CancelReason) -> None:
        """Cancels a call: if it was live, it has ended when this returns."""
        self._cancel_all([record] if record.is_live else [], reason, self._cancel_event(record, reason))

    def _cancel_event(self, record: CallRecord, reason: ev.CancelReason) -> ev.CallCancelled:
        return ev.CallCancelled(call_id=record.spec.call_id, reason=reason)

    def cancel_program(self, tenant: Any, program_id: Any) -> None:
        """Cancels a known program with all of its calls."""
        records = list(self.ledger.of_program(tenant, program_id))
        event = ev.ProgramCancelled(tenant=tenant, program_id=program_id)
        self._cancel_all(records, ev.CancelReason.PROGRAM, event)

    def lose_frontend(self, frontend_id: FrontendId) -> None:
        """A frontend is gone for good, and so are its calls."""
        records = list(self.ledger.of_frontend(frontend_id))
        event = ev.FrontendLost(frontend_id=frontend_id)
        self._cancel_all(records, ev.CancelReason.FRONTEND_LOST, event)

    def _cancel_all(self, records: list[CallRecord], reason: ev.CancelReason, event: Any) -> None:
        for record in records:
            record.cancelling = reason
            self.tally.add("cancel", reason.name)
        self.feed(event)
        for record in records:
            require(not record.is_live, f"{record.spec.call_id} was cancelled and lives")

    def acknowledge(self, record: CallRecord) -> None:
        """The frontend of a call has seen its end."""
        record.acknowledged = True
        self.feed(ev.CallAcknowledged(call_id=record.spec.call_id))

    # ── executors ───────────────────────────────────────────────────────────────────────────────────

    def executors_of(self, model: str) -> list[SimulatedExecutor]:
        """Attached executors of a model, in order of joining."""
        return [executor for executor in self.attached.values() if executor.spec.model == model]

    def join(self, spec: ev.ExecutorSpec, cost: StepCost) -> None:
        """An executor registers, perhaps over a former registration of the same id, perhaps with other
        weights than its model had so far: calls that began with the old ones fail then."""
        former = self.attached.pop(spec.executor_id, None)
        doomed = self._note_losses(former)
        if self.fingerprints.get(spec.model, spec.model_fingerprint) != spec.model_fingerprint:
            doomed += [record for record in self.ledger.live.values() if record.spec.model == spec.model]
        for record in doomed:
            record.may_fail.add("EXECUTOR_FAILED")
        executor = SimulatedExecutor(spec, cost=cost, work=self.tally.work)
        self.fingerprints[spec.model] = spec.model_fingerprint
        self._last_spec[spec.model] = spec
        self.attached[spec.executor_id] = executor
        self.feed(ev.ExecutorJoined(executor=spec))
        for record in doomed:
            require(not record.is_live, f"{record.spec.call_id} goes on though it cannot")

    def lose(self, executor: SimulatedExecutor) -> None:
        """The stream of an attached executor ended."""
        doomed = self._note_losses(executor)
        spec = executor.spec
        del self.attached[spec.executor_id]
        self.feed(ev.ExecutorLost(executor_id=spec.executor_id, epoch=spec.epoch))
        self._after_loss(executor, doomed)

    def drain(self, executor: SimulatedExecutor) -> None:
        """An attached executor is asked to leave; the core closes it when its calls are done."""
        executor.draining = True
        self.feed(ev.ExecutorDrainRequested(executor_id=executor.spec.executor_id))

    def break_protocol(self, executor: SimulatedExecutor, event: Any) -> None:
        """An executor sends what it must not: the core must close it and lose nothing."""
        doomed = self._note_losses(executor)
        self._breaking = executor.spec.executor_id
        self.feed(event)
        require(self._breaking is None, f"the core did not close the executor after {event}")
        self._after_loss(executor, doomed, told=True)

    def _after_loss(self, executor: SimulatedExecutor, doomed: list[CallRecord], told: bool = False) -> None:
        for record in doomed:
            require(not record.is_live, f"{record.spec.call_id} lost {record.losses} executors and lives")
        if not told:
            self.on_gone(executor)

    def _note_losses(self, executor: SimulatedExecutor | None) -> list[CallRecord]:
        """Counts the loss of an executor for the calls in its batch, and returns those it must end."""
        if executor is None:
            return []
        handles = dict.fromkeys(handle for pending in executor.pending for handle in pending.handles)
        doomed = []
        for handle in handles:
            record = self.record_of(executor, handle)
            if record is not None and record.is_live:
                record.losses += 1
                if record.losses >= self.core.config.executor_losses_max:
                    record.may_fail.add("EXECUTOR_FAILED")
                    doomed.append(record)
        return doomed

    def record_of(self, executor: SimulatedExecutor, handle: CallHandle) -> CallRecord | None:
        """The call that a handle names, while it is on this executor."""
        held = executor.calls.get(handle)
        if held is None:
            return None
        record = self.ledger.records[held.spec.call_id]
        return record if record.held is held and record.held_by is executor else None

    # ── results ─────────────────────────────────────────────────────────────────────────────────────

    def deliver(self, executor: SimulatedExecutor) -> None:
        """The oldest result of an executor arrives, if the executor is still there."""
        if self.attached.get(executor.spec.executor_id) is not executor:
            return
        pending = executor.pending[0]
        spoiled = self.spoil(executor, pending)
        if spoiled is not None:
            self.break_protocol(executor, spoiled)
            return
        failed = [self.record_of(executor, handle) for handle in pending.result.failures]
        for record in failed:
            if record is not None:
                record.may_fail.add("EXECUTOR_FAILED")
        self._charge(executor, pending)
        self.feed(pending.result)
        executor.pending.popleft()
        for record in failed:
            require(record is None or not record.is_live, "a call failed on its executor and lives")
        self.after_result()

    def _charge(self, executor: SimulatedExecutor, pending: Pending) -> None:
        """Keeps the frontends' own books of service, to hold the core's against."""
        calls, seconds = executor.calls, pending.result.step_s
        for handle in pending.handles:
            held = calls.get(handle)
            if held is not None and not held.ended:
                held.service_s += seconds

    # ── obeying ─────────────────────────────────────────────────────────────────────────────────────

    def _executor(self, executor_id: ExecutorId) -> SimulatedExecutor:
        executor = self.attached.get(executor_id)
        if executor is None:
            raise Broken(f"an effect names executor {executor_id}, which is not attached")
        return executor

    def _announce(self, effect: ef.AnnounceCall) -> None:
        executor = self._executor(effect.executor_id)
        record = self.ledger.records[effect.call.call_id]
        require(effect.call is record.spec, "another call was announced than was submitted")
        require(record.end is None, "an ended call was announced")
        require(list(effect.output_token_ids) == record.output, "tokens of an announced call are wrong")
        if record.held is not None:
            self.tally.add("core", "calls moved")
        service_s = 0.0 if record.held is None else record.held.service_s
        record.held, record.held_by = executor.announce(effect), executor
        record.held.service_s = service_s
        if record.spec.needs_preparation:
            self._prepare(executor, effect.handle, record)

    def _prepare(self, executor: SimulatedExecutor, handle: CallHandle, record: CallRecord) -> None:
        held = record.held

        def prepared() -> None:
            if self.attached.get(executor.spec.executor_id) is not executor:
                return
            if record.preparation_error and record.held is held:
                record.may_fail.add("PREPARATION_FAILED")
            self.feed(
                ev.CallPrepared(
                    executor_id=executor.spec.executor_id, handle=handle, error=record.preparation_error
                )
            )

        self.agenda.after(self.random.choice((0.0, 0.1, 1.0, 5.0)), prepared)

    def _send_plan(self, effect: ef.SendPlan) -> None:
        executor = self._executor(effect.executor_id)
        pending = executor.execute(effect.plan)
        executor.busy_until_s = max(executor.busy_until_s, self.now) + pending.busy_s
        self.agenda.at(executor.busy_until_s, lambda: self.deliver(executor))

    def _close_executor(self, effect: ef.CloseExecutor) -> None:
        executor = self._executor(effect.executor_id)
        if effect.drained:
            require(executor.draining, "an executor left that nobody asked to")
            require(not executor.pending, "an executor left with a result under way")
            live = [held for held in executor.calls.values() if not held.ended and self._is_here(held)]
            require(not live, "an executor left with live calls")
            self.tally.add("fault", "executor drained")
        else:
            require(self._breaking == effect.executor_id, f"closed without reason: {effect.reason}")
            self._breaking = None
        del self.attached[effect.executor_id]
        self.on_gone(executor)

    def _is_here(self, held: HeldCall) -> bool:
        return self.ledger.records[CallId(held.spec.call_id)].held is held

    def _finish_call(self, effect: ef.FinishCall) -> None:
        record = self.ledger.finished(effect)
        self.tally.add("end", effect.error.reason if effect.error else effect.reason.name)
        service_s = record.held.service_s if record.held is not None else 0.0
        right = abs(effect.service_s - service_s) <= 1e-6 * (1 + service_s)
        require(right, f"{record.spec.call_id} was charged {effect.service_s} s instead of {service_s}")

    def _refuse_call(self, effect: ef.RefuseCall) -> None:
        self.ledger.refused(effect)
        self.tally.add("refusal", effect.refusal.reason)
