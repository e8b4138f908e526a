"""The core: one object, one method that changes it (`handle`), and accessors that only look.

Rules: it does no I/O, has no clock, no threads and no randomness. Time comes in with each event. The same
events with the same times give the same effects. An event either is taken in as a whole or raises and changes
nothing.

    events ──> Core.handle ──┬─ ProcessTable   programs
                             ├─ Fleet          executors, placement, each with its queue and blocks
                             ├─ Lifecycle      calls and their states
                             ├─ ResultReader   results of steps
                             └─ Planner        plans, at PlanDue only
    effects <── outbox, in the order in which they came up
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from scheduler_svc.core import events as ev
from scheduler_svc.core.call_registry import CallRegistry
from scheduler_svc.core.call_states import CallState
from scheduler_svc.core.columnar_planner import ColumnarPlanner
from scheduler_svc.core.columnar_results import ColumnarReader
from scheduler_svc.core.config import POLICY_OPTIONS, BadOption, CoreConfig, KvPreempted, PlannerKind
from scheduler_svc.core.counters import Counters
from scheduler_svc.core.effects import CloseExecutor, Effect, RefuseCall
from scheduler_svc.core.errors import ProtocolBroken, Refused
from scheduler_svc.core.executor import Executor
from scheduler_svc.core.fleet import Fleet
from scheduler_svc.core.ids import CallId, FrontendId, ProgramId, TenantId
from scheduler_svc.core.lifecycle import Lifecycle, bring_up_to_date
from scheduler_svc.core.planner import Planner
from scheduler_svc.core.policies import make_policy
from scheduler_svc.core.process_table import ProcessTable, Program
from scheduler_svc.core.refusals import (
    bad_option,
    deadline_exceeded,
    executor_failed,
    no_executor,
    preparation_failed,
)
from scheduler_svc.core.results import ResultReader
from scheduler_svc.core.snapshots import (
    EngineSnapshot,
    ExecutorSnapshot,
    ModelSnapshot,
    ProgramSnapshot,
    ProgramState,
    StatisticsSnapshot,
)
from scheduler_svc.core.views import (
    engine_snapshot,
    executor_snapshot,
    live_calls_by_level,
    model_snapshots,
    program_snapshot,
    statistics_snapshot,
)


class Core:
    """The scheduler without its surroundings.

    The parts (`table`, `fleet`, ...) are for this package: `invariants` and tests look at them, others do
    not.

    Raises: ValueError when `config` names no policy or its levels do not make sense.
    """

    def __init__(self, config: CoreConfig) -> None:
        self.config = config
        self._now = float("-inf")
        self._outbox: list[Effect] = []
        self.counters = Counters()
        self.table = ProcessTable(
            open_programs_max=config.open_programs_max, recent_programs_max=config.recent_programs_max
        )
        self.policy = make_policy(config, self.table.history)
        columnar = config.planner is PlannerKind.COLUMNAR
        self.fleet = Fleet(
            self.policy,
            short_prompt_tokens=config.short_prompt_tokens,
            columnar=columnar,
            swaps_always=config.kv_preempted is KvPreempted.SWAP,
        )
        self.registry = CallRegistry(unacknowledged_calls_max=config.unacknowledged_calls_max)
        self.lifecycle = Lifecycle(
            config, self.policy, self.table, self.fleet, self.registry, self.counters, self._outbox
        )
        results = ResultReader(self.lifecycle, self.counters, self._outbox)
        self._planner: Planner | ColumnarPlanner
        self._results: ResultReader | ColumnarReader
        if columnar:
            self._planner = ColumnarPlanner(self.lifecycle, self._outbox)
            self._results = ColumnarReader(results, self.lifecycle, self.counters, self._outbox)
        else:
            self._planner = Planner(self.lifecycle, self._outbox)
            self._results = results
        self._handlers: dict[type, Callable[[Any], None]] = {
            ev.ProgramOpened: self._program_opened,
            ev.ProgramEnded: self._program_ended,
            ev.ProgramCancelled: self._program_cancelled,
            ev.CallSubmitted: self._call_submitted,
            ev.CallCancelled: self._call_cancelled,
            ev.CallAcknowledged: self._call_acknowledged,
            ev.FrontendLost: self._frontend_lost,
            ev.ExecutorJoined: self._executor_joined,
            ev.ExecutorDrainRequested: self._executor_drain_requested,
            ev.ExecutorLost: self._executor_lost,
            ev.CallPrepared: self._call_prepared,
            ev.StepCompleted: self._step_completed,
            ev.PolicyChanged: self._policy_changed,
            ev.TimePassed: self._time_passed,
            ev.PlanDue: self._plan_due,
        }

    def handle(self, event: ev.Event, now: float) -> list[Effect]:
        """Takes one event in.

        A submitted call that is refused comes back as a `RefuseCall` effect. `PlanDue` alone returns plans.

        Args:
            event: What happened.
            now: Monotonic seconds; an earlier value than the last one counts as the last one.

        Returns: what to do, in order.
        Raises:
            Refused: by ProgramOpened (PROGRAM_LIMIT, PROGRAM_ENDED), ProgramEnded and ProgramCancelled
                (PROGRAM_UNKNOWN; ending twice is fine), ExecutorJoined (MODEL_MISMATCH,
                UNSUPPORTED_EXECUTOR), ExecutorDrainRequested (NO_EXECUTOR) and PolicyChanged
                (PARAMETER_OUT_OF_RANGE). Nothing was changed. No other event raises.
        """
        self._now = max(self._now, now)
        self._handlers[type(event)](event)
        effects = self._outbox.copy()
        self._outbox.clear()
        return effects

    # ── programs ────────────────────────────────────────────────────────────────────────────────────

    def _program_opened(self, event: ev.ProgramOpened) -> None:
        program = self.table.open(event, self._now)
        if not program.live_calls:
            self.lifecycle.programs.became_quiet(program, self._now)

    def _program_ended(self, event: ev.ProgramEnded) -> None:
        program = self.table.known(event.tenant, event.program_id)
        self.lifecycle.programs.end(program, ProgramState.ENDED)

    def _program_cancelled(self, event: ev.ProgramCancelled) -> None:
        program = self.table.known(event.tenant, event.program_id)
        self.lifecycle.programs.end(program, ProgramState.CANCELLED)
        for call in list(program.live_calls.values()):
            self.lifecycle.cancel(call, self._now, ev.CancelReason.PROGRAM)

    # ── calls ───────────────────────────────────────────────────────────────────────────────────────

    def _call_submitted(self, event: ev.CallSubmitted) -> None:
        spec = event.call
        try:
            self.lifecycle.submit(spec, self._now)
        except Refused as refused:
            self.counters.calls_refused += 1
            self._outbox.append(
                RefuseCall(frontend_id=spec.frontend_id, handle=spec.stream_handle, refusal=refused.refusal)
            )

    def _call_cancelled(self, event: ev.CallCancelled) -> None:
        call = self.registry.live(event.call_id)
        if call is not None:
            self.lifecycle.cancel(call, self._now, event.reason)

    def _call_acknowledged(self, event: ev.CallAcknowledged) -> None:
        self.registry.acknowledge(event.call_id)

    def _frontend_lost(self, event: ev.FrontendLost) -> None:
        for call in list(self.registry.of_frontend(event.frontend_id).live.values()):
            self.lifecycle.cancel(call, self._now, ev.CancelReason.FRONTEND_LOST)
        self.registry.forget_frontend(event.frontend_id)

    # ── executors ───────────────────────────────────────────────────────────────────────────────────

    def _executor_joined(self, event: ev.ExecutorJoined) -> None:
        spec = event.executor
        self.fleet.check_joining(spec)
        is_replaced = self.fleet.replaces_model(spec)
        former = self.fleet.get(spec.executor_id)
        if former is not None:
            self._lose(former)
        if is_replaced:
            self._fail_unplaced(spec.model)
        self.fleet.attach(spec)
        self._dispatch_unplaced(spec.model)
        for executor in self.fleet.of_model(spec.model):
            if executor.draining:
                self._hand_over(executor)

    def _dispatch_unplaced(self, model: str) -> None:
        for call in self.fleet.unplaced_of(model):
            self.lifecycle.dispatch(call, self._now)

    def _fail_unplaced(self, model: str) -> None:
        """Ends calls whose tokens mean nothing to the model that now bears the name."""
        message = f"Model {model!r} was replaced by another one of that name while the call waited."
        for call in self.fleet.unplaced_of(model):
            self.lifecycle.fail(call, self._now, executor_failed(message))

    def _executor_drain_requested(self, event: ev.ExecutorDrainRequested) -> None:
        executor = self.fleet.get(event.executor_id)
        if executor is None:
            raise Refused(no_executor(event.executor_id))
        executor.draining = True
        self._hand_over(executor)

    def _hand_over(self, executor: Executor) -> None:
        """Moves the calls that only wait on a draining executor to others; what nobody else can take
        stays."""
        for call in list(executor.calls.values()):
            waits = call.state is CallState.QUEUED and call.in_flight == 0
            if waits and self.fleet.choose(call) is not None:
                self.lifecycle.requeue(call, self._now)
                self.lifecycle.dispatch(call, self._now)

    def _executor_lost(self, event: ev.ExecutorLost) -> None:
        executor = self.fleet.get(event.executor_id)
        if executor is not None and executor.spec.epoch == event.epoch:
            self._lose(executor)

    def _lose(self, executor: Executor) -> None:
        """Queues the calls of a lost executor again, with their tokens; those that lost too many executors
        fail."""
        calls = list(executor.calls.values())
        executor.lost = True
        bring_up_to_date(calls)
        for call in calls:
            call.losses += call.in_flight > 0
            self.lifecycle.requeue(call, self._now)
        self._detach(executor)
        for call in calls:
            if call.losses < self.config.executor_losses_max:
                self.lifecycle.dispatch(call, self._now)
            else:
                message = f"{call.losses} executors were lost while they ran this call."
                self.lifecycle.fail(call, self._now, executor_failed(message))

    def _detach(self, executor: Executor) -> None:
        self.counters.add_kv(executor.kv)
        self.fleet.detach(executor)

    def _call_prepared(self, event: ev.CallPrepared) -> None:
        executor = self.fleet.get(event.executor_id)
        if executor is None:
            return
        call = executor.by_handle.get(event.handle)
        if call is None:
            if not executor.was_given(event.handle):
                self._close(executor, f"call {event.handle} was prepared and is unknown")
        elif call.state is not CallState.PREPARING:
            self._close(executor, f"call {event.handle} was prepared unasked")
        elif event.error:
            self.lifecycle.fail(call, self._now, preparation_failed(event.error))
        else:
            self.lifecycle.prepared(call, self._now)

    def _step_completed(self, event: ev.StepCompleted) -> None:
        executor = self.fleet.get(event.executor_id)
        if executor is None:
            return
        try:
            self._results.take(executor, event, self._now)
        except ProtocolBroken as broken:
            self._close(executor, str(broken))

    def _close(self, executor: Executor, reason: str) -> None:
        self._outbox.append(CloseExecutor(executor_id=executor.executor_id, reason=reason))
        self._lose(executor)

    # ── policy ──────────────────────────────────────────────────────────────────────────────────────

    def _policy_changed(self, event: ev.PolicyChanged) -> None:
        assert event.changes.keys() <= POLICY_OPTIONS, "other settings are fixed at the start"
        try:
            config = replace(self.config, **event.changes)
            policy = make_policy(config, self.table.history)
        except BadOption as error:
            raise Refused(bad_option(error)) from error
        self.config, self.policy = config, policy
        self.lifecycle.change_policy(config, policy, self._now)

    # ── time ────────────────────────────────────────────────────────────────────────────────────────

    def _time_passed(self, _event: ev.TimePassed) -> None:
        self.lifecycle.programs.time_passed(self._now)
        for call_id in self.lifecycle.deadlines.pop_due(self._now):
            self._deadline_passed(call_id)
        for call_id in self.lifecycle.starvation_looks.pop_due(self._now):
            self.lifecycle.look_at_starvation(call_id, self._now)

    def _deadline_passed(self, call_id: CallId) -> None:
        call = self.registry.live(call_id)
        if call is not None:
            self.lifecycle.fail(call, self._now, deadline_exceeded(call))

    def _plan_due(self, _event: ev.PlanDue) -> None:
        for executor in list(self.fleet):
            if executor.can_take_plan:
                self._plan_for(executor)

    def _plan_for(self, executor: Executor) -> None:
        self.lifecycle.let_in(executor, self._now)
        while self._planner.plan(executor, self._now):
            pass
        if executor.draining and not executor.calls and not executor.in_flight:
            self._detach(executor)
            self._outbox.append(
                CloseExecutor(executor_id=executor.executor_id, reason="drained", drained=True)
            )

    # ── looking ─────────────────────────────────────────────────────────────────────────────────────

    def find_program(self, tenant: TenantId, session_key: str) -> ProgramSnapshot | None:
        """The open program of a tenant's session key."""
        return self._snapshot(self.table.find(tenant, session_key))

    def program(self, tenant: TenantId, program_id: ProgramId) -> ProgramSnapshot | None:
        """An open or recently ended program; None when unknown, or another tenant's."""
        return self._snapshot(self.table.get(tenant, program_id))

    def programs(self, tenant: TenantId | None = None) -> list[ProgramSnapshot]:
        """Open and recently ended programs, oldest first; None: of all tenants."""
        programs = sorted(self.table.all(tenant), key=lambda program: program.seq)
        return [self._snapshot_of(program) for program in programs]

    def _snapshot(self, program: Program | None) -> ProgramSnapshot | None:
        return None if program is None else self._snapshot_of(program)

    def _snapshot_of(self, program: Program) -> ProgramSnapshot:
        bring_up_to_date(program.live_calls.values())
        return program_snapshot(
            program, self.fleet, self._now, entry_level=self.lifecycle.entry_level(program)
        )

    def executors(self) -> list[ExecutorSnapshot]:
        """Attached executors by id."""
        executors = sorted(self.fleet, key=lambda executor: executor.executor_id)
        return [executor_snapshot(executor) for executor in executors]

    def models(self) -> list[ModelSnapshot]:
        """Models with at least one executor, by name."""
        return model_snapshots(self.fleet)

    def statistics(self) -> StatisticsSnapshot:
        """Counters since start, and gauges."""
        return statistics_snapshot(
            self.counters,
            self.fleet,
            policy=self.policy.name,
            live_calls=self.registry.live_count,
            open_programs=self.table.open_count,
        )

    def live_calls_by_level(self) -> list[int]:
        """Live calls per level, level 0 first: cheap enough for every scrape, not for every step."""
        return live_calls_by_level(self.fleet, len(self.policy.levels))

    def engine_status(self, frontend_id: FrontendId) -> EngineSnapshot:
        """Gauges to send along with a frontend's outputs."""
        return engine_snapshot(self.registry.of_frontend(frontend_id), self.fleet)
