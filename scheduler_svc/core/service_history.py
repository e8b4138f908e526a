"""What ended programs have used, by class: the empirical size distributions behind the Gittins policy.

Theory of operation. A distribution is a histogram over 48 sizes, two an octave from 10 ms to 2 days; a
program that used x counts as one that ended at the upper edge of its bucket. The histogram of a class begins
with a prior that weighs a quarter of a program and has a heavy tail (P[X > x] = s / (x + s)): the more one
has used, the more it is expected to need still. It fades with every real program, and old programs weigh half
after some hundred newer ones.

From S[i] programs that reached edge e[i], the rank at edge i is

    min over j > i of  sum over i <= k < j of S[k] (e[k+1] - e[k])  /  (S[i] - S[j])

in whole picoseconds, O(buckets^2) once in a while: ranks are made again only when the class has grown by an
eighth, so that they stand still between.

Both units of service are kept for every class. Memory is bounded: the class that was silent for longest is
forgotten when there are too many. Cancelled programs and programs without a call tell nothing of sizes and
are not counted. Programs of one anonymous call are a class of their own.
"""

from bisect import bisect_right
from collections import OrderedDict
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from scheduler_svc.core.config import ServiceUnit
from scheduler_svc.core.prices import PS_PER_S

if TYPE_CHECKING:
    from scheduler_svc.core.process_table import Program

CLASSES_MAX = 256
WEIGHT = 1 << 24
"""What one program counts."""
PRIOR_WEIGHT = WEIGHT // 4
PROGRAMS_MAX = 512
"""Beyond, all counts are halved."""
_OCTAVES = 24
_FIRST_PS = PS_PER_S // 100
_PRIOR_SCALE_PS = PS_PER_S // 4

EDGES_PS = (
    0,
    *(edge for octave in range(_OCTAVES) for edge in (_FIRST_PS << octave, (_FIRST_PS << octave) * 3 // 2)),
)
"""Bucket i holds sizes from EDGES_PS[i] to EDGES_PS[i + 1]; the last one is as wide as all before it."""
_WIDTHS_PS = (*(after - before for before, after in pairwise(EDGES_PS)), EDGES_PS[-1])
BUCKETS = len(EDGES_PS)

ClassKey = tuple[bool, str]
"""(program of one anonymous call, class name)"""


def _prior() -> list[int]:
    reached = [PRIOR_WEIGHT * _PRIOR_SCALE_PS // (edge + _PRIOR_SCALE_PS) for edge in EDGES_PS]
    return [here - after for here, after in zip(reached, [*reached[1:], 0], strict=True)]


PRIOR = tuple(_prior())
"""Pseudo-programs per bucket; at least one reaches the last bucket, so every rank is defined."""


class SizeDistribution:
    """Sizes of the ended programs of one class, in one unit."""

    __slots__ = ("_counts", "_programs", "_programs_ranked", "_ranks_ps")

    def __init__(self) -> None:
        self._counts = [0] * BUCKETS
        self._programs = 0
        self._programs_ranked = 0
        self._ranks_ps = PRIOR_RANKS_PS

    def add(self, used_ps: int) -> None:
        """Counts a program that ended after `used_ps`."""
        self._counts[bisect_right(EDGES_PS, used_ps) - 1] += WEIGHT
        self._programs += 1
        if self._programs >= PROGRAMS_MAX:
            self._counts = [count // 2 for count in self._counts]
            self._programs = self._programs_ranked = PROGRAMS_MAX // 2
        if self._programs >= self._programs_ranked + max(8, self._programs_ranked // 8):
            self._programs_ranked = self._programs
            self._ranks_ps = ranks_ps([a + b for a, b in zip(self._counts, PRIOR, strict=True)])

    def rank_ps(self, used_ps: int) -> int:
        """Gittins rank of a program of this class that has used `used_ps`; smaller is served first."""
        return self._ranks_ps[bisect_right(EDGES_PS, used_ps) - 1]


def ranks_ps(counts: list[int]) -> tuple[int, ...]:
    """Ranks at the edges, from programs per bucket. Shapes: (BUCKETS,). counts[-1] > 0."""
    reached = [*reversed(list(accumulate(reversed(counts)))), 0]
    return tuple(_rank_at(start, reached) for start in range(BUCKETS))


def _rank_at(start: int, reached: list[int]) -> int:
    used_ps = 0
    prices: list[int] = []
    for bucket in range(start, BUCKETS):
        used_ps += reached[bucket] * _WIDTHS_PS[bucket]
        done = reached[start] - reached[bucket + 1]
        if done:
            prices.append(used_ps // done)
    return min(prices)


PRIOR_RANKS_PS = ranks_ps(list(PRIOR))
_PRIOR = SizeDistribution()


class ServiceHistory:
    """Size distributions by class."""

    def __init__(self, *, classes_max: int = CLASSES_MAX) -> None:
        self._classes_max = classes_max
        self._classes: OrderedDict[ClassKey, dict[ServiceUnit, SizeDistribution]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._classes)

    def program_ended(self, program: "Program") -> None:
        """Counts a program that is over. O(1) amortised."""
        if not program.finished_calls:
            return
        key = _class_of(program)
        if key not in self._classes:
            self._classes[key] = {unit: SizeDistribution() for unit in ServiceUnit}
        self._classes.move_to_end(key)
        for unit, sizes in self._classes[key].items():
            sizes.add(program.used_ps(unit))
        if len(self._classes) > self._classes_max:
            self._classes.popitem(last=False)

    def of(self, program: "Program", unit: ServiceUnit) -> SizeDistribution:
        """The distribution of the program's class; the prior when nothing is known. Not to be added to."""
        sizes = self._classes.get(_class_of(program))
        return _PRIOR if sizes is None else sizes[unit]


def _class_of(program: "Program") -> ClassKey:
    return (program.single_call, program.class_name)
