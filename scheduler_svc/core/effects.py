"""What is to be done: the only outputs of the core.

Effects are imperative, and nobody changes one. Those that every call or step causes are not frozen all the
same, and write their `__init__` out: a frozen one is made in twice the time, and an `__init__` that the
decorator makes cannot be compiled ahead of time. The shell carries effects out in the order in which they are
returned; the order matters on each stream (announcements before the plan that names them, tokens before the
end of their call).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType

from scheduler_svc.core.errors import Refusal
from scheduler_svc.core.events import CallSpec
from scheduler_svc.core.ids import BlockId, CallHandle, ExecutorId, FrontendId, StreamHandle

_NO_PAYLOADS: Mapping[int, bytes] = MappingProxyType({})


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


@dataclass(slots=True, init=False)
class AnnounceCall:
    """Tell an executor about a call before a plan names it."""

    executor_id: ExecutorId
    handle: CallHandle
    call: CallSpec
    output_token_ids: Sequence[int]
    """All tokens generated so far, those of `call.output_token_ids` included."""

    def __init__(
        self, executor_id: ExecutorId, handle: CallHandle, call: CallSpec, output_token_ids: Sequence[int]
    ) -> None:
        self.executor_id = executor_id
        self.handle = handle
        self.call = call
        self.output_token_ids = output_token_ids


@dataclass(slots=True, init=False)
class SendPlan:
    """Send a plan to an executor."""

    executor_id: ExecutorId
    plan: Plan

    def __init__(self, executor_id: ExecutorId, plan: Plan) -> None:
        self.executor_id = executor_id
        self.plan = plan


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseExecutor:
    """End an executor's stream: it broke the protocol, or it is drained."""

    executor_id: ExecutorId
    reason: str
    drained: bool = False


@dataclass(slots=True, init=False)
class EmitTokens:
    """Pass one step's tokens to a frontend. The columns have the same length."""

    frontend_id: FrontendId
    handles: Sequence[int]
    tokens: Sequence[int]
    payloads: Mapping[int, bytes]
    """index into `handles` -> opaque logprobs."""

    def __init__(
        self,
        frontend_id: FrontendId,
        handles: Sequence[int],
        tokens: Sequence[int],
        payloads: Mapping[int, bytes] = _NO_PAYLOADS,
    ) -> None:
        self.frontend_id = frontend_id
        self.handles = handles
        self.tokens = tokens
        self.payloads = payloads


@dataclass(slots=True, init=False)
class ReportStarted:
    """Tell a frontend that a call is in a plan for the first time."""

    frontend_id: FrontendId
    handle: StreamHandle
    cached_tokens: int
    """Prompt tokens found in the prefix cache."""
    queued_s: float

    def __init__(
        self, frontend_id: FrontendId, handle: StreamHandle, cached_tokens: int, queued_s: float
    ) -> None:
        self.frontend_id = frontend_id
        self.handle = handle
        self.cached_tokens = cached_tokens
        self.queued_s = queued_s


@dataclass(slots=True, init=False)
class FinishCall:
    """Tell a frontend that a call ended."""

    frontend_id: FrontendId
    handle: StreamHandle
    reason: FinishReason
    service_s: float
    waiting_s: float
    preemptions: int
    stop_token_id: int | None
    error: Refusal | None
    """Set when reason is ERROR."""
    output_tokens: int
    """Tokens generated since it was submitted; those the client already had are not among them."""

    def __init__(
        self,
        frontend_id: FrontendId,
        handle: StreamHandle,
        reason: FinishReason,
        service_s: float,
        waiting_s: float,
        preemptions: int,
        stop_token_id: int | None = None,
        error: Refusal | None = None,
        output_tokens: int = 0,
    ) -> None:
        self.frontend_id = frontend_id
        self.handle = handle
        self.reason = reason
        self.service_s = service_s
        self.waiting_s = waiting_s
        self.preemptions = preemptions
        self.stop_token_id = stop_token_id
        self.error = error
        self.output_tokens = output_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class RefuseCall:
    """Tell a frontend that a submitted call was not accepted."""

    frontend_id: FrontendId
    handle: StreamHandle
    refusal: Refusal


Effect = AnnounceCall | SendPlan | CloseExecutor | EmitTokens | ReportStarted | FinishCall | RefuseCall
