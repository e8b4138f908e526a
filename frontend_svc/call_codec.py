"""vLLM's engine-core messages <-> scheduler/v1 messages, call by call. No I/O, no state.

What the protocol cannot carry is refused here with the name of the request field: the one place that knows
both sides. `submit_of` sends typed fields only for what the scheduler needs; everything else of
SamplingParams travels as opaque bytes (`params_codec`).
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from google.protobuf.message import DecodeError
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreEvent, EngineCoreEventType, EngineCoreRequest, FinishReason
from vllm.v1.metrics.stats import PrefillStats, SchedulerStats
from vllm.v1.outputs import LogprobsLists, LogprobsTensors

from frontend_svc.call_context import CallContext
from frontend_svc.errors import Refused, refusal
from frontend_svc.params_codec import PARAMS_FORMAT, encode_params
from protos.autellix.executor.v1 import executor_pb2
from protos.autellix.scheduler.v1 import scheduler_pb2 as pb
from svc_runtime.columns import pack_i32

FINISH_REASONS: dict[int, FinishReason] = {
    pb.FINISH_REASON_STOP: FinishReason.STOP,
    pb.FINISH_REASON_LENGTH: FinishReason.LENGTH,
    pb.FINISH_REASON_ABORT: FinishReason.ABORT,
}
"""FINISH_REASON_ERROR is missing: such a call fails with its refusal."""


def _extra(request: EngineCoreRequest, name: str) -> Any:
    params = request.sampling_params
    return params and (params.extra_args or {}).get(name)


_UNSUPPORTED: Sequence[tuple[str, Callable[[EngineCoreRequest], Any]]] = (
    ("pooling_params", lambda r: r.pooling_params),
    ("multi_modal_data", lambda r: r.mm_features),
    ("lora_request", lambda r: r.lora_request),
    ("prompt_embeds", lambda r: r.prompt_embeds is not None),
    ("resumable", lambda r: r.resumable),
    ("kv_transfer_params", lambda r: _extra(r, "kv_transfer_params")),
    ("repetition_detection", lambda r: r.sampling_params.repetition_detection),
    ("prompt_logprob_token_ids", lambda r: r.sampling_params.prompt_logprob_token_ids is not None),
    ("thinking_token_budget", lambda r: r.sampling_params.thinking_token_budget is not None),
)
"""(field, whether the request uses it), in the order in which they are looked at."""


def submit_of(request: EngineCoreRequest, context: CallContext, *, model: str) -> pb.Submit:
    """The call as the scheduler takes it; its handle is given later.

    Raises:
        Refused: the request uses something that cannot be carried (PARAMETER_INVALID, naming it).
    """
    for field, used in _UNSUPPORTED:
        if used(request):
            message = f"{field} is not supported by this server"
            raise Refused(refusal("PARAMETER_INVALID", message, field=field, limit="not supported"))
    params = request.sampling_params
    assert isinstance(params, SamplingParams)
    assert request.prompt_token_ids is not None
    return pb.Submit(
        call_id=context.call_id,
        tenant=context.tenant,
        program_id=context.program_id,
        thread_id=context.thread_id,
        parent_call_ids=context.parent_call_ids,
        model=model,
        prompt_token_ids=pack_i32(request.prompt_token_ids),
        max_tokens=params.max_tokens,
        min_tokens=params.min_tokens,
        stop_token_ids=pack_i32(params.stop_token_ids or ()),
        eos_token_id=params.eos_token_id,
        params=encode_params(request),
        params_format=PARAMS_FORMAT,
        needs_preparation=params.structured_outputs is not None,
        skip_reading_prefix_cache=bool(params.skip_reading_prefix_cache),
        cache_salt=request.cache_salt or "",
        deadline_s=context.remaining_s(),
    )


def prefill_stats(prompt_tokens: int, cached_tokens: int) -> PrefillStats:
    """What vLLM's usage and metrics want to know of a prefill."""
    stats = PrefillStats()
    stats.set(prompt_tokens, cached_tokens, 0)
    return stats


def start_events(queued_s: float, started_at: float) -> list[EngineCoreEvent]:
    """Queueing as vLLM's metrics know it.

    Args:
        started_at: `time.monotonic()` of this process; other processes' clocks mean nothing here.
    """
    return [
        EngineCoreEvent(EngineCoreEventType.QUEUED, started_at - queued_s),
        EngineCoreEvent(EngineCoreEventType.SCHEDULED, started_at),
    ]


def scheduler_stats(status: pb.EngineStatus) -> SchedulerStats:
    """The engine's gauges for vLLM's metrics."""
    return SchedulerStats(
        num_running_reqs=status.running, num_waiting_reqs=status.waiting, kv_cache_usage=status.kv_usage
    )


def logprobs_of(
    payloads: Sequence[bytes], *, tokens: int
) -> tuple[LogprobsLists | None, LogprobsTensors | None]:
    """The logprobs of one call's new tokens, and of its prompt.

    Args:
        payloads: serialised `autellix.executor.v1.Logprobs`, in token order.
        tokens: how many new tokens there are.

    Returns: sampled, shape (tokens, width); prompt, shape (positions, width); None where there are none.

    Raises:
        ValueError: they cannot be read, or are not one row a token. vLLM would end the whole process on that.
    """
    try:
        messages = [executor_pb2.Logprobs.FromString(payload) for payload in payloads]
    except DecodeError as error:
        raise ValueError("logprobs cannot be decoded") from error
    sampled = _tables([m.sampled for m in messages if m.HasField("sampled")])
    prompt = _tables([m.prompt for m in messages if m.HasField("prompt")])
    if sampled is not None and len(sampled[2]) != tokens:
        raise ValueError(f"logprobs of {len(sampled[2])} tokens for {tokens} tokens")
    return (
        LogprobsLists(*sampled) if sampled else None,
        LogprobsTensors(*(torch.from_numpy(column) for column in prompt)) if prompt else None,
    )


def _tables(tables: Sequence[executor_pb2.LogprobTable]) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Token ids, logprobs (rows, width) and ranks (rows,) of all tables, one after the other."""
    if not tables:
        return None
    width = tables[0].width
    token_ids = np.frombuffer(b"".join(t.token_ids for t in tables), dtype="<i4").reshape(-1, width)
    logprobs = np.frombuffer(b"".join(t.logprobs for t in tables), dtype="<f4").reshape(-1, width)
    ranks = np.frombuffer(b"".join(t.ranks for t in tables), dtype="<i4")
    if not token_ids.shape == logprobs.shape == (len(ranks), width):
        raise ValueError(
            f"logprobs: token ids {token_ids.shape}, values {logprobs.shape}, ranks {ranks.shape}"
        )
    return token_ids.copy(), logprobs.copy(), ranks.copy()
