"""What a policy decides, and what it does not.

A policy reads counters of calls and programs, in picoseconds of its unit; never the clock, an executor or a
block. All counters are kept at all times, whichever policy reads them, so it can be changed while calls live.
It answers:

- `level_at_arrival`: the queue of an arriving call, from what its program has used;
- `quantum_ps`, `level_after_quantum`: how much service a call may use in a level, and where it goes then;
- `tie`, `running_first`: who goes first inside a level.

Whether waiting calls that fit may pass one that does not (`CoreConfig.fit`) is the planner's business.

Source: Autellix Alg. 1.
"""

from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, ClassVar, Protocol

from scheduler_svc.core.config import CoreConfig, ServiceUnit, Tie
from scheduler_svc.core.prices import PS_PER_S

if TYPE_CHECKING:
    from scheduler_svc.core.call import Call
    from scheduler_svc.core.process_table import Program

FOREVER_PS = 1 << 62
"""A quantum that nobody uses up: 53 days."""


@dataclass(frozen=True, slots=True)
class LevelTable:
    """The queues: level i takes calls with begins_ps[i] <= service < begins_ps[i + 1]; the last is
    unbounded."""

    begins_ps: tuple[int, ...]
    """Shape: (K,). begins_ps[0] == 0, ascending."""
    quanta_ps: tuple[int, ...]
    """Shape: (K,). Service a call may use in a level before it is demoted. 0 < quantum <= FOREVER_PS."""

    def __len__(self) -> int:
        return len(self.begins_ps)

    @property
    def last(self) -> int:
        """The lowest level, which nobody is demoted from."""
        return len(self.begins_ps) - 1

    def level_of(self, service_ps: int) -> int:
        """The level whose range holds `service_ps` (>= 0). O(log K)."""
        return bisect_right(self.begins_ps, service_ps) - 1

    @classmethod
    def single(cls) -> "LevelTable":
        """One queue for all."""
        return cls((0,), (FOREVER_PS,))

    @classmethod
    def from_config(cls, config: CoreConfig) -> "LevelTable":
        """K quanta in geometric progression. By default a level begins where the quanta before it are used
        up, so a call that is demoted and a program that comes back with the same service meet in the same
        level.

        In the last level the quantum is endless, unless calls take turns there (`Tie.QUEUE_ARRIVAL`).
        """
        quanta = [_ps(config.first_quantum_s * config.quantum_ratio**level) for level in range(config.levels)]
        begins = tuple(accumulate(quanta[:-1], initial=0))
        if config.level_boundaries_s is not None:
            begins = (0, *(_ps(boundary_s) for boundary_s in config.level_boundaries_s))
        if config.tie is not Tie.QUEUE_ARRIVAL:
            quanta[-1] = FOREVER_PS
        return cls(begins, tuple(quanta))


class Policy(Protocol):
    """Orders calls. Equal inputs, equal answers; asking changes nothing."""

    name: ClassVar[str]
    unit: ServiceUnit
    """Which counters it reads."""
    levels: LevelTable
    reads_live_service: ClassVar[bool]
    """Whether it looks at what live calls have used so far, besides the call that it is asked about."""
    running_first: bool
    """Whether a running call keeps its seat against the waiting ones of its own level. False: the order alone
    decides."""

    def level_at_arrival(self, call: "Call") -> int:
        """The level of a call that arrives. What the call itself has used counts too: nothing at arrival, but
        not at a change of policy. O(log K)."""
        ...

    def level_of_next(self, program: "Program") -> int:
        """The level that the program's next call would get if it named no parents."""
        ...

    def quantum_ps(self, level: int) -> int:
        """Service, in picoseconds of `unit`, that a call may use in a level before `level_after_quantum` is
        asked. > 0."""
        ...

    def level_after_quantum(self, call: "Call") -> int:
        """The level of a call whose quantum is used up; the same level: it goes to the tail of it."""
        ...

    def tie(self, call: "Call", enqueued: int) -> tuple[int, ...]:
        """Order inside a level, smaller first; no two calls are equal.

        Args:
            enqueued: Number of the call's entry into its level, ascending within a queue.
        """
        ...


class LevelPolicy:
    """What policies with levels have in common; `level_at_arrival` and `level_of_next` make the
    difference."""

    reads_live_service: ClassVar[bool] = False

    def __init__(self, config: CoreConfig) -> None:
        self.unit = config.service_unit
        self.levels = LevelTable.from_config(config)
        self.running_first = config.running_first
        self._tie = config.tie

    def quantum_ps(self, level: int) -> int:
        """From the table."""
        return self.levels.quanta_ps[level]

    def level_after_quantum(self, call: "Call") -> int:
        """One level down; the last one keeps its calls."""
        return min(call.level + 1, self.levels.last)

    def tie(self, call: "Call", enqueued: int) -> tuple[int, ...]:
        """As the option says. By arrival of the program by default: ties by call arrival let programs take
        turns, and every turn costs the others their prefix cache."""
        if self._tie is Tie.PROGRAM_ARRIVAL:
            return by_program(call)
        return (call.seq,) if self._tie is Tie.CALL_ARRIVAL else (enqueued,)


def by_program(call: "Call") -> tuple[int, int, int]:
    """Earlier programs first, and within a program earlier calls. Programs of one anonymous call come after
    all others of the level: a flood of them passes no identified program."""
    program = call.program
    return (program.single_call, program.seq, call.seq)


def _ps(seconds: float) -> int:
    return min(round(seconds * PS_PER_S), FOREVER_PS)
