"""What happens to a call between its submission and its end, wherever the cause lies.

This is the only place that changes a call's state (`_turn`), and with it the clock of its waiting, the seats
counted per frontend, its timers and its place in a queue. The planner starts and preempts, results finish,
events submit, cancel and fail: all of them through here.

    submit ──> dispatch ──> (executor's queue | PREPARING | unplaced) ──start/preempt──> ... ──> end
                  ^                                                          │
                  └───────────── requeue (executor lost or drained) ─────────┘
"""

from array import array
from collections.abc import Iterable

from scheduler_svc.core import call_kv
from scheduler_svc.core.admission import check_call
from scheduler_svc.core.call import Call
from scheduler_svc.core.call_registry import CallRegistry
from scheduler_svc.core.call_states import WAITING, CallState, Trigger, next_state
from scheduler_svc.core.config import Admission, CoreConfig, ServiceUnit
from scheduler_svc.core.counters import Counters
from scheduler_svc.core.effects import AnnounceCall, Effect, FinishCall, FinishReason, ReportStarted
from scheduler_svc.core.errors import Refusal, Refused
from scheduler_svc.core.events import CallSpec, CancelReason
from scheduler_svc.core.executor import Executor
from scheduler_svc.core.fleet import Fleet
from scheduler_svc.core.ids import CallId
from scheduler_svc.core.policies import Policy
from scheduler_svc.core.process_table import ProcessTable, Program
from scheduler_svc.core.program_watch import ProgramWatch
from scheduler_svc.core.queues import promote, starves_in_s, use_quantum
from scheduler_svc.core.refusals import call_duplicate, deadline_exceeded, queue_full
from scheduler_svc.core.timers import Timers

_STARVATION_LOOK_S = 30.0
"""A waiting call is looked at again after this long at the latest: its program's counters may have
changed."""


_STARVATION_SLACK_S = 1e-6
"""A call this close to starving starves: what is left may be less than the clock can add."""


class Lifecycle:
    """Moves calls through their states. Effects are appended to `outbox` in order."""

    def __init__(
        self,
        config: CoreConfig,
        policy: Policy,
        table: ProcessTable,
        fleet: Fleet,
        registry: CallRegistry,
        counters: Counters,
        outbox: list[Effect],
    ) -> None:
        self.config = config
        self._policy = policy
        self._table = table
        self._fleet = fleet
        self._registry = registry
        self._counters = counters
        self._outbox = outbox
        self._gates = config.admission is Admission.WORKING_SET
        self._submitted = 0
        self.deadlines: Timers[CallId, float] = Timers()
        self.starvation_looks: Timers[CallId, float] = Timers()
        self.programs = ProgramWatch(config, table, fleet)

    # ── in ──────────────────────────────────────────────────────────────────────────────────────────

    def submit(self, spec: CallSpec, now: float) -> None:
        """Takes a call in, places it and queues it by its program's service. Source: Autellix Alg. 1,
        arrival.

        Raises: Refused; nothing was changed.
        """
        program = self._table.known(spec.tenant, spec.program_id)
        self._check_room(spec)
        check_call(spec, program, self._fleet.specs_of(spec.model))
        call = self._enter(spec, program, now)
        self._registry.add(call)
        if spec.parent_call_ids or self._policy.reads_live_service:
            bring_up_to_date(program.live_calls.values())
        program.call_arrived(call, now)
        call.level = self._policy.level_at_arrival(call)
        self.programs.call_arrived(program)
        if spec.deadline_s is not None:
            self.deadlines.set(spec.call_id, now + spec.deadline_s)
        self._counters.calls_submitted += 1
        self.dispatch(call, now)

    def _check_room(self, spec: CallSpec) -> None:
        if spec.call_id in self._registry:
            raise Refused(call_duplicate(spec.call_id))
        if self._registry.live_count >= self.config.live_calls_max:
            raise Refused(queue_full(self.config.live_calls_max))

    def _enter(self, spec: CallSpec, program: Program, now: float) -> Call:
        self._submitted += 1
        return Call(
            spec=spec,
            program=program,
            seq=self._submitted,
            arrived_s=now,
            waiting_since_s=now,
            tokens=array("i", (*spec.prompt_token_ids, *spec.output_token_ids)),
        )

    def entry_level(self, program: Program) -> int:
        """The level at which the program's next call would be queued."""
        return self._policy.level_of_next(program)

    def dispatch(self, call: Call, now: float) -> None:
        """Gives a QUEUED call without an executor to one, or lets it wait for one to join."""
        executor = self._fleet.choose(call)
        if executor is None:
            self._fleet.unplaced[call.spec.call_id] = call
            return
        self._fleet.unplaced.pop(call.spec.call_id, None)
        call.executor = executor
        executor.calls[call.spec.call_id] = call
        if call.spec.needs_preparation:
            self._announce(call, executor)
            self._turn(call, Trigger.PREPARE, now)
        else:
            self._enqueue(call, executor, now)

    def prepared(self, call: Call, now: float) -> None:
        """The executor is ready for a PREPARING call."""
        self._turn(call, Trigger.PREPARED, now)
        self._enqueue(call, _placed(call), now)

    def _enqueue(self, call: Call, executor: Executor, now: float) -> None:
        has_run = executor.executor_id in call.program.executor_ids
        if self._gates and not executor.gate.is_open_to(call.program, has_run=has_run):
            executor.gate.hold(call)
            return
        executor.queue.add(call)
        self._watch_starvation(call, now)

    def let_in(self, executor: Executor, now: float) -> None:
        """Queues the calls of new programs for which there is room now (working-set admission)."""
        if not executor.gate:
            return
        for call in executor.gate.let_in(is_idle=not executor.queue):
            executor.queue.add(call)
            self._watch_starvation(call, now)

    def _announce(self, call: Call, executor: Executor) -> None:
        handle = executor.give_handle(call)
        generated = tuple(call.tokens[call.prompt_len :]) if call.output_len else ()
        self._outbox.append(AnnounceCall(executor.executor_id, handle, call.spec, generated))

    # ── in and out of the batch ─────────────────────────────────────────────────────────────────────

    def start(self, call: Call, now: float, *, cached_tokens: int) -> None:
        """Gives a queued call a seat; its blocks are the planner's business.

        Args:
            cached_tokens: Leading tokens found in the prefix cache.
        """
        executor = _placed(call)
        if call.handle is None:
            self._announce(call, executor)
        self._turn(call, Trigger.START, now)
        call.cost_at_start_ps = call.cost_ps
        executor.queue.refile(call)
        call.program.ran_on(executor.executor_id)
        if not call.started:
            self._report_started(call, now, cached_tokens)

    def _report_started(self, call: Call, now: float, cached_tokens: int) -> None:
        call.started = True
        cached_prompt_tokens = min(cached_tokens, call.prompt_len)
        self._counters.cached_tokens += cached_prompt_tokens
        self._outbox.append(
            ReportStarted(
                frontend_id=call.spec.frontend_id,
                handle=call.spec.stream_handle,
                cached_tokens=cached_prompt_tokens,
                queued_s=now - call.arrived_s,
            )
        )

    def preempt(self, call: Call, now: float) -> None:
        """Takes a running call out of the batch; its KV is kept as long as nobody needs the memory more.
        Results in flight still count."""
        executor = _placed(call)
        _leave_columns(call)
        call_kv.leave(executor, call, self.config.kv_preempted)
        call.forget_kv()
        self._turn(call, Trigger.PREEMPT, now)
        executor.queue.refile(call)
        self._watch_starvation(call, now)
        call.preemptions += 1
        call.program.preemptions += 1
        self._counters.preemptions += 1

    # ── service ─────────────────────────────────────────────────────────────────────────────────────

    def charge(self, call: Call, step_ps: int, cost_ps: int, now: float) -> None:
        """Books a step that a live call took part in; when its quantum is used up it moves on.

        Args:
            step_ps: Picoseconds that the step took.
            cost_ps: Price of the tokens by which the step advanced the call; recomputation is not in it. A
                step that only recomputed uses up no quantum in either unit.
        """
        program = call.program
        call.service_ps += step_ps
        program.service_ps += step_ps
        call.cost_ps += cost_ps
        program.cost_ps += cost_ps
        level = call.level
        used_ps = cost_ps if self._policy.unit is ServiceUnit.COST or not cost_ps else step_ps
        if use_quantum(call, used_ps, self._policy):
            self._counters.demotions += call.level > level
            _placed(call).queue.to_tail(call)
            self._watch_starvation(call, now)

    def change_policy(self, config: CoreConfig, policy: Policy, now: float) -> None:
        """Gives every live call the level and a fresh quantum of another policy, and queues it anew. Nothing
        else of a call changes; who runs is for the next plans to say."""
        self.config = config
        self._policy = policy
        for executor in self._fleet:
            if executor.lane is not None:
                executor.lane.disband()
        for call in self._registry.all_live():
            call.level = policy.level_at_arrival(call)
            call.quantum_used_ps = 0
        self._fleet.use(policy)
        for call in self._registry.all_live():
            self.starvation_looks.drop(call.spec.call_id)
            if call.queue_key is not None:
                self._watch_starvation(call, now)

    def _watch_starvation(self, call: Call, now: float) -> None:
        beta = self.config.starvation_beta
        if beta is None or call.state is not CallState.QUEUED:
            return
        left_s = starves_in_s(call, beta, now, self._policy.unit)
        if left_s is not None:
            self.starvation_looks.set(call.spec.call_id, now + min(left_s, _STARVATION_LOOK_S))

    def look_at_starvation(self, call_id: CallId, now: float) -> None:
        """Promotes a waiting call that starves, else looks again when it may. Source: Autellix Alg. 1."""
        call = self._registry.live(call_id)
        beta = self.config.starvation_beta
        if call is None or beta is None or call.executor is None or call.state is not CallState.QUEUED:
            return
        if call in call.executor.gate:
            return
        left_s = starves_in_s(call, beta, now, self._policy.unit)
        if left_s is None:
            return
        if left_s > _STARVATION_SLACK_S:
            self._watch_starvation(call, now)
            return
        promote(call, now)
        call.executor.queue.refile(call)
        self._counters.promotions += 1

    # ── out ─────────────────────────────────────────────────────────────────────────────────────────

    def finish(self, call: Call, now: float, reason: FinishReason, stop_token_id: int | None = None) -> None:
        """Ends a call that is complete."""
        self._counters.calls_finished += 1
        self._end(call, Trigger.FINISH, now)
        self._tell_end(call, reason, stop_token_id=stop_token_id)

    def fail(self, call: Call, now: float, refusal: Refusal) -> None:
        """Ends a call that cannot go on."""
        self._counters.calls_failed += 1
        self._end(call, Trigger.FAIL, now)
        self._tell_end(call, FinishReason.ERROR, error=refusal)

    def cancel(self, call: Call, now: float, reason: CancelReason) -> None:
        """Ends a call on request: it is in no plan from here on. A stop string counts as a normal completion,
        the client's deadline as a failure."""
        if reason is CancelReason.DEADLINE:
            self.fail(call, now, deadline_exceeded(call))
        elif reason is CancelReason.STOP_STRING and call.state is not CallState.PREPARING:
            self.finish(call, now, FinishReason.STOP)
        else:
            self._counters.calls_cancelled += 1
            self._end(call, Trigger.CANCEL, now)
            self._tell_end(call, FinishReason.ABORT)

    def requeue(self, call: Call, now: float) -> None:
        """Takes a live call off its executor with all of its tokens; the caller dispatches it again."""
        _leave_columns(call)
        _placed(call).drop(call)
        self.starvation_looks.drop(call.spec.call_id)
        if call.state is not CallState.QUEUED:
            self._turn(call, Trigger.REQUEUE, now)

    def _end(self, call: Call, trigger: Trigger, now: float) -> None:
        _leave_columns(call)
        self._turn(call, trigger, now)
        if call.executor is None:
            self._fleet.unplaced.pop(call.spec.call_id, None)
        else:
            call.executor.drop(call)
        self.deadlines.drop(call.spec.call_id)
        self.starvation_looks.drop(call.spec.call_id)
        self._registry.mark_ended(call)
        program = call.program
        if call.path_parents:
            bring_up_to_date(program.live_calls.values())
        program.call_ended(call, now)
        if not program.live_calls:
            self.programs.became_quiet(program, now)

    def _tell_end(
        self,
        call: Call,
        reason: FinishReason,
        *,
        stop_token_id: int | None = None,
        error: Refusal | None = None,
    ) -> None:
        self._outbox.append(
            FinishCall(
                frontend_id=call.spec.frontend_id,
                handle=call.spec.stream_handle,
                reason=reason,
                stop_token_id=stop_token_id,
                error=error,
                output_tokens=call.output_len - len(call.spec.output_token_ids),
                service_s=call.service_s,
                waiting_s=call.waited_s,
                preemptions=call.preemptions,
            )
        )

    # ── the one place where a state changes ─────────────────────────────────────────────────────────

    def _turn(self, call: Call, trigger: Trigger, now: float) -> None:
        before, after = call.state, next_state(call.state, trigger)
        call.state = after
        call.waited_s = call.waiting_s(now)
        call.waiting_since_s = now if after in WAITING else None
        if after is CallState.RUNNING:
            self._registry.count_running(call, 1)
        elif before is CallState.RUNNING:
            self._registry.count_running(call, -1)


def _placed(call: Call) -> Executor:
    assert call.executor is not None, "the call is on no executor"
    return call.executor


def bring_up_to_date(calls: Iterable[Call]) -> None:
    """Makes the records of live calls say what they have used; steady rows do not book each step there."""
    for call in calls:
        if call.seat is not None:
            _placed(call).bring_up_to_date(call)


def _leave_columns(call: Call) -> None:
    """Brings the record of a call up to date that is about to leave the batch, and frees its seat."""
    executor = call.executor
    if executor is not None and executor.lane is not None and call.state is CallState.RUNNING:
        executor.lane.drop(call)
