"""The core between obedient executors and a frontend that writes everything down."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from scheduler_svc.core.config import CoreConfig, ServiceUnit
from scheduler_svc.core.core import Core
from scheduler_svc.core.effects import (
    AnnounceCall,
    CloseExecutor,
    Effect,
    EmitTokens,
    FinishCall,
    FinishReason,
    Plan,
    RefuseCall,
    ReportStarted,
    SendPlan,
)
from scheduler_svc.core.events import (
    CallAcknowledged,
    CallCancelled,
    CallPrepared,
    CallSpec,
    CallSubmitted,
    CancelReason,
    Event,
    ExecutorJoined,
    ExecutorLost,
    ExecutorSpec,
    PlanDue,
    ProgramOpened,
    TimePassed,
)
from scheduler_svc.core.ids import CallId, ExecutorId, FrontendId, ProgramId, StreamHandle, TenantId
from scheduler_svc.core.invariants import check
from tests.unit.scheduler_core.obedient_executor import VOCAB_SIZE, ObedientExecutor, expected_output

TENANT = TenantId("acme")
FRONTEND = FrontendId("frontend-1")
MODEL = "tiny"


def executor_spec(executor_id: str = "executor-1", **changes: Any) -> ExecutorSpec:
    """A small executor: blocks of 4 tokens, 4 seats."""
    values: dict[str, Any] = {
        "executor_id": ExecutorId(executor_id),
        "epoch": 1,
        "model": MODEL,
        "block_size": 4,
        "num_blocks": 65,
        "max_num_seqs": 4,
        "max_num_batched_tokens": 16,
        "max_model_len": 128,
        "vocab_size": VOCAB_SIZE,
        "max_plans_in_flight": 2,
    }
    return ExecutorSpec(**(values | changes))


class World:
    """Feeds the core, obeys its effects, checks its invariants after every event. Service is in seconds of
    steps unless a test says otherwise."""

    def __init__(self, *, executors: Sequence[ExecutorSpec] = (executor_spec(),), **config: Any) -> None:
        defaults = {"service_unit": ServiceUnit.SECONDS, "preemption_grace_s": 0.0}
        self.core = Core(CoreConfig(**(defaults | config)))
        self.now = 100.0
        self.executors: dict[ExecutorId, ObedientExecutor] = {}
        self.specs: dict[CallId, CallSpec] = {}
        self.call_of: dict[StreamHandle, CallId] = {}
        self.outputs: defaultdict[CallId, list[int]] = defaultdict(list)
        self.started: dict[CallId, ReportStarted] = {}
        self.finished: dict[CallId, FinishCall] = {}
        self.refused: dict[CallId, RefuseCall] = {}
        self.closed: list[CloseExecutor] = []
        self.to_prepare: list[CallPrepared] = []
        self.emits_in_event: list[EmitTokens] = []
        for spec in executors:
            self.join(spec)

    # ── events ──────────────────────────────────────────────────────────────────────────────────────

    def feed(self, event: Event) -> list[Effect]:
        effects = self.core.handle(event, self.now)
        self.emits_in_event = [effect for effect in effects if isinstance(effect, EmitTokens)]
        for effect in effects:
            self._obey(effect)
        check(self.core)
        return effects

    def join(self, spec: ExecutorSpec, step_s: float = 1.0) -> ObedientExecutor:
        executor = ObedientExecutor(spec, step_s)
        self._forget_preparations(spec.executor_id)
        self.executors[spec.executor_id] = executor
        self.feed(ExecutorJoined(executor=spec))
        return executor

    def lose(self, executor_id: str = "executor-1") -> None:
        executor = self.executors.pop(ExecutorId(executor_id))
        self._forget_preparations(executor.spec.executor_id)
        self.feed(ExecutorLost(executor_id=executor.spec.executor_id, epoch=executor.spec.epoch))

    def _forget_preparations(self, executor_id: ExecutorId) -> None:
        self.to_prepare = [item for item in self.to_prepare if item.executor_id != executor_id]

    def open(self, program_id: str, **changes: Any) -> ProgramId:
        self.feed(ProgramOpened(tenant=TENANT, program_id=ProgramId(program_id), **changes))
        return ProgramId(program_id)

    def submit(self, program_id: str, prompt: Sequence[int] | int = 3, **changes: Any) -> CallId:
        """Submits a call; an int for the prompt means that many tokens of its own."""
        number = len(self.specs) + 1
        if isinstance(prompt, int):
            prompt = [(number * 31 + i * 7) % VOCAB_SIZE for i in range(prompt)]
        values: dict[str, Any] = {
            "call_id": CallId(f"call-{number}"),
            "frontend_id": FRONTEND,
            "stream_handle": StreamHandle(number),
            "tenant": TENANT,
            "program_id": ProgramId(program_id),
            "model": MODEL,
            "prompt_token_ids": prompt,
            "max_tokens": 4,
        }
        spec = CallSpec(**(values | changes))
        self.specs[spec.call_id] = spec
        self.call_of[spec.stream_handle] = spec.call_id
        self.outputs[spec.call_id] = list(spec.output_token_ids)
        self.feed(CallSubmitted(call=spec))
        return spec.call_id

    def cancel(self, call_id: CallId, reason: CancelReason = CancelReason.CLIENT) -> None:
        self.feed(CallCancelled(call_id=call_id, reason=reason))

    def acknowledge(self, call_id: CallId) -> None:
        self.feed(CallAcknowledged(call_id=call_id))

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.feed(TimePassed())

    # ── running ─────────────────────────────────────────────────────────────────────────────────────

    def plan(self) -> None:
        self.feed(PlanDue())

    def deliver(self, executor_id: str = "executor-1") -> None:
        """Time passes for a step, and its result comes in."""
        executor = self.executors[ExecutorId(executor_id)]
        self.now += executor.results[0].step_s
        self.feed(executor.results.popleft())

    def turn(self) -> bool:
        """Plans; then every executor with a plan in flight finishes one. Returns whether there was any."""
        self.plan()
        for prepared in self.to_prepare:
            self.feed(prepared)
        had_calls_to_prepare = bool(self.to_prepare)
        self.to_prepare = []
        busy = [executor for executor in self.executors.values() if executor.results]
        self.now += max((executor.results[0].step_s for executor in busy), default=0.0)
        for executor in busy:
            self.feed(executor.results.popleft())
        return bool(busy) or had_calls_to_prepare

    def run(self, turns: int = 2000) -> None:
        """Runs until nothing is left to do."""
        for _ in range(turns):
            if not self.turn():
                return
        raise AssertionError(f"still busy after {turns} turns")

    def plans(self, executor_id: str = "executor-1") -> list[Plan]:
        return self.executors[ExecutorId(executor_id)].plans

    def batch(self, executor_id: str = "executor-1") -> list[CallId]:
        """Call ids of the newest plan, in batch order."""
        executor = self.core.fleet.get(ExecutorId(executor_id))
        assert executor is not None
        return [row.call.spec.call_id for row in executor.rows_of(executor.in_flight[-1]).values()]

    # ── effects ─────────────────────────────────────────────────────────────────────────────────────

    def _obey(self, effect: Effect) -> None:
        match effect:
            case AnnounceCall():
                self._announce(effect)
            case SendPlan():
                self.executors[effect.executor_id].execute(effect.plan)
            case CloseExecutor():
                self.closed.append(effect)
                self.executors.pop(effect.executor_id, None)
            case EmitTokens():
                self._emit(effect)
            case ReportStarted():
                call_id = self.call_of[effect.handle]
                assert call_id not in self.started, "started twice"
                self.started[call_id] = effect
            case FinishCall():
                self._finish(effect)
            case RefuseCall():
                self.refused[self.call_of[effect.handle]] = effect

    def _announce(self, effect: AnnounceCall) -> None:
        self.executors[effect.executor_id].announce(effect)
        if effect.call.needs_preparation:
            self.to_prepare.append(CallPrepared(executor_id=effect.executor_id, handle=effect.handle))

    def _emit(self, effect: EmitTokens) -> None:
        assert len(effect.handles) == len(effect.tokens) > 0
        for handle, token in zip(effect.handles, effect.tokens, strict=True):
            call_id = self.call_of[handle]
            assert call_id in self.started, "a token before the start"
            assert call_id not in self.finished, "a token after the end"
            self.outputs[call_id].append(token)

    def _finish(self, effect: FinishCall) -> None:
        call_id = self.call_of[effect.handle]
        assert call_id not in self.finished, "finished twice"
        assert (effect.error is not None) == (effect.reason is FinishReason.ERROR)
        self.finished[call_id] = effect


def small_world(*, quantum_s: float = 1000.0, **changes: object) -> World:
    """One executor in lockstep, so that each plan is seen with the result of the one before; by default all
    calls stay in the first level."""
    spec = executor_spec(**({"max_plans_in_flight": 1} | changes))
    return World(executors=[spec], first_quantum_s=quantum_s)


def assert_right_outputs(world: World, but: Sequence[CallId] = ()) -> None:
    for call_id, spec in world.specs.items():
        assert call_id in but or world.outputs[call_id] == expected_output(spec), call_id
