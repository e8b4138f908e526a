"""executor/v1 messages <-> what runners understand.

Theory of operation: a decoder checks everything that can be checked from the message alone (columns of
equal length, ascending rows, ids in range, no row twice), so that runners meet well-formed plans only and
check no more than what depends on their state. Whatever is wrong raises `PlanViolation`; nothing is
repaired or guessed. One KV group; its block lists become the plan's `blocks`.
"""

from collections.abc import Sequence
from itertools import pairwise

from executor_svc.runner import AnnouncedCall, PlanViolation, RunnerInfo, StepPlan, StepResult
from protos.autellix.executor.v1 import executor_pb2 as pb
from svc_runtime.columns import pack_i32, unpack_i32

PROTOCOL_VERSION = 1
"""Version of executor/v1 spoken here; the scheduler refuses any other."""


# ── executor -> scheduler ───────────────────────────────────────────────────────────────────────────


def registration(info: RunnerInfo, *, executor_id: str, epoch: int) -> pb.AttachRequest:
    """The first message of a stream: what the runner is."""
    return pb.AttachRequest(
        registration=pb.Registration(
            protocol_version=PROTOCOL_VERSION,
            executor_id=executor_id,
            epoch=epoch,
            model=info.model,
            model_fingerprint=info.model_fingerprint,
            tokenizer_fingerprint=info.tokenizer_fingerprint,
            runner=info.runner,
            simulated=info.simulated,
            kv_groups=[pb.KvGroup(block_size=info.block_size, num_blocks=info.num_blocks)],
            host_blocks=info.host_blocks,
            block_bytes=info.block_bytes,
            max_num_seqs=info.max_num_seqs,
            max_num_batched_tokens=info.max_num_batched_tokens,
            max_model_len=info.max_model_len,
            vocab_size=info.vocab_size,
            max_plans_in_flight=info.max_plans_in_flight,
            params_formats=info.params_formats,
            structured_output_backend=info.structured_output_backend,
            reasoning_parser=info.reasoning_parser,
            world_size=info.world_size,
            device=info.device,
            prefix_caching=info.prefix_caching,
            dtype=info.dtype,
        )
    )


class ResultWriter:
    """Writes the results of one stream, in order; the handle column of a batch that stays is packed once."""

    def __init__(self) -> None:
        self._handles: Sequence[int] = ()
        self._packed = b""

    def write(self, result: StepResult) -> pb.AttachRequest:
        """The outcome of one step. `result.handles` must not be changed afterwards."""
        if result.handles is not self._handles:
            self._handles = result.handles
            self._packed = pack_i32(result.handles)
        return pb.AttachRequest(
            result=pb.StepResult(
                step=result.step,
                handles=self._packed,
                tokens=pack_i32(result.tokens),
                step_s=result.step_s,
                failures=[pb.CallFailure(handle=h, message=text) for h, text in result.failures.items()],
                payloads=[pb.RowPayload(handle=h, payload=blob) for h, blob in result.payloads.items()],
                swap_s=result.swap_s,
                swap_bytes=result.swap_bytes,
            )
        )


def call_prepared(handle: int, error: str) -> pb.AttachRequest:
    """The answer to an announcement with `needs_preparation`; an empty error means ready."""
    return pb.AttachRequest(prepared=pb.CallPrepared(handle=handle, error=error))


def drain_requested(reason: str) -> pb.AttachRequest:
    """The wish to leave."""
    return pb.AttachRequest(drain=pb.DrainRequested(reason=reason))


# ── scheduler -> executor ───────────────────────────────────────────────────────────────────────────


def announced_call(message: pb.CallAnnouncement) -> AnnouncedCall:
    """Reads an announcement.

    Raises: PlanViolation when it names no call, has no prompt, or a column is damaged.
    """
    if message.handle <= 0:
        raise PlanViolation(f"announcement: handle is {message.handle}, must be > 0")
    prompt = _column("prompt_token_ids", message.prompt_token_ids)
    if not prompt:
        raise PlanViolation(f"announcement: call {message.handle} has an empty prompt")
    return AnnouncedCall(
        handle=message.handle,
        call_id=message.call_id,
        program_id=message.program_id,
        prompt_token_ids=prompt,
        output_token_ids=_column("output_token_ids", message.output_token_ids),
        params=message.params,
        params_format=message.params_format,
        needs_preparation=message.needs_preparation,
    )


class PlanReader:
    """Reads the plans of one stream, in order.

    From step to step a batch mostly stays as it is: then the handle column is byte for byte the last one, its
    list was checked already, and the plan gets the very same tuple.
    """

    def __init__(self) -> None:
        self._packed = b""
        self._handles: Sequence[int] = ()

    def read(self, message: pb.StepPlan) -> StepPlan:
        """Reads the next plan.

        Raises: PlanViolation naming the field, when the message contradicts itself.
        """
        if message.step < 1:
            raise PlanViolation("plan: step is 0, steps start at 1")
        packed = message.handles
        if packed != self._packed:
            self._handles = tuple(_names("handles", packed))
            self._packed = packed
        handles = self._handles
        released = _released(message.released_handles, handles)
        joined = _by_row("joined_rows", message.joined_rows, message.joined_computed, len(handles), least=0)
        blocks = _blocks(message.blocks, len(handles))
        if not joined.keys() <= blocks.keys():
            raise PlanViolation("plan: a joined row comes without its block table")
        return StepPlan(
            step=message.step,
            handles=handles,
            chunks=_by_row("chunk_rows", message.chunk_rows, message.chunk_tokens, len(handles), least=1),
            joined=joined,
            blocks=blocks,
            released=released,
            swap_out=_pairs("swap_out", message.swap_out_device_blocks, message.swap_out_host_blocks),
            swap_in=_pairs("swap_in", message.swap_in_host_blocks, message.swap_in_device_blocks),
        )


def _column(name: str, column: bytes) -> list[int]:
    try:
        return unpack_i32(column)
    except ValueError as error:
        raise PlanViolation(f"{name}: {error}") from error


def _names(name: str, column: bytes) -> list[int]:
    """A column of handles: each > 0, none twice."""
    handles = _column(name, column)
    if handles and min(handles) < 1:
        raise PlanViolation(f"{name}: {min(handles)} is no handle, handles are > 0")
    if len(set(handles)) != len(handles):
        raise PlanViolation(f"{name}: a handle occurs twice")
    return handles


def _released(column: bytes, handles: Sequence[int]) -> list[int]:
    released = _names("released_handles", column) if column else []
    if released and not set(handles).isdisjoint(released):
        raise PlanViolation("plan: a released handle is a row of the same plan")
    return released


def _rows(name: str, column: bytes, row_count: int) -> list[int]:
    """A column of row indices: ascending, each in [0, row_count)."""
    rows = _column(name, column)
    if any(first >= second for first, second in pairwise(rows)):
        raise PlanViolation(f"{name}: rows are not ascending")
    if rows and not (rows[0] >= 0 and rows[-1] < row_count):
        raise PlanViolation(f"{name}: a row is outside the plan's {row_count} rows")
    return rows


def _by_row(name: str, rows: bytes, values: bytes, row_count: int, *, least: int) -> dict[int, int]:
    if not rows and not values:
        return {}
    keys = _rows(name, rows, row_count)
    column = _column(name, values)
    if len(keys) != len(column):
        raise PlanViolation(f"{name}: {len(keys)} rows but {len(column)} values")
    if column and min(column) < least:
        raise PlanViolation(f"{name}: a value is {min(column)}, must be >= {least}")
    return dict(zip(keys, column, strict=True))


def _blocks(groups: Sequence[pb.GroupBlocks], row_count: int) -> dict[int, Sequence[int]]:
    if not groups:
        return {}
    if len(groups) > 1:
        raise PlanViolation(f"blocks: {len(groups)} KV groups, this executor registered one")
    counts = _by_row("blocks", groups[0].rows, groups[0].counts, row_count, least=1)
    ids = _column("block_ids", groups[0].block_ids)
    if sum(counts.values()) != len(ids):
        raise PlanViolation(f"block_ids: {len(ids)} ids, the counts add up to {sum(counts.values())}")
    if ids and min(ids) < 1:
        raise PlanViolation(f"block_ids: {min(ids)} is no block, 0 is the null block")
    return _split(ids, counts)


def _split(ids: list[int], counts: dict[int, int]) -> dict[int, Sequence[int]]:
    if len(ids) == len(counts):  # decoding rows grow by one block
        return dict(zip(counts, zip(ids), strict=True))
    parts: dict[int, Sequence[int]] = {}
    start = 0
    for row, count in counts.items():
        parts[row] = ids[start : start + count]
        start += count
    return parts


def _pairs(name: str, sources: bytes, targets: bytes) -> list[tuple[int, int]]:
    if not sources and not targets:
        return []
    left, right = _column(name, sources), _column(name, targets)
    if len(left) != len(right):
        raise PlanViolation(f"{name}: {len(left)} source blocks but {len(right)} target blocks")
    return list(zip(left, right, strict=True))
