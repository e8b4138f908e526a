"""What the core shows of itself: frozen copies, safe to keep, send and compare.

Field for field the messages of `scheduler/v1`: the shell only copies. Times are as of the last handled event.
"""

from dataclasses import dataclass
from enum import Enum

from scheduler_svc.core.ids import ExecutorId, ProgramId, TenantId


class ProgramState(Enum):
    """State of a program."""

    RUNNING = "running"
    """Has calls in a batch."""
    WAITING = "waiting"
    """Has live calls, none of them in a batch."""
    IDLE = "idle"
    """Open, without live calls."""
    ENDED = "ended"
    """Ended by call, by marker or after its only call; live calls may still be finishing."""
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramSnapshot:
    """One row of the process table."""

    program_id: ProgramId
    tenant: TenantId
    session_key: str
    class_name: str
    state: ProgramState
    live_calls: int
    finished_calls: int
    """Calls ended, any way."""
    tokens: int
    """Tokens generated."""
    attained_service_s: float
    """Seconds of the steps its calls took part in, live calls included."""
    waiting_s: float
    """Seconds its calls were live but not in a batch."""
    level: int
    """Level of its most urgent live call, 0 = first; without live calls, the level its next call would
    get."""
    age_s: float
    response_s: float
    """From opening to the end of its last call so far; 0 before that."""
    executor_ids: tuple[ExecutorId, ...]
    prompt_tokens: int
    preemptions: int
    attained_cost_s: float = 0.0
    """Modelled cost of the tokens that advanced its calls, in seconds; recomputation is not in it."""
    kv_blocks: int = 0
    """Blocks kept for it, on all executors and both tiers, shared ones included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutorSnapshot:
    """One attached executor."""

    executor_id: ExecutorId
    epoch: int
    model: str
    runner: str
    device: str
    running: int
    """Calls that hold a seat in its batch."""
    waiting: int
    """Calls placed on it and not in its batch."""
    num_blocks: int
    free_blocks: int
    """Blocks neither held by a call nor caching a prefix."""
    steps: int
    """Steps finished in this epoch."""
    draining: bool
    simulated: bool
    host_blocks: int = 0
    """Blocks of its host tier."""
    free_host_blocks: int = 0
    """Host blocks that hold nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSnapshot:
    """A model with at least one executor. Limits are the smallest over its executors."""

    model: str
    tokenizer_fingerprint: str
    max_model_len: int
    block_size: int
    num_blocks: int
    """Summed over its executors."""
    executors: int
    structured_output_backend: str
    reasoning_parser: str
    params_formats: tuple[str, ...]
    """Understood by all of its executors."""
    max_call_tokens: int
    simulated: bool
    """True when all of its executors are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StatisticsSnapshot:
    """Counters since start, and gauges: live calls, open and waiting programs."""

    policy: str
    calls_submitted: int
    """Accepted ones."""
    calls_finished: int
    calls_cancelled: int
    calls_failed: int
    calls_refused: int
    preemptions: int
    promotions: int
    demotions: int
    tokens: int
    recomputed_tokens: int
    cached_tokens: int
    steps: int
    live_calls: int
    open_programs: int
    swapped_out_blocks: int = 0
    """Blocks copied from devices to hosts."""
    swapped_in_blocks: int = 0
    """Blocks copied from hosts to devices."""
    evicted_blocks: int = 0
    """Findable blocks that were forgotten to make room."""
    waiting_programs: int = 0
    """Programs whose first call waits for room (working-set admission)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSnapshot:
    """Gauges for one frontend: its own calls, and the KV of all executors."""

    running: int
    waiting: int
    kv_usage: float
    """Share of device blocks held by live calls, 0..1."""
