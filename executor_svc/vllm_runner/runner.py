"""Runs plans on vLLM's Executor: check, translate, step, read.

    plan -> CallBook.compose -> Translator -> swap -> execute_model -> bitmask -> sample_tokens -> results

Two ways to drive the workers. A synchronous worker (model runner V1: all of CPU) does the whole step inside
`execute`; plans sent ahead wait in the caller's queue. An asynchronous one (V2 under async scheduling)
returns from `execute` while the device works, so the next plan is put together meanwhile; its `Pending` waits
for the tokens on the result thread. There only a batch with grammars waits in `execute`: its bitmask needs
the tokens before.

Copies between the tiers are done by the workers (`host_pool`) before the step that comes with them, if any. A
synchronous worker has finished them when the forward pass starts; an asynchronous one orders them on the
device, and its copy seconds are taken off the step's when both are known.

Calls are touched by the step thread (compose, translate) and, in the asynchronous case, by the result thread
(apply): `_calls_lock` guards them. Steps are resolved in order, by whoever comes first.

The asynchronous path needs a GPU with Triton; it has been run only against the stand-in of its tests.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from threading import Lock, RLock

from vllm.platforms import current_platform
from vllm.sampling_params import SamplingType
from vllm.v1.core.sched.output import GrammarOutput, SchedulerOutput
from vllm.v1.outputs import ModelRunnerOutput

from executor_svc.runner import AnnouncedCall, Pending, PlanViolation, RunnerInfo, StepPlan, StepResult
from executor_svc.vllm_runner.admission import admit
from executor_svc.vllm_runner.calls import Batch, Call, CallBook, Limits
from executor_svc.vllm_runner.grammars import Grammars
from executor_svc.vllm_runner.results import StepCost, apply_output
from executor_svc.vllm_runner.startup import Engine
from executor_svc.vllm_runner.translate import Translation, Translator, TranslatorV1, TranslatorV2


class _Done:
    """A step that ended before `execute` returned."""

    def __init__(self, result: StepResult) -> None:
        self._result = result

    def result(self) -> StepResult:
        return self._result


class _Running:
    """A step the device may still be working on.

    Args:
        copies: answers to autellix_swap and autellix_swap_s; None when the step copies nothing.
        apply: makes the result of the model's output, the step's seconds and those of its copies.
    """

    def __init__(
        self,
        before: "_Running | None",
        tokens: Future[ModelRunnerOutput],
        copies: tuple[Future[object], Future[list[float]]] | None,
        apply: Callable[[ModelRunnerOutput, float, float], StepResult],
    ) -> None:
        self._before = before
        self._tokens = tokens
        self._copies = copies
        self._apply = apply
        self._started = time.perf_counter()
        self._ended = 0.0
        self._resolved: StepResult | None = None
        self._lock = Lock()

    def result(self) -> StepResult:
        with self._lock:
            if self._resolved is None:
                self._resolved = self._resolve()
            return self._resolved

    def _resolve(self) -> StepResult:
        started = self._started
        if self._before is not None:
            self._before.result()
            # The device was busy with the step before: this one began when that ended.
            started = max(started, self._before._ended)
            self._before = None
        output = self._tokens.result()
        self._ended = time.perf_counter()
        swap_s = 0.0
        if self._copies is not None:
            done, seconds = self._copies
            done.result()  # raises what went wrong on a worker
            swap_s = max(seconds.result())
        return self._apply(output, max(0.0, self._ended - started - swap_s), swap_s)


class VllmRunner:
    """The Runner on vLLM; see executor_svc/runner.py for the contract."""

    def __init__(self, engine: Engine, info: RunnerInfo) -> None:
        self._engine = engine
        self._info = info
        self._grammars = Grammars(engine.vllm_config)
        self._translator: Translator = TranslatorV2() if engine.uses_v2 else TranslatorV1()
        self._book = self._new_book()
        self._calls_lock = RLock()
        self._last: _Running | None = None
        self._epoch = 0

    @property
    def info(self) -> RunnerInfo:
        """See Runner."""
        return self._info

    def announce(self, call: AnnouncedCall) -> None:
        """See Runner. Raises: PlanViolation when the handle is in use."""
        config = self._engine.vllm_config
        backend = config.structured_outputs_config.backend
        admitted = admit(call, f"{self._epoch}.{call.handle}", config.model_config, backend)
        with self._calls_lock:
            self._book.add(admitted)

    def prepare(self, handle: int) -> str:
        """See Runner. A call that was released meanwhile is ready for all we care."""
        call = self._book.calls.get(handle)
        if call is None:
            return ""
        error = call.failure or self._grammars.prepare(call)
        call.failure = error
        return error

    def execute(self, plan: StepPlan) -> Pending:
        """See Runner."""
        with self._calls_lock:
            batch = self._compose(plan)
            translation = self._translator.translate(batch)
            for row in batch.rows:
                row.call.in_worker = True
        if self._engine.uses_v2:
            return self._launch(batch, translation)
        return _Done(self._step(batch, translation))

    def reset(self) -> None:
        """See Runner. Blocks need no clearing: a plan says which tokens a block holds."""
        finished = [call.req_id for call in self._book.calls.values() if call.in_worker]
        self._last = None
        self._engine.executor.collective_rpc("autellix_abandon_step")
        output = SchedulerOutput.make_empty()
        output.finished_req_ids = set(finished)
        self._engine.executor.execute_model(output)
        self._book = self._new_book()
        self._epoch += 1

    def close(self) -> None:
        """See Runner."""
        self._grammars.close()
        self._engine.executor.shutdown()

    def _new_book(self) -> CallBook:
        info = self._info
        return CallBook(
            Limits(
                num_blocks=info.num_blocks,
                block_size=info.block_size,
                max_num_seqs=info.max_num_seqs,
                max_num_batched_tokens=info.max_num_batched_tokens,
                max_model_len=info.max_model_len,
                host_blocks=info.host_blocks,
            )
        )

    def _compose(self, plan: StepPlan) -> Batch:
        """Plans must not name a call whose grammar is still compiling: that is a violation, not a failure."""
        for handle in plan.handles:
            call = self._book.calls.get(handle)
            if call and call.grammar and not call.grammar_ready and not call.failure:
                raise PlanViolation(f"handle {handle} is planned before its grammar is ready")
        return self._book.compose(plan)

    def _step(self, batch: Batch, translation: Translation) -> StepResult:
        """A whole step on a synchronous worker."""
        executor = self._engine.executor
        if translation.adopted:
            executor.collective_rpc("autellix_adopt", args=(translation.adopted,))
        swap_s = self._swap(batch)
        started = time.perf_counter()
        output = executor.execute_model(translation.output)
        if output is None:
            output = self._sample(batch)
        step_s = time.perf_counter() - started
        return self._apply(batch, output, step_s, swap_s)

    def _swap(self, batch: Batch) -> float:
        """Copies blocks between the tiers; returns the seconds that the slowest rank took."""
        if not batch.copies:
            return 0.0
        executor = self._engine.executor
        executor.collective_rpc("autellix_swap", args=(batch.swap_out, batch.swap_in))
        return max(executor.collective_rpc("autellix_swap_s"))

    def _sample(self, batch: Batch) -> ModelRunnerOutput:
        executor = self._engine.executor
        bitmask = self._bitmask(batch)
        if not _draws_too_early(batch):
            return executor.sample_tokens(bitmask)
        executor.collective_rpc("autellix_hold_generators")
        try:
            return executor.sample_tokens(bitmask)
        finally:
            executor.collective_rpc("autellix_return_generators")

    def _launch(self, batch: Batch, translation: Translation) -> Pending:
        """Starts a step on an asynchronous worker. Waits for none of the workers' answers: the result thread
        may be reading them."""
        executor = self._engine.executor
        copies = None
        if batch.copies:
            lists = (batch.swap_out, batch.swap_in)
            done = executor.collective_rpc("autellix_swap", args=lists, non_block=True)
        tokens = executor.execute_model(translation.output, non_block=True)
        if translation.output.has_structured_output_requests and self._last is not None:
            self._last.result()
        if batch.rows:
            tokens = executor.sample_tokens(self._bitmask(batch), non_block=True)
        if batch.copies:  # asked after the step was launched: whoever waits for copies holds up no device
            copies = done, executor.collective_rpc("autellix_swap_s", non_block=True)
        self._last = _Running(self._last, tokens, copies, partial(self._apply, batch))
        return self._last

    def _apply(self, batch: Batch, output: ModelRunnerOutput, step_s: float, swap_s: float) -> StepResult:
        cost = StepCost(step_s if batch.rows else 0.0, swap_s, batch.copies * self._info.block_bytes)
        with self._calls_lock:
            return apply_output(batch, output, self._grammars, cost)

    def _bitmask(self, batch: Batch) -> GrammarOutput | None:
        return self._grammars.bitmask([row.call for row in batch.rows if row.samples and row.call.grammar])


def _draws_too_early(batch: Batch) -> bool:
    """Whether a seeded row does not sample in this step, on a platform where its draw cannot be undone."""
    return current_platform.is_cpu() and any(not row.samples and _is_seeded(row.call) for row in batch.rows)


def _is_seeded(call: Call) -> bool:
    return call.params is not None and call.params.sampling_type == SamplingType.RANDOM_SEED
