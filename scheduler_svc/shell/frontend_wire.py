"""scheduler/v1 messages <-> the core's words, the stream's part. Pure translation: no state, no I/O.

What goes out with every step is filled in place (`fill_...`): to give a part to another message copies it.
"""

from protos.autellix.scheduler.v1 import scheduler_pb2 as pb
from scheduler_svc.core.effects import FinishCall, FinishReason, ReportStarted
from scheduler_svc.core.errors import ProtocolBroken, Refusal
from scheduler_svc.core.events import CancelReason
from scheduler_svc.core.ids import StreamHandle
from scheduler_svc.core.snapshots import EngineSnapshot, ModelSnapshot
from svc_runtime.columns import unpack_i32

PROTOCOL_VERSION = 1
"""Version of scheduler/v1 that this scheduler speaks."""

_CANCEL_REASONS = {
    pb.CANCEL_REASON_UNSPECIFIED: CancelReason.CLIENT,
    pb.CANCEL_REASON_CLIENT: CancelReason.CLIENT,
    pb.CANCEL_REASON_STOP_STRING: CancelReason.STOP_STRING,
    pb.CANCEL_REASON_DEADLINE: CancelReason.DEADLINE,
}
_FINISH_REASONS = {
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
    FinishReason.ABORT: pb.FINISH_REASON_ABORT,
    FinishReason.ERROR: pb.FINISH_REASON_ERROR,
}


def cancel_reason(reason: pb.CancelReason) -> CancelReason:
    """A reason of a newer frontend counts as the client's wish."""
    return _CANCEL_REASONS.get(reason, CancelReason.CLIENT)


def handle_column(column: bytes) -> list[StreamHandle]:
    """Raises: ProtocolBroken when the column is torn."""
    try:
        return [StreamHandle(handle) for handle in unpack_i32(column)]
    except ValueError as error:
        raise ProtocolBroken(f"handles: {error}") from error


def refusal_message(refusal: Refusal) -> pb.Refusal:
    """A typed error, inside a message."""
    return pb.Refusal(
        reason=refusal.reason,
        message=refusal.message,
        field=refusal.field,
        limit=refusal.limit,
        value=refusal.value,
        retry_after_s=refusal.retry_after_s,
    )


def fill_started(message: pb.CallStarted, effect: ReportStarted) -> None:
    """A call is in a plan for the first time."""
    message.handle = effect.handle
    message.queued_s = effect.queued_s
    if effect.cached_tokens:
        message.cached_tokens = effect.cached_tokens


def fill_finished(message: pb.CallFinished, effect: FinishCall) -> None:
    """A call ended."""
    message.handle = effect.handle
    message.reason = _FINISH_REASONS[effect.reason]
    message.service_s = effect.service_s
    message.waiting_s = effect.waiting_s
    if effect.preemptions:
        message.preemptions = effect.preemptions
    if effect.stop_token_id is not None:
        message.stop_token_id = effect.stop_token_id
    if effect.error is not None:
        message.error.CopyFrom(refusal_message(effect.error))


def call_refused(handle: StreamHandle, refusal: Refusal) -> pb.ConnectResponse:
    """A call was not accepted."""
    return pb.ConnectResponse(refused=pb.CallRefused(handle=handle, refusal=refusal_message(refusal)))


def engine_status(snapshot: EngineSnapshot) -> pb.EngineStatus:
    """Gauges sent along with outputs."""
    return pb.EngineStatus(running=snapshot.running, waiting=snapshot.waiting, kv_usage=snapshot.kv_usage)


def model_info(model: ModelSnapshot) -> pb.ModelInfo:
    """What a frontend must know of a served model."""
    return pb.ModelInfo(
        model=model.model,
        tokenizer_fingerprint=model.tokenizer_fingerprint,
        max_model_len=model.max_model_len,
        block_size=model.block_size,
        num_blocks=model.num_blocks,
        executors=model.executors,
        structured_output_backend=model.structured_output_backend,
        reasoning_parser=model.reasoning_parser,
        params_formats=model.params_formats,
        max_call_tokens=model.max_call_tokens,
        simulated=model.simulated,
    )
