"""What happened: the only inputs of the core.

Events are facts, in the past tense, frozen. The shell turns messages and timers into events, feeds all that
have come in to `Core.handle(event, now)` in order, and then handles one `PlanDue`, so that a burst of
arrivals is planned as one batch. `now` is monotonic seconds; it never goes back.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from scheduler_svc.core.ids import (
    MAIN_THREAD,
    CallHandle,
    CallId,
    ExecutorId,
    FrontendId,
    ProgramId,
    StreamHandle,
    TenantId,
    ThreadId,
)


class CancelReason(Enum):
    """Why a call is cancelled. Only `STOP_STRING` counts as a normal completion."""

    STOP_STRING = "stop_string"
    CLIENT = "client"
    DEADLINE = "deadline"
    PROGRAM = "program"
    FRONTEND_LOST = "frontend_lost"


@dataclass(frozen=True, slots=True, kw_only=True)
class CallSpec:
    """One LLM call as submitted. Lengths are in tokens."""

    call_id: CallId
    frontend_id: FrontendId
    stream_handle: StreamHandle
    tenant: TenantId
    program_id: ProgramId
    thread_id: ThreadId = MAIN_THREAD
    parent_call_ids: tuple[CallId, ...] = ()
    model: str
    prompt_token_ids: Sequence[int]
    """Not empty."""
    output_token_ids: Sequence[int] = ()
    """Tokens the client already has; generation continues after them. len < max_tokens."""
    max_tokens: int
    """Most tokens to generate, those already generated included. > 0."""
    min_tokens: int = 0
    stop_token_ids: frozenset[int] = frozenset()
    eos_token_id: int | None = None
    """None: the end-of-sequence token is ignored."""
    params: bytes = b""
    """Opaque: for the executor."""
    params_format: str = ""
    needs_preparation: bool = False
    skip_reading_prefix_cache: bool = False
    cache_salt: str = ""
    deadline_s: float | None = None
    """Seconds after arrival at which the call fails."""
    prompt_block_hashes: bytes = b""
    """Packed digests of the prompt's full blocks of `hash_block_size` tokens, as `svc_runtime.block_hashes`
    makes them. Empty: not known, whatever `hash_block_size` says."""
    hash_block_size: int = 0
    """Invariant: len(prompt_block_hashes) is 0 or 16 * (len(prompt_token_ids) // hash_block_size)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutorSpec:
    """What an executor said of itself when it registered. The core computes none of this."""

    executor_id: ExecutorId
    epoch: int
    model: str
    model_fingerprint: str = ""
    tokenizer_fingerprint: str = ""
    runner: str = ""
    device: str = ""
    simulated: bool = False
    block_size: int
    """Tokens in one KV block."""
    num_blocks: int
    """Device blocks, the null block included."""
    host_blocks: int = 0
    block_bytes: int = 0
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    vocab_size: int = 0
    max_plans_in_flight: int = 2
    """1 = lockstep, 2 = one plan ahead."""
    prefix_caching: bool = True
    params_formats: tuple[str, ...] = ()
    structured_output_backend: str = ""
    reasoning_parser: str = ""

    @property
    def max_call_tokens(self) -> int:
        """Longest prompt + output that this executor can hold alone, in tokens."""
        return min(self.max_model_len, (self.num_blocks - 1) * self.block_size)


# ── programs ────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramOpened:
    """A frontend opened a program. Of one that is open already (the shell looks for the session key first)
    only the idle time begins anew."""

    tenant: TenantId
    program_id: ProgramId
    session_key: str = ""
    class_name: str = ""
    single_call: bool = False
    """The program ends with its first call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramEnded:
    """The client said that the program is over: live calls finish, later ones are refused."""

    tenant: TenantId
    program_id: ProgramId


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramCancelled:
    """The client gave the program up: live calls are cancelled."""

    tenant: TenantId
    program_id: ProgramId


# ── calls ───────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class CallSubmitted:
    """A frontend submitted a call."""

    call: CallSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class CallCancelled:
    """A frontend asked for a call to stop; unknown ids are ignored (it may just have ended)."""

    call_id: CallId
    reason: CancelReason


@dataclass(frozen=True, slots=True, kw_only=True)
class CallAcknowledged:
    """A frontend has seen the end of a call; nothing of it needs to be kept."""

    call_id: CallId


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontendLost:
    """A frontend has been gone for longer than the grace time: its calls are cancelled."""

    frontend_id: FrontendId


# ── executors ───────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutorJoined:
    """An executor registered, with empty state."""

    executor: ExecutorSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutorDrainRequested:
    """An executor (or an operator) wants it to take no further calls."""

    executor_id: ExecutorId


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutorLost:
    """An executor's stream ended: its calls go back to the queue with their tokens."""

    executor_id: ExecutorId
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CallPrepared:
    """An executor finished preparing a call (compiling its grammar), or could not."""

    executor_id: ExecutorId
    handle: CallHandle
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCompleted:
    """An executor executed a plan. `handles` and `tokens` have the same length."""

    executor_id: ExecutorId
    step: int
    handles: Sequence[CallHandle]
    """Rows that sampled a token, in plan order."""
    tokens: Sequence[int]
    step_s: float
    """Seconds of model execution, copies of blocks excluded."""
    swap_s: float = 0.0
    """Seconds of copying blocks between device and host."""
    swap_bytes: int = 0
    failures: Mapping[CallHandle, str] = field(default_factory=dict)
    payloads: Mapping[CallHandle, bytes] = field(default_factory=dict)
    """Opaque logprobs of rows, passed on to the frontend."""


# ── policy ──────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyChanged:
    """An operator chose another policy, or other options of it: live calls are queued anew by it."""

    changes: Mapping[str, Any]
    """Fields of CoreConfig among POLICY_OPTIONS, with their new values; the others stay as they are."""


# ── time ────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class TimePassed:
    """Some time passed: deadlines, idle programs and starving calls are looked at. About once a second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanDue:
    """The inbox is empty: every executor that can take a plan gets one."""


Event = (
    ProgramOpened
    | ProgramEnded
    | ProgramCancelled
    | CallSubmitted
    | CallCancelled
    | CallAcknowledged
    | FrontendLost
    | ExecutorJoined
    | ExecutorDrainRequested
    | ExecutorLost
    | CallPrepared
    | StepCompleted
    | PolicyChanged
    | TimePassed
    | PlanDue
)
