"""vLLM's view of the scheduler: an `EngineCoreClient` whose engine core is on the other side of a
`SchedulerLink`.

Theory of operation. AsyncLLM hands over one `EngineCoreRequest` a sample and pulls `EngineCoreOutputs`;
both are translated call by call (`call_codec`) and named by vLLM's internal request id, which is the link's
tag. Which program a request belongs to is asked of `call_sources`. A bounded queue lies between the link
and AsyncLLM's output loop: while the loop is behind, the link reads nothing and the scheduler is held back.

A request *arrives* from the moment AsyncLLM hands it over until it is submitted: its program is opened and
its prompt hashed meanwhile. One that is dropped while it arrives is not submitted at all.

Failures never pass through that queue. vLLM ends the whole HTTP process when an engine core dies, and has
no typed error for a single request; so a refused or lost call is reported at once to `fail_request`, by
which `llm.ProgramLLM` raises an exception in the one generator that waits for it.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace

import structlog
from vllm.sampling_params import SamplingParams
from vllm.tasks import SupportedTask
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest
from vllm.v1.engine.core_client import EngineCoreClient
from vllm.v1.outputs import LogprobsLists, LogprobsTensors

from frontend_svc.call_codec import (
    FINISH_REASONS,
    logprobs_of,
    prefill_stats,
    scheduler_stats,
    start_events,
    submit_of,
)
from frontend_svc.call_context import CallContext, CallRegistry, CancelCause
from frontend_svc.call_table import CallDelta, LiveCall, StepDelta
from frontend_svc.errors import Refused, refusal
from frontend_svc.prompt_hashes import prompt_block_hashes
from frontend_svc.request_scope import RequestScope, current_scope
from frontend_svc.scheduler_link import SchedulerLink
from frontend_svc.vllm_errors import CallRefused
from protos.autellix.scheduler.v1 import scheduler_pb2 as pb

OUTPUTS_QUEUED_MAX = 64
"""Scheduler messages that may wait for AsyncLLM's output loop."""
CANCEL_REASONS = {
    CancelCause.CLIENT: pb.CANCEL_REASON_CLIENT,
    CancelCause.DEADLINE: pb.CANCEL_REASON_DEADLINE,
}

log = structlog.get_logger(__name__)

FailRequest = Callable[[str, pb.Refusal], None]
"""(request id, why): ends one request of AsyncLLM with a typed error."""


@dataclass(slots=True)
class _Request:
    """One live engine-core request."""

    call: LiveCall
    context: CallContext
    scope: RequestScope | None
    prompt_tokens: int
    params: SamplingParams
    started: tuple[pb.CallStarted, float] | None = None
    """How it started and when we heard of it (monotonic); reported with the first token."""
    arrived: float = field(default_factory=time.monotonic)


class GrpcEngineCoreClient(EngineCoreClient):
    """The engine core of this frontend's AsyncLLM.

    Args:
        model: name under which calls are submitted.
        calls: contexts of calls that did not come over HTTP.
        on_failure: told the reason of every call that was refused or lost.

    `link` is attached afterwards, since the link wants its listener first.
    """

    def __init__(
        self, *, model: str, calls: CallRegistry, on_failure: Callable[[str], None] = lambda reason: None
    ) -> None:
        self.resources = SimpleNamespace(engine_dead=False)
        """AsyncLLM reads `engine_dead`; ours never is: a lost scheduler comes back."""
        self.engine_ranks_managed = [0]
        self.link: SchedulerLink
        self.fail_request: FailRequest
        self._model = model
        self._contexts = calls
        self._on_failure = on_failure
        self._requests: dict[str, _Request] = {}
        self._arriving: set[str] = set()
        """Ids of requests that are not submitted yet, and still wanted."""
        self._outputs: asyncio.Queue[EngineCoreOutputs] = asyncio.Queue(OUTPUTS_QUEUED_MAX)

    # ── what AsyncLLM calls ─────────────────────────────────────────────────────────────────────────

    async def get_supported_tasks_async(self) -> tuple[SupportedTask, ...]:
        """Text generation only."""
        return ("generate",)

    async def add_request_async(self, request: EngineCoreRequest) -> None:
        """Submit one sample of a request.

        Raises:
            CallRefused: at the door, or because its program cannot be opened.
        """
        scope = current_scope.get()
        self._arriving.add(request.request_id)
        try:
            await self._submit(request, scope)
        except Refused as error:
            if scope is not None:
                scope.refuse(error.refusal)
            raise CallRefused(error.refusal) from error
        finally:
            self._arriving.discard(request.request_id)

    async def _submit(self, request: EngineCoreRequest, scope: RequestScope | None) -> None:
        context = self._contexts.get(request.external_req_id or request.request_id)
        if context is None:
            context = await _scoped(scope).next_call()
        submit = submit_of(request, context, model=self._model)
        await self._hash_prompt(submit, request.prompt_token_ids or ())
        if request.request_id not in self._arriving:
            log.debug("call_dropped_before_submission", call_id=context.call_id)
            return
        call = self.link.submit(submit, request.request_id)
        prompt_tokens = len(request.prompt_token_ids or ())
        self._requests[request.request_id] = _Request(
            call, context, scope, prompt_tokens, request.sampling_params
        )
        log.debug(
            "call_submitted",
            call_id=context.call_id,
            program_id=context.program_id,
            prompt_tokens=prompt_tokens,
            max_tokens=call.submit.max_tokens,
        )

    async def _hash_prompt(self, submit: pb.Submit, prompt_token_ids: Sequence[int]) -> None:
        model = self.link.models.get(self._model)
        if model is None:
            return
        submit.hash_block_size = model.block_size
        submit.prompt_block_hashes = await prompt_block_hashes(
            submit.tenant, submit.cache_salt, prompt_token_ids, model.block_size
        )

    async def get_output_async(self) -> EngineCoreOutputs:
        """The outputs of the next scheduler message that has any. Never raises."""
        return await self._outputs.get()

    async def abort_requests_async(self, request_ids: list[str]) -> None:
        """Requests that are complete by a stop string. Other causes come by `cancel`."""
        self._drop(request_ids, lambda _: pb.CANCEL_REASON_STOP_STRING)

    async def reset_mm_cache_async(self) -> None:
        """There is no multi-modal cache."""

    def dp_engines_running(self) -> bool:
        """Data parallelism is the scheduler's."""
        return False

    def shutdown(self, timeout: float | None = None) -> None:
        """Nothing: the link is closed by whoever made it."""

    # ── what ProgramLLM calls ───────────────────────────────────────────────────────────────────────

    def cancel(self, request_ids: Sequence[str]) -> None:
        """Stop requests whose client has gone or whose deadline has passed; unknown ones are ignored."""
        self._drop(request_ids, lambda context: CANCEL_REASONS[context.cancel_cause()])

    def request_ids_of(self, call_id: str) -> list[str]:
        """The live request with that call id, if there is one."""
        return [rid for rid, request in self._requests.items() if request.context.call_id == call_id]

    def _drop(self, request_ids: Sequence[str], reason: Callable[[CallContext], pb.CancelReason]) -> None:
        for request_id in request_ids:
            self._arriving.discard(request_id)
            request = self._requests.pop(request_id, None)
            if request is not None:
                why = reason(request.context)
                self.link.cancel([request.call], why)
                _log_end(request, pb.CancelReason.Name(why).removeprefix("CANCEL_REASON_").lower())

    # ── what the link calls (CallListener) ──────────────────────────────────────────────────────────

    async def on_step(self, step: StepDelta) -> None:
        """Translate one scheduler message for AsyncLLM; waits while its queue is full."""
        outputs = [output for delta in step.calls if (output := self._output(delta)) is not None]
        if not outputs and step.status is None:
            return
        stats = scheduler_stats(step.status) if step.status is not None else None
        await self._outputs.put(EngineCoreOutputs(outputs=outputs, scheduler_stats=stats))

    def on_failed(self, call: LiveCall, why: pb.Refusal) -> None:
        """A call was refused or lost."""
        request = self._requests.pop(call.tag, None)
        if request is None:
            return
        log.warning(
            "call_failed",
            call_id=request.context.call_id,
            program_id=request.context.program_id,
            reason=why.reason,
            message=why.message,
        )
        request.context.refusal = why
        if request.scope is not None:
            request.scope.refuse(why)
        self._on_failure(why.reason)
        self.fail_request(call.tag, why)

    def _output(self, delta: CallDelta) -> EngineCoreOutput | None:
        request = self._requests.get(delta.call.tag)
        if request is None:
            return None
        if delta.started is not None:
            request.started = (delta.started, time.monotonic())
        if delta.finished is not None and delta.finished.reason not in FINISH_REASONS:
            self.on_failed(delta.call, delta.finished.error)
            return None
        if not delta.token_ids and delta.finished is None:
            return None
        try:
            output = _engine_output(delta, request)
        except ValueError as error:
            self.link.cancel([delta.call], pb.CANCEL_REASON_CLIENT)
            self.on_failed(
                delta.call, refusal("EXECUTOR_FAILED", f"the executor's answer is broken: {error}")
            )
            return None
        if request.scope is not None:
            request.scope.answered = True
        if delta.finished is not None:
            del self._requests[delta.call.tag]
            _log_end(request, str(output.finish_reason), delta.finished)
        return output


def _engine_output(delta: CallDelta, request: _Request) -> EngineCoreOutput:
    """Raises ValueError for logprobs that are not what was asked for."""
    sampled, prompt = _logprobs(delta, request)
    output = EngineCoreOutput(
        request_id=delta.call.tag,
        new_token_ids=delta.token_ids,
        new_logprobs=sampled,
        new_prompt_logprobs_tensors=prompt,
    )
    if request.started is not None:
        started, heard_at = request.started
        output.prefill_stats = prefill_stats(request.prompt_tokens, started.cached_tokens)
        output.events = start_events(started.queued_s, heard_at)
        request.started = None
    if delta.finished is not None:
        output.finish_reason = FINISH_REASONS[delta.finished.reason]
        if delta.finished.HasField("stop_token_id"):
            output.stop_reason = delta.finished.stop_token_id
    return output


def _logprobs(delta: CallDelta, request: _Request) -> tuple[LogprobsLists | None, LogprobsTensors | None]:
    """The delta's logprobs. Any that nobody asked for would end vLLM's output loop and so the process."""
    sampled, prompt = logprobs_of(delta.payloads, tokens=len(delta.token_ids))
    first = len(request.call.token_ids) == len(delta.token_ids)
    wants_prompt = request.params.prompt_logprobs is not None and first and request.prompt_tokens > 1
    if delta.token_ids:
        _agree("tokens", sampled is not None, request.params.logprobs is not None)
    _agree("the prompt", prompt is not None, wants_prompt)
    return sampled, prompt


def _agree(what: str, there: bool, wanted: bool) -> None:
    if there != wanted:
        raise ValueError(f"logprobs of {what} {'are missing' if wanted else 'that nobody asked for'}")


def _log_end(request: _Request, reason: str, finished: pb.CallFinished | None = None) -> None:
    """The one canonical line of a call; `finished` is the scheduler's word, None when we ended it."""
    finished = finished or pb.CallFinished()
    context, call = request.context, request.call
    log.info(
        "call_finished",
        call_id=context.call_id,
        program_id=context.program_id,
        tenant=context.tenant,
        reason=reason,
        prompt_tokens=request.prompt_tokens,
        tokens=len(call.token_ids),
        service_s=round(finished.service_s, 6),
        waiting_s=round(finished.waiting_s, 6),
        preemptions=finished.preemptions,
        duration_s=round(time.monotonic() - request.arrived, 6),
    )


def _scoped(scope: RequestScope | None) -> RequestScope:
    assert scope is not None, "a call came through a door that resolves no program"
    return scope
