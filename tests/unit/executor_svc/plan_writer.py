"""The scheduler's half of the codec, as tests need it: writes plans and announcements, reads results."""

from collections.abc import Mapping, Sequence

from executor_svc.runner import AnnouncedCall, StepPlan, StepResult
from protos.autellix.executor.v1 import executor_pb2 as pb
from svc_runtime.columns import pack_i32, unpack_i32


def plan(
    step: int,
    handles: Sequence[int] = (),
    *,
    chunks: Mapping[int, int] | None = None,
    joined: Mapping[int, int] | None = None,
    blocks: Mapping[int, Sequence[int]] | None = None,
    released: Sequence[int] = (),
    swap_out: Sequence[tuple[int, int]] = (),
    swap_in: Sequence[tuple[int, int]] = (),
) -> StepPlan:
    """A plan with everything that does not matter left out."""
    return StepPlan(
        step=step,
        handles=list(handles),
        chunks=chunks or {},
        joined=joined or {},
        blocks=blocks or {},
        released=list(released),
        swap_out=list(swap_out),
        swap_in=list(swap_in),
    )


def call(
    handle: int, prompt: Sequence[int] = (1, 2, 3), output: Sequence[int] = (), *, prepare: bool = False
) -> AnnouncedCall:
    """A call with everything that does not matter left out."""
    return AnnouncedCall(
        handle=handle,
        call_id=f"call-{handle}",
        program_id="program",
        prompt_token_ids=list(prompt),
        output_token_ids=list(output),
        params=b"opaque",
        params_format="simulated",
        needs_preparation=prepare,
    )


def plan_message(plan: StepPlan) -> pb.StepPlan:
    """A plan as the scheduler sends it."""
    groups = []
    if plan.blocks:
        groups.append(
            pb.GroupBlocks(
                rows=pack_i32(plan.blocks),
                counts=pack_i32(len(ids) for ids in plan.blocks.values()),
                block_ids=pack_i32(block for ids in plan.blocks.values() for block in ids),
            )
        )
    return pb.StepPlan(
        step=plan.step,
        handles=pack_i32(plan.handles),
        chunk_rows=pack_i32(plan.chunks),
        chunk_tokens=pack_i32(plan.chunks.values()),
        joined_rows=pack_i32(plan.joined),
        joined_computed=pack_i32(plan.joined.values()),
        blocks=groups,
        released_handles=pack_i32(plan.released),
        swap_out_device_blocks=pack_i32(device for device, _ in plan.swap_out),
        swap_out_host_blocks=pack_i32(host for _, host in plan.swap_out),
        swap_in_host_blocks=pack_i32(host for host, _ in plan.swap_in),
        swap_in_device_blocks=pack_i32(device for _, device in plan.swap_in),
    )


def call_message(call: AnnouncedCall) -> pb.CallAnnouncement:
    """An announcement as the scheduler sends it."""
    return pb.CallAnnouncement(
        handle=call.handle,
        call_id=call.call_id,
        program_id=call.program_id,
        prompt_token_ids=pack_i32(call.prompt_token_ids),
        output_token_ids=pack_i32(call.output_token_ids),
        params=call.params,
        params_format=call.params_format,
        needs_preparation=call.needs_preparation,
    )


def read_result(message: pb.StepResult) -> StepResult:
    """A result as the scheduler reads it."""
    return StepResult(
        step=message.step,
        handles=unpack_i32(message.handles),
        tokens=unpack_i32(message.tokens),
        step_s=message.step_s,
        failures={failure.handle: failure.message for failure in message.failures},
        payloads={row.handle: row.payload for row in message.payloads},
        swap_s=message.swap_s,
        swap_bytes=message.swap_bytes,
    )
