"""Settings of the core. The shell fills them from the environment; nothing in the core reads it.

Those named in `POLICY_OPTIONS` may be changed while calls live (`events.PolicyChanged`), the others are fixed
at the start. A preset gives several of them a value at once; what is chosen besides it wins.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from math import inf
from types import MappingProxyType
from typing import Any

LEVELS_MAX = 64
FIRST_QUANTUM_S_MIN, FIRST_QUANTUM_S_MAX = 1e-6, 3600.0
QUANTUM_RATIO_MAX = 100.0


class ServiceUnit(Enum):
    """Which of the two counters of service the policy reads; both are always kept."""

    COST = "cost"
    """Modelled seconds of the tokens that advanced a call: the same on a busy day, and recomputation is
    free."""
    SECONDS = "seconds"
    """Wall seconds of the steps that it took part in."""


class Tie(Enum):
    """What decides inside a level."""

    PROGRAM_ARRIVAL = "program"
    """The earlier program; programs of a single anonymous call after all others."""
    CALL_ARRIVAL = "call"
    """The earlier call."""
    QUEUE_ARRIVAL = "queue"
    """First in, first out: whoever entered the level earlier. A used-up quantum puts a call at the tail, in
    the last level as well (round robin). Algorithm 1's."""


class Fit(Enum):
    """What becomes of the calls behind a waiting one that does not fit."""

    STRICT = "strict"
    """They wait too: nobody overtakes it."""
    BACKFILL = "backfill"
    """Those that fit go ahead."""


class KvPreempted(Enum):
    """What becomes of a preempted call's KV."""

    AUTO = "auto"
    """Paused while memory allows, then swapped or dropped, whichever is estimated to cost less."""
    PAUSE = "pause"
    """Stays on the device until its memory is needed."""
    SWAP = "swap"
    """Goes to the host as far as there is room: at once, or when others that share it let it go."""
    DROP = "drop"
    """Forgotten: computed again."""


class Admission(Enum):
    """Which programs may make their first call run."""

    NONE = "none"
    """All."""
    WORKING_SET = "working_set"
    """Those that fit beside the KV of the live programs; the others wait."""


class PlannerKind(Enum):
    """How plans are made; the plans are the same."""

    COLUMNAR = "columnar"
    """Steady rows are columns: cheap."""
    PLAIN = "plain"
    """Every row is an object: the oracle of the other one."""


class BadOption(ValueError):
    """A setting has a value that it cannot have; the message names setting, limit and value."""

    def __init__(self, field: str, limit: str, value: object) -> None:
        super().__init__(f"{field} must be {limit}, got {value!r}")
        self.field = field
        self.limit = limit
        self.value = value


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreConfig:
    """Everything that can be chosen about scheduling.

    Raises: BadOption (a ValueError) on a bad value.
    """

    policy: str = "plas"
    """"fcfs", "program_fcfs", "mlfq", "plas", "atlas" or "gittins"."""
    service_unit: ServiceUnit = ServiceUnit.COST
    """Unit of quanta, boundaries and of all service that the policy compares."""
    tie: Tie = Tie.PROGRAM_ARRIVAL
    """Used by policies with levels; the two kinds of fcfs are what their names say."""
    running_first: bool = True
    """A running call keeps its seat against the waiting ones of its own level; False: the order alone
    decides."""
    levels: int = 8
    """Queues Q1..QK. 1..64."""
    first_quantum_s: float = 1.0
    """Service that a call may use in Q1 before it is demoted. 1e-6..3600."""
    quantum_ratio: float = 2.0
    """Quantum of a level over that of the level before. 1..100."""
    level_boundaries_s: tuple[float, ...] | None = None
    """Service at which Q2, Q3, ..., QK begin, ascending from > 0; None: where the quanta before are used
    up."""
    starvation_beta: float | None = 10.0
    """Waiting over service from which a call is promoted to Q1; None: never. > 0."""
    fit: Fit = Fit.STRICT

    preemption_grace_s: float = 0.05
    """Modelled service that a call gets after it started before another may take its seat; a shortage of
    memory ignores it. >= 0."""
    kv_preempted: KvPreempted = KvPreempted.AUTO
    admission: Admission = Admission.NONE
    idle_kv_s: float = 30.0
    """A program without live calls for this long has its KV evicted next after that of ended ones. >= 0."""

    planner: PlannerKind = PlannerKind.COLUMNAR

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
        for name, (least, most) in _RANGES.items():
            _require(least <= getattr(self, name) <= most, name, f"{least:g}..{most:g}", getattr(self, name))
        for name in _POSITIVE:
            _require(0 < getattr(self, name) < inf, name, "> 0", getattr(self, name))
        for name in _NOT_NEGATIVE:
            _require(0 <= getattr(self, name) < inf, name, ">= 0", getattr(self, name))
        beta = self.starvation_beta
        _require(beta is None or 0 < beta < inf, "starvation_beta", "> 0 or None", beta)
        if self.level_boundaries_s is not None:
            _check_boundaries(self.level_boundaries_s, self.levels)


_RANGES: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "levels": (1, LEVELS_MAX),
        "first_quantum_s": (FIRST_QUANTUM_S_MIN, FIRST_QUANTUM_S_MAX),
        "quantum_ratio": (1, QUANTUM_RATIO_MAX),
    }
)
_POSITIVE = (
    "idle_timeout_s",
    "open_programs_max",
    "live_calls_max",
    "unacknowledged_calls_max",
    "executor_losses_max",
)
_NOT_NEGATIVE = ("short_prompt_tokens", "recent_programs_max", "preemption_grace_s", "idle_kv_s")

POLICY_OPTIONS = frozenset(
    {
        "policy",
        "service_unit",
        "tie",
        "running_first",
        "levels",
        "first_quantum_s",
        "quantum_ratio",
        "level_boundaries_s",
        "starvation_beta",
        "fit",
        "preemption_grace_s",
    }
)
"""Fields of CoreConfig that may be changed while calls live."""

PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "default": MappingProxyType(
            {
                "service_unit": ServiceUnit.COST,
                "tie": Tie.PROGRAM_ARRIVAL,
                "running_first": True,
                "fit": Fit.STRICT,
                "preemption_grace_s": 0.05,
            }
        ),
        "paper": MappingProxyType(
            {
                "service_unit": ServiceUnit.SECONDS,
                "tie": Tie.QUEUE_ARRIVAL,
                "running_first": False,
                "fit": Fit.STRICT,
                "preemption_grace_s": 0.0,
            }
        ),
    }
)
"""`paper` is Algorithm 1 to the letter (see `queues`), with whatever policy, levels, quanta and beta are
chosen: the paper states none of these. `default` takes it back."""


def _check_boundaries(boundaries_s: tuple[float, ...], levels: int) -> None:
    ascends = list(boundaries_s) == sorted(set(boundaries_s)) and all(
        0 < start < inf for start in boundaries_s
    )
    _require(ascends, "level_boundaries_s", "ascending and > 0", boundaries_s)
    fits = len(boundaries_s) == levels - 1
    _require(fits, "level_boundaries_s", f"levels - 1 = {levels - 1} values", boundaries_s)


def _require(holds: bool, field: str, limit: str, value: object) -> None:
    if not holds:
        raise BadOption(field, limit, value)
