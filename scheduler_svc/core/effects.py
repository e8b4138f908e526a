"""What is to be done: the only outputs of the core.

Effects are imperative, and nobody changes one. Those that every call or step causes are not frozen all the
same: with keywords they are made in half the time of a frozen dataclass or a named tuple. The shell carries
them out in the order in which they are returned; the order matters on each stream (announcements before the
plan that names them, tokens before the end of their call).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from scheduler_svc.core.errors import Refusal
from scheduler_svc.core.events import CallSpec
from scheduler_svc.core.ids import BlockId, CallHandle, ExecutorId, FrontendId, StreamHandle


class FinishReason(Enum):
    """How a call ended."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"

    __hash__ = object.__hash__
    """By identity, as that of `CallState`."""


@dataclass(slots=True, kw_only=True)
class Plan:
    """One step of one executor: the whole batch, and sparsely what changed since the previous plan.

    ``rows`` indexes `handles`. A row in `joined` was not in the previous plan's batch and brings its whole
    block table; any other row appends.
    """

    step: int
    """1, 2, 3, ... within the executor's epoch."""
    handles: Sequence[int]
    """The batch, in order. Shape: (rows,). May be empty when the plan only releases."""
    chunks: Mapping[int, int]
    """row -> tokens to compute, only where that is not 1."""
    joined: Mapping[int, int]
    """row -> leading tokens whose KV its blocks already hold."""
    blocks: Mapping[int, Sequence[BlockId]]
    """row -> its whole block table (joined rows) or the block ids to append (others)."""
    released: Sequence[int]
    """Calls that the executor must forget."""
    swap_out: Sequence[tuple[BlockId, BlockId]] = ()
    """(device block, host block) copies done first."""
    swap_in: Sequence[tuple[BlockId, BlockId]] = ()
    """(host block, device block) copies done second."""


@dataclass(slots=True)
class AnnounceCall:
    """Tell an executor about a call before a plan names it."""

    executor_id: ExecutorId
    handle: CallHandle
    call: CallSpec
    output_token_ids: Sequence[int]
    """All tokens generated so far, those of `call.output_token_ids` included."""


@dataclass(slots=True)
class SendPlan:
    """Send a plan to an executor."""

    executor_id: ExecutorId
    plan: Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseExecutor:
    """End an executor's stream: it broke the protocol, or it is drained."""

    executor_id: ExecutorId
    reason: str
    drained: bool = False


@dataclass(slots=True)
class EmitTokens:
    """Pass one step's tokens to a frontend. The columns have the same length."""

    frontend_id: FrontendId
    handles: Sequence[int]
    tokens: Sequence[int]
    payloads: Mapping[int, bytes] = field(default_factory=dict)
    """index into `handles` -> opaque logprobs."""


@dataclass(slots=True)
class ReportStarted:
    """Tell a frontend that a call is in a plan for the first time."""

    frontend_id: FrontendId
    handle: StreamHandle
    cached_tokens: int
    """Prompt tokens found in the prefix cache."""
    queued_s: float


@dataclass(slots=True)
class FinishCall:
    """Tell a frontend that a call ended."""

    frontend_id: FrontendId
    handle: StreamHandle
    reason: FinishReason
    service_s: float
    waiting_s: float
    preemptions: int
    stop_token_id: int | None = None
    error: Refusal | None = None
    """Set when reason is ERROR."""
    output_tokens: int = 0
    """Tokens generated since it was submitted; those the client already had are not among them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RefuseCall:
    """Tell a frontend that a submitted call was not accepted."""

    frontend_id: FrontendId
    handle: StreamHandle
    refusal: Refusal


Effect = AnnounceCall | SendPlan | CloseExecutor | EmitTokens | ReportStarted | FinishCall | RefuseCall
