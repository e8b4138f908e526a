"""Settings of the core. The shell fills them from the environment; nothing in the core reads it."""

from dataclasses import dataclass
from enum import Enum


class Tie(Enum):
    """What decides inside a level, among the waiting calls."""

    PROGRAM_ARRIVAL = "program"
    CALL_ARRIVAL = "call"


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreConfig:
    """Everything that can be chosen about scheduling. Raises ValueError, naming the field, on a bad value."""

    policy: str = "plas"
    """"fcfs" or "plas"."""
    tie: Tie = Tie.PROGRAM_ARRIVAL
    """Used by policies with levels; fcfs always goes by call arrival."""
    levels: int = 8
    """Queues Q1..QK. > 0."""
    first_quantum_s: float = 1.0
    """Seconds of service that a call may use in Q1 before it is demoted. > 0."""
    quantum_ratio: float = 2.0
    """Quantum of a level over that of the level before. >= 1."""
    level_boundaries_s: tuple[float, ...] | None = None
    """Service at which Q2, Q3, ..., QK begin, ascending; None: where the quanta before are used up."""
    starvation_beta: float | None = 10.0
    """Waiting over service from which a call is promoted to Q1; None: never. > 0."""

    short_prompt_tokens: int = 2048
    """Prompts up to this length go to the least used executor. >= 0."""

    idle_timeout_s: float = 600.0
    """An open program without live calls ends after this long. > 0."""
    open_programs_max: int = 100_000
    recent_programs_max: int = 1000
    """Ended programs that are still listed."""
    live_calls_max: int = 100_000
    unacknowledged_calls_max: int = 1000
    """Ended calls kept for each frontend that does not acknowledge; the oldest go first."""
    executor_losses_max: int = 3
    """A call that was in a batch of this many lost executors fails, so that one bad call cannot take down
    all."""

    def __post_init__(self) -> None:
        positive = (
            "levels",
            "first_quantum_s",
            "idle_timeout_s",
            "open_programs_max",
            "live_calls_max",
            "unacknowledged_calls_max",
            "executor_losses_max",
        )
        for name in positive:
            _require(getattr(self, name) > 0, name, "must be > 0", getattr(self, name))
        for name in ("short_prompt_tokens", "recent_programs_max"):
            _require(getattr(self, name) >= 0, name, "must be >= 0", getattr(self, name))
        _require(self.quantum_ratio >= 1, "quantum_ratio", "must be >= 1", self.quantum_ratio)
        beta = self.starvation_beta
        _require(beta is None or beta > 0, "starvation_beta", "must be > 0 or None", beta)


def _require(holds: bool, field: str, rule: str, value: object) -> None:
    if not holds:
        raise ValueError(f"{field} {rule}, got {value!r}")
