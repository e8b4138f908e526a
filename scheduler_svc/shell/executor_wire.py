"""executor/v1 messages <-> the core's events and effects. Pure translation: no state, no I/O.

What an executor sends is checked here as far as one message can tell; what needs knowledge of the batch is
the core's to check. A message that makes no sense raises `ProtocolBroken`.

Results and plans pass here thousands of times a second. Columns stay the bytes they are, a steady batch is
packed once for all of its plans, fields that say nothing are not touched, and a message is filled in place,
because giving a part to another message copies it.
"""

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from protos.autellix.executor.v1 import executor_pb2 as pb
from scheduler_svc.core.columns import Column
from scheduler_svc.core.effects import AnnounceCall, Plan
from scheduler_svc.core.errors import ProtocolBroken, Refusal, Refused
from scheduler_svc.core.events import CallPrepared, ExecutorSpec, StepCompleted
from scheduler_svc.core.ids import BlockId, CallHandle, ExecutorId
from svc_runtime.columns import pack_i32

PROTOCOL_VERSION = 1
"""Version of executor/v1 that this scheduler speaks."""
STEP_S_MAX = 3600.0
"""Longest step, or copying of one, that is believed: what is told beyond would be charged to calls."""

_AT_LEAST = {
    "max_num_seqs": 1,
    "max_num_batched_tokens": 1,
    "max_model_len": 2,
    "vocab_size": 1,
    "max_plans_in_flight": 1,
}
"""Registration field -> smallest value that makes sense."""

_NONE: Mapping[CallHandle, Any] = MappingProxyType({})


# ── registration ────────────────────────────────────────────────────────────────────────────────────


def executor_spec(request: pb.AttachRequest, *, max_plans_in_flight: int) -> ExecutorSpec:
    """Checks the first message of a stream and turns it into the core's words.

    Args:
        max_plans_in_flight: this scheduler's own limit; the smaller of both holds.

    Raises: Refused with PROTOCOL_BROKEN, PROTOCOL_MISMATCH or UNSUPPORTED_EXECUTOR.
    """
    if not request.HasField("registration"):
        raise Refused(Refusal(reason="PROTOCOL_BROKEN", message="the first message must be a registration"))
    registration = request.registration
    _check_version(registration)
    _check_identity(registration)
    _check_limits(registration)
    group = _only_kv_group(registration)
    return ExecutorSpec(
        executor_id=ExecutorId(registration.executor_id),
        epoch=registration.epoch,
        model=registration.model,
        model_fingerprint=registration.model_fingerprint,
        tokenizer_fingerprint=registration.tokenizer_fingerprint,
        runner=registration.runner,
        device=registration.device,
        simulated=registration.simulated,
        block_size=group.block_size,
        num_blocks=group.num_blocks,
        host_blocks=registration.host_blocks,
        block_bytes=registration.block_bytes,
        max_num_seqs=registration.max_num_seqs,
        max_num_batched_tokens=registration.max_num_batched_tokens,
        max_model_len=registration.max_model_len,
        vocab_size=registration.vocab_size,
        max_plans_in_flight=min(registration.max_plans_in_flight, max_plans_in_flight),
        prefix_caching=registration.prefix_caching,
        params_formats=tuple(registration.params_formats),
        structured_output_backend=registration.structured_output_backend,
        reasoning_parser=registration.reasoning_parser,
    )


def _check_version(registration: pb.Registration) -> None:
    if registration.protocol_version != PROTOCOL_VERSION:
        raise Refused(
            Refusal(
                reason="PROTOCOL_MISMATCH",
                message=f"the executor speaks executor/v1 protocol version {registration.protocol_version}, "
                f"this scheduler version {PROTOCOL_VERSION}: run the same release on both",
                field="protocol_version",
                limit=str(PROTOCOL_VERSION),
                value=str(registration.protocol_version),
            )
        )


def _check_identity(registration: pb.Registration) -> None:
    for field in ("executor_id", "model"):
        if not getattr(registration, field):
            raise _unsupported(f"a registration without {field}", field, "not empty", "")


def _check_limits(registration: pb.Registration) -> None:
    for field, least in _AT_LEAST.items():
        value = getattr(registration, field)
        if value < least:
            raise _unsupported(f"{field} = {value} is too small", field, f">= {least}", str(value))


def _only_kv_group(registration: pb.Registration) -> pb.KvGroup:
    count = len(registration.kv_groups)
    if count != 1:
        raise _unsupported(
            f"plans carry exactly one KV group, this model has {count}", "kv_groups", "1", str(count)
        )
    group = registration.kv_groups[0]
    if group.block_size < 1:
        raise _unsupported("a KV block of no tokens", "kv_groups.block_size", ">= 1", str(group.block_size))
    if group.num_blocks < 2:
        raise _unsupported(
            "no KV block besides the null block", "kv_groups.num_blocks", ">= 2", str(group.num_blocks)
        )
    return group


def _unsupported(what: str, field: str, limit: str, value: str) -> Refused:
    message = f"this executor cannot be scheduled: {what}"
    return Refused(
        Refusal(reason="UNSUPPORTED_EXECUTOR", message=message, field=field, limit=limit, value=value)
    )


# ── executor -> core ────────────────────────────────────────────────────────────────────────────────


def step_completed(executor_id: ExecutorId, result: pb.StepResult) -> StepCompleted:
    """Raises: ProtocolBroken when columns are torn or differ in length, or seconds are no step's."""
    handles = _column(result.handles, "result.handles")
    tokens = _column(result.tokens, "result.tokens")
    step, step_s, swap_s = result.step, result.step_s, result.swap_s
    if len(handles) != len(tokens):
        raise ProtocolBroken(f"step {step}: {len(handles)} handles but {len(tokens)} tokens")
    _check_seconds(step, "step_s", step_s)
    _check_seconds(step, "swap_s", swap_s)
    failures, payloads = result.failures, result.payloads
    return StepCompleted(
        executor_id=executor_id,
        step=step,
        handles=handles,
        tokens=tokens,
        step_s=step_s,
        swap_s=swap_s,
        swap_bytes=result.swap_bytes,
        failures={CallHandle(row.handle): row.message for row in failures} if failures else _NONE,
        payloads={CallHandle(row.handle): row.payload for row in payloads} if payloads else _NONE,
    )


def call_prepared(executor_id: ExecutorId, prepared: pb.CallPrepared) -> CallPrepared:
    """The outcome of a preparation."""
    return CallPrepared(executor_id=executor_id, handle=CallHandle(prepared.handle), error=prepared.error)


def _column(column: bytes, name: str) -> Sequence[Any]:
    try:
        return Column.unpack(column)
    except ValueError as error:
        raise ProtocolBroken(f"{name}: {error}") from error


def _check_seconds(step: int, name: str, seconds: float) -> None:
    if not 0.0 <= seconds <= STEP_S_MAX:
        raise ProtocolBroken(f"step {step}: {name} is {seconds}, not in 0..{STEP_S_MAX:g}")


# ── core -> executor ────────────────────────────────────────────────────────────────────────────────


def call_announcement(effect: AnnounceCall) -> pb.CallAnnouncement:
    """Everything an executor needs to run or to continue a call."""
    message = pb.CallAnnouncement()
    _fill_announcement(message, effect)
    return message


def _fill_announcement(message: pb.CallAnnouncement, effect: AnnounceCall) -> None:
    call = effect.call
    message.handle = effect.handle
    message.call_id = call.call_id
    message.program_id = call.program_id
    message.prompt_token_ids = pack_i32(call.prompt_token_ids)
    if effect.output_token_ids:
        message.output_token_ids = pack_i32(effect.output_token_ids)
    if call.params:
        message.params = call.params
    if call.params_format:
        message.params_format = call.params_format
    if call.needs_preparation:
        message.needs_preparation = True


def plan_response(plan: Plan) -> pb.AttachResponse:
    """A plan, as it goes down the stream."""
    response = pb.AttachResponse()
    _fill_plan(response.plan, plan)
    return response


def step_plan(plan: Plan) -> pb.StepPlan:
    """The whole batch, and sparsely what changed; rows ascend in every column."""
    message = pb.StepPlan()
    _fill_plan(message, plan)
    return message


def _fill_plan(message: pb.StepPlan, plan: Plan) -> None:
    message.step = plan.step
    message.handles = Column.of(plan.handles).packed
    if plan.blocks:
        _fill_blocks(message.blocks.add(), plan.blocks)
    if plan.chunks:
        message.chunk_rows, message.chunk_tokens = _pairs(sorted(plan.chunks.items()))
    if plan.joined:
        message.joined_rows, message.joined_computed = _pairs(sorted(plan.joined.items()))
    if plan.released:
        message.released_handles = Column.of(plan.released).packed
    if plan.swap_out:
        message.swap_out_device_blocks, message.swap_out_host_blocks = _pairs(plan.swap_out)
    if plan.swap_in:
        message.swap_in_host_blocks, message.swap_in_device_blocks = _pairs(plan.swap_in)


def _fill_blocks(group: pb.GroupBlocks, blocks: Mapping[int, Sequence[BlockId]]) -> None:
    rows = sorted(blocks)
    counts: list[int] = []
    block_ids: list[BlockId] = []
    for row in rows:
        of_row = blocks[row]
        counts.append(len(of_row))
        block_ids += of_row
    group.rows = pack_i32(rows)
    group.counts = pack_i32(counts)
    group.block_ids = pack_i32(block_ids)


def _pairs(pairs: Sequence[tuple[int, int]]) -> tuple[bytes, bytes]:
    """Shape of each: (len(pairs),). `pairs` is not empty."""
    first, second = zip(*pairs, strict=True)
    return pack_i32(first), pack_i32(second)


def calls_announced(effects: Iterable[AnnounceCall]) -> pb.AttachResponse:
    """One message for several announcements."""
    response = pb.AttachResponse()
    calls = response.announced.calls
    for effect in effects:
        _fill_announcement(calls.add(), effect)
    return response
