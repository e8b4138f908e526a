"""The seam inside the executor: what every runner of plans offers.

A runner is driven from one thread, the step thread, in the order of the scheduler's messages:
`announce`* -> `execute` -> `announce`* -> `execute` ... `prepare` alone runs on another thread.
The runner keeps each call's prompt, parameters and tokens from `announce` until a plan releases it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnouncedCall:
    """A call the runner must know before a plan names its handle."""

    handle: int
    call_id: str
    program_id: str
    prompt_token_ids: list[int]
    output_token_ids: list[int]
    """Generated elsewhere: sampling continues after them."""
    params: bytes
    params_format: str
    needs_preparation: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPlan:
    """A decoded executor/v1 StepPlan; one KV group. Rows index `handles`."""

    step: int
    handles: Sequence[int]
    chunks: Mapping[int, int]
    """row -> tokens to compute, where that is not 1."""
    joined: Mapping[int, int]
    """row -> leading tokens whose KV its blocks hold."""
    blocks: Mapping[int, Sequence[int]]
    """row -> whole block table (joined rows) or ids to append (others)."""
    released: Sequence[int]
    swap_out: Sequence[tuple[int, int]] = ()
    """(device block, host block) copies, done first. Host ids are 0..host_blocks-1; none is special."""
    swap_in: Sequence[tuple[int, int]] = ()
    """(host block, device block) copies, done second; then the rows. In each list a target occurs once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """What a step did. `handles` and `tokens` have the same length, in plan order."""

    step: int
    handles: Sequence[int]
    tokens: Sequence[int]
    step_s: float
    failures: Mapping[int, str] = field(default_factory=dict)
    payloads: Mapping[int, bytes] = field(default_factory=dict)
    """handle -> serialised autellix.executor.v1.Logprobs."""
    swap_s: float = 0.0
    """Seconds of the plan's copies, not part of `step_s`."""
    swap_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerInfo:
    """What registration tells the scheduler; every value is as resolved on this machine."""

    model: str
    model_fingerprint: str
    tokenizer_fingerprint: str
    runner: str
    simulated: bool
    block_size: int
    num_blocks: int
    host_blocks: int
    block_bytes: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    vocab_size: int
    max_plans_in_flight: int
    params_formats: tuple[str, ...]
    structured_output_backend: str
    reasoning_parser: str
    world_size: int
    device: str
    prefix_caching: bool
    dtype: str


class PlanViolation(Exception):
    """A plan names a handle, a block or a number of tokens it must not: the stream must be closed."""


class Pending(Protocol):
    """A step that has been started."""

    def result(self) -> StepResult:
        """Waits for the step to end; called on the result thread, in step order.

        Raises: PlanViolation when the runner, being in another process, could not tell in `execute`."""
        ...


class Runner(Protocol):
    """Executes plans."""

    @property
    def info(self) -> RunnerInfo:
        """What this runner is."""
        ...

    def announce(self, call: AnnouncedCall) -> None:
        """Takes a call in. A call that cannot be run is remembered as failed and reported by the first step
        that names it; never raises for one bad call."""
        ...

    def prepare(self, handle: int) -> str:
        """Does slow work ahead for an announced call (compiles its grammar), on any thread.

        Returns: empty string when ready, else why this call cannot run."""
        ...

    def execute(self, plan: StepPlan) -> Pending:
        """Starts a step; returns as soon as the next plan may be started.

        Raises: PlanViolation when the plan contradicts what the runner holds."""
        ...

    def reset(self) -> None:
        """Forgets all calls and all KV: the executor is about to register anew."""
        ...

    def close(self) -> None:
        """Frees the device."""
        ...
