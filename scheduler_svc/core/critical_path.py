"""Where the paths of a program's calls end: what ATLAS is exact by.

The end of a call's path is what the call inherited when it arrived, plus what it used itself. A call that
names parents inherits the latest of their ends; for that the ends of ended calls are kept, a few for every
program (a chain or a fork names recent calls), many for one that has named parents before. What is not kept
any more counts as unknown, and the call inherits the program's longest path instead, like one that names no
parents: the paper's rule of one scalar. Source: Autellix section on ATLAS, p(c) = max over parents k of (p(k)
+ t(k)).
"""

from dataclasses import dataclass

from scheduler_svc.core.config import ServiceUnit
from scheduler_svc.core.ids import CallId

ENDS_OF_ANY_PROGRAM = 8
ENDS_WHERE_PARENTS_ARE_NAMED = 1024


@dataclass(slots=True, init=False)
class Path:
    """Service along a path of calls, in both units. Nobody changes one, and every call that ends makes one:
    so it is made as `effects` are."""

    service_ps: int
    cost_ps: int

    def __init__(self, service_ps: int = 0, cost_ps: int = 0) -> None:
        self.service_ps = service_ps
        self.cost_ps = cost_ps

    def of(self, unit: ServiceUnit) -> int:
        """In one unit."""
        return self.cost_ps if unit is ServiceUnit.COST else self.service_ps

    def longer(self, other: "Path") -> "Path":
        """The longer one, each unit by itself."""
        if other.service_ps >= self.service_ps and other.cost_ps >= self.cost_ps:
            return other
        return Path(max(self.service_ps, other.service_ps), max(self.cost_ps, other.cost_ps))


NO_PATH = Path()


class PathEnds:
    """Path ends of a program's newest ended calls."""

    __slots__ = ("_ends", "_ends_max")

    def __init__(self) -> None:
        self._ends: dict[CallId, Path] = {}
        """In order of ending."""
        self._ends_max = ENDS_OF_ANY_PROGRAM

    def __len__(self) -> int:
        return len(self._ends)

    def get(self, call_id: CallId) -> Path | None:
        """Where the path of an ended call ends, if that is still known."""
        return self._ends.get(call_id)

    def add(self, call_id: CallId, end: Path) -> None:
        """Notes an ended call."""
        self._ends[call_id] = end
        if len(self._ends) > self._ends_max:
            del self._ends[next(iter(self._ends))]

    def parents_are_named(self) -> None:
        """From now on many are kept."""
        self._ends_max = ENDS_WHERE_PARENTS_ARE_NAMED

    def clear(self) -> None:
        """The program is over."""
        self._ends.clear()
