"""Our side of the core bench: one scheduler step, from the bytes of a result to those of the next plan and of
the frontend's outputs. A worker: see `bench.core_worker`.

    decode    result bytes -> StepCompleted
    result    core.handle(StepCompleted)
    plan      core.handle(PlanDue)
    encode    announcements and plan -> bytes
    relay     tokens, starts and ends of calls -> StepOutputs bytes

Between two steps, and timed as figures of their own: new calls are submitted, ended ones acknowledged. The
executor's part is played by `bench.core_responder`, outside of all times, one plan ahead.
"""

import gc
from array import array
from collections.abc import Callable, Iterator, Sequence
from time import perf_counter_ns
from typing import Any

from bench.core_load import (
    BLOCK_SIZE,
    EOS_TOKEN_ID,
    MAX_MODEL_LEN,
    TOKENS_PER_STEP_MAX,
    VOCAB_SIZE,
    Load,
    prompt,
)
from bench.core_responder import STEP_S, Responder
from bench.core_worker import Samples, serve
from protos.autellix.executor.v1 import executor_pb2
from scheduler_svc.core.config import CoreConfig
from scheduler_svc.core.core import Core
from scheduler_svc.core.effects import AnnounceCall, Effect, EmitTokens, FinishCall, ReportStarted, SendPlan
from scheduler_svc.core.events import (
    CallAcknowledged,
    CallSpec,
    CallSubmitted,
    Event,
    ExecutorJoined,
    ExecutorSpec,
    PlanDue,
    ProgramOpened,
)
from scheduler_svc.core.ids import CallId, ExecutorId, FrontendId, ProgramId, StreamHandle, TenantId
from scheduler_svc.shell import executor_wire, frontend_wire
from scheduler_svc.shell.output_columns import OutputColumns
from svc_runtime.block_hashes import hash_prompt
from svc_runtime.gc_control import THRESHOLDS

MODEL = "bench"
TENANT = TenantId("bench")
EXECUTOR = ExecutorId("executor-1")
FRONTEND = FrontendId("frontend-1")

WARM_UP_STEPS = 60
PROGRAMS_PER_ROW = 4
"""Programs for each seat, taking turns: a call that starts is not of the program that just left the seat."""
QUANTUM_S = 3600.0
"""Nobody uses a quantum up: a demotion makes a step a busy one, and steady steps are to be steady."""

PIECES = ("decode", "result", "plan", "encode", "relay", "total", "submit", "acknowledge")
Pieces = dict[str, list[float]]


class Side:
    """The core under one load, with what surrounds it in the scheduler process."""

    def __init__(self, load: Load) -> None:
        self._load = load
        live = load.rows * PROGRAMS_PER_ROW + load.waiting
        self._core = Core(
            CoreConfig(
                first_quantum_s=QUANTUM_S,
                open_programs_max=live + load.programs + 1,
                live_calls_max=live + load.rows + 1,
            )
        )
        self._responder = Responder()
        self._columns = OutputColumns()
        self._collect: dict[type, Callable[[Any], None]] = {
            EmitTokens: self._columns.emit,
            FinishCall: self._columns.finished,
            ReportStarted: self._columns.started,
        }
        """By the effect's type, as the scheduler's router does it."""
        self._max_tokens = load.max_tokens()
        self._programs = live
        self._submitted = 0
        self._ended: list[int] = []
        """Stream handles of calls that ended in the last step."""
        self._now = 0.0
        self._fill()

    def _handle(self, event: Event) -> list[Effect]:
        return self._core.handle(event, self._now)

    def _fill(self) -> None:
        self._handle(ExecutorJoined(executor=_executor(self._load)))
        for number in range(self._programs + self._load.programs):
            self._handle(ProgramOpened(tenant=TENANT, program_id=ProgramId(f"program-{number}")))
        for _ in range(self._load.rows + self._load.waiting):
            self._submit()
        for _ in range(2):
            self._deliver(self._handle(PlanDue()))

    def _submit(self) -> None:
        self._handle(CallSubmitted(call=self._next_call()))

    def _next_call(self) -> CallSpec:
        number = self._submitted
        tokens = array("i", prompt(number))  # as the door hands it over
        self._submitted += 1
        return CallSpec(
            call_id=CallId(f"call-{number}"),
            frontend_id=FRONTEND,
            stream_handle=StreamHandle(number),
            tenant=TENANT,
            program_id=ProgramId(f"program-{number % self._programs}"),
            model=MODEL,
            prompt_token_ids=tokens,
            max_tokens=next(self._max_tokens),
            eos_token_id=EOS_TOKEN_ID,
            prompt_block_hashes=hash_prompt(TENANT, "", tokens, BLOCK_SIZE),
            hash_block_size=BLOCK_SIZE,
        )

    def _deliver(self, effects: Sequence[Effect]) -> None:
        for packed in _encode(effects):
            self._responder.receive(packed)

    # ── one step ────────────────────────────────────────────────────────────────────────────────────

    def measure(self, steps: int) -> Samples:
        """Microseconds of each piece at each of `steps` steps."""
        pieces: Pieces = {name: [] for name in PIECES}
        for _ in range(steps):
            self._between_steps(pieces)
            self._step(pieces)
        return {name: values for name, values in pieces.items() if values}

    def _between_steps(self, pieces: Pieces) -> None:
        """Acknowledges what ended, and submits as many calls as start in the coming step."""
        calls = [CallSubmitted(call=self._next_call()) for _ in range(len(self._ended))]
        ended = [CallAcknowledged(call_id=CallId(f"call-{number}")) for number in self._ended]
        for name, events in (("submit", calls), ("acknowledge", ended)):
            for event in events:
                started = perf_counter_ns()
                self._handle(event)
                pieces[name].append((perf_counter_ns() - started) / 1e3)

    def _step(self, pieces: Pieces) -> None:
        packed_result = self._responder.results.popleft()
        self._now += STEP_S
        at = [perf_counter_ns()]
        request = executor_pb2.AttachRequest.FromString(packed_result)
        completed = executor_wire.step_completed(EXECUTOR, request.result)
        at.append(perf_counter_ns())
        effects = self._handle(completed)
        at.append(perf_counter_ns())
        effects += self._handle(PlanDue())
        at.append(perf_counter_ns())
        messages = list(_encode(effects))
        at.append(perf_counter_ns())
        self._relay(effects)
        at.append(perf_counter_ns())
        for name, before, after in zip(pieces, at, at[1:], strict=False):
            pieces[name].append((after - before) / 1e3)
        pieces["total"].append((at[-1] - at[0]) / 1e3)
        for packed in messages:
            self._responder.receive(packed)
        self._ended = [effect.handle for effect in effects if isinstance(effect, FinishCall)]
        self._check(completed.tokens, effects)

    def _relay(self, effects: Sequence[Effect]) -> bytes:
        for effect in effects:
            if (collect := self._collect.get(type(effect))) is not None:
                collect(effect)
        status = frontend_wire.engine_status(self._core.engine_status(FRONTEND))
        return self._columns.take(status).SerializeToString()

    def _check(self, tokens: Sequence[int], effects: Sequence[Effect]) -> None:
        """A step that does not do what the load says would be measured for nothing."""
        emitted = sum(len(effect.tokens) for effect in effects if isinstance(effect, EmitTokens))
        assert emitted == len(tokens) >= self._load.rows - 3 * self._load.churn_rows, len(tokens)
        assert sum(isinstance(effect, SendPlan) for effect in effects) == 1
        assert len(self._ended) <= self._load.churn_rows


def _encode(effects: Sequence[Effect]) -> Iterator[bytes]:
    """Messages to the executor in order, as its session sends them: announcements, then the plan."""
    announcements: list[AnnounceCall] = []
    plans: list[SendPlan] = []
    for effect in effects:
        if type(effect) is AnnounceCall:
            announcements.append(effect)
        elif type(effect) is SendPlan:
            plans.append(effect)
    if announcements:
        yield executor_wire.calls_announced(announcements).SerializeToString()
    for sent in plans:
        yield executor_wire.plan_response(sent.plan).SerializeToString()


def _executor(load: Load) -> ExecutorSpec:
    return ExecutorSpec(
        executor_id=EXECUTOR,
        epoch=1,
        model=MODEL,
        block_size=BLOCK_SIZE,
        num_blocks=load.blocks,
        max_num_seqs=load.rows,
        max_num_batched_tokens=TOKENS_PER_STEP_MAX,
        max_model_len=MAX_MODEL_LEN,
        vocab_size=VOCAB_SIZE,
        max_plans_in_flight=2,
    )


def set_up(load: Load) -> Callable[[int], Samples]:
    """Fills the core and warms it up; the garbage collector is set as in the service."""
    side = Side(load)
    side.measure(WARM_UP_STEPS)
    gc.set_threshold(*THRESHOLDS)
    gc.collect()
    gc.freeze()
    return side.measure


if __name__ == "__main__":
    serve(set_up)
