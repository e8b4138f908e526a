"""What a policy decides, and what it does not.

The process table keeps all counters of a program at all times (so a policy can be changed while programs
live); a policy only reads them. It answers three questions:

- `service_at_arrival`: which of the program's counters places an arriving call;
- `levels`: how service maps to the queues Q1..QK and how much of it a call may use in each;
- `tie`: who goes first inside a level.

It never sees an executor, a block or the clock. Source: Autellix Alg. 1.
"""

from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Protocol

from scheduler_svc.core.config import CoreConfig, Tie

if TYPE_CHECKING:
    from scheduler_svc.core.call import Call
    from scheduler_svc.core.process_table import Program


@dataclass(frozen=True, slots=True)
class LevelTable:
    """The queues: level i takes calls with begins_s[i] <= service < begins_s[i + 1]; the last is unbounded.

    Raises: ValueError when the boundaries do not ascend from 0 or the lengths differ.
    """

    begins_s: tuple[float, ...]
    """Shape: (K,). begins_s[0] == 0."""
    quanta_s: tuple[float, ...]
    """Shape: (K,). Service a call may use in a level before it is demoted."""

    def __post_init__(self) -> None:
        if len(self.begins_s) != len(self.quanta_s):
            raise ValueError(f"{len(self.begins_s)} levels need as many quanta, got {len(self.quanta_s)}")
        if not self.begins_s or self.begins_s[0] != 0 or sorted(set(self.begins_s)) != list(self.begins_s):
            raise ValueError(f"level_boundaries_s must ascend and be > 0, got {self.begins_s[1:]}")

    def __len__(self) -> int:
        return len(self.begins_s)

    @property
    def last(self) -> int:
        """The lowest level, which nobody is demoted from."""
        return len(self.begins_s) - 1

    def level_of(self, service_s: float) -> int:
        """The level whose range holds `service_s` (>= 0)."""
        return sum(begin <= service_s for begin in self.begins_s) - 1

    @classmethod
    def single(cls) -> "LevelTable":
        """One queue for all."""
        return cls((0.0,), (float("inf"),))

    @classmethod
    def from_config(cls, config: CoreConfig) -> "LevelTable":
        """K quanta in geometric progression. By default a level begins where the quanta before it are used
        up, so a call that is demoted and a program that comes back with the same service meet in the same
        level.

        Raises: ValueError when level_boundaries_s has not one entry fewer than levels.
        """
        quanta = tuple(config.first_quantum_s * config.quantum_ratio**i for i in range(config.levels))
        begins = tuple(accumulate(quanta[:-1], initial=0.0))
        if config.level_boundaries_s is not None:
            begins = (0.0, *config.level_boundaries_s)
        if len(begins) != config.levels:
            raise ValueError(
                f"level_boundaries_s needs levels - 1 = {config.levels - 1} entries, got {len(begins) - 1}"
            )
        return cls(begins, quanta)


class Policy(Protocol):
    """Orders calls. Pure: equal inputs, equal answers."""

    name: str
    levels: LevelTable

    def service_at_arrival(self, program: "Program") -> float:
        """Seconds of service that place an arriving call of `program`."""
        ...

    def tie(self, call: "Call") -> tuple[int, ...]:
        """Order inside a level, smaller first. Ends with `call.seq`, so no two calls are equal; constant over
        the call's life."""
        ...


def tie_by(tie: Tie, call: "Call") -> tuple[int, ...]:
    """The tie-break that the option names: (program, call) or (call,) in order of arrival."""
    if tie is Tie.PROGRAM_ARRIVAL:
        return (call.program.seq, call.seq)
    return (call.seq,)
