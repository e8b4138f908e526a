"""In which order the runs of a tier leave it: by standing, then by age.

What is known to be ENDED or IDLE is in a heap each (`Lapsed`), and goes first; the rest is LIVE and goes by
age alone. On the device a run is given back newest of all, so that a list keeps all unheld runs by age
(`AgeList`). On the host runs arrive that are older than some that are there; they are in a heap (`AgeHeap`).

Heaps list a run whenever it can be evicted and has a new stamp, or has lapsed. Nothing is taken out before it
comes up: what has been used, held, moved, forgotten or wanted again since has another stamp or cannot be
evicted, and is thrown away then.
"""

from collections.abc import Callable, Iterator
from heapq import heapify, heappop, heappush

from scheduler_svc.core.kv.retention import NEVER, Retention
from scheduler_svc.core.kv.runs import Run, Standing

Entry = tuple[int, Run]
"""(stamp, run). A stamp is that of one block; no two runs ever have the same, so they are not compared."""

_SPARE_ENTRIES = 64


class AgeList:
    """The runs of one tier, oldest first. A run is in one such list at most."""

    def __init__(self) -> None:
        self.oldest: Run | None = None
        self._newest: Run | None = None

    def append(self, run: Run) -> None:
        """Adds a run that is newer than all others."""
        last = self._newest
        if last is None:
            self.oldest = run
        else:
            run.older, last.newer = last, run
        self._newest = run

    def insert_after(self, run: Run, next_one: Run) -> None:
        """Adds the run that is the next newer one after a run of the list."""
        after = run.newer
        if after is None:
            self.append(next_one)
        else:
            next_one.older, next_one.newer = run, after
            run.newer = after.older = next_one

    def remove(self, run: Run) -> None:
        """Takes a run of the list out."""
        older, newer = run.older, run.newer
        if older is None:
            self.oldest = newer
        else:
            older.newer = newer
        if newer is None:
            self._newest = older
        else:
            newer.older = older
        run.older = run.newer = None

    def __iter__(self) -> Iterator[Run]:
        run = self.oldest
        while run is not None:
            yield run
            run = run.newer


class AgeHeap:
    """The same in any order of arrival, of runs that may have gone."""

    def __init__(self, evictable: Callable[[Run], bool], blocks: int) -> None:
        """
        Args:
            evictable: Whether a run lies in the tier and nothing keeps it there.
            blocks: Size of the tier.
        """
        self._evictable = evictable
        self._entries: list[Entry] = []
        self._entries_max = 2 * blocks + _SPARE_ENTRIES
        """More are rid of the stale ones."""

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, run: Run) -> None:
        """Lists a run that can be evicted, under its stamp."""
        heappush(self._entries, (run.stamp, run))
        if len(self._entries) > self._entries_max:
            self._entries = list(dict.fromkeys(entry for entry in self._entries if self._is_valid(*entry)))
            heapify(self._entries)

    def oldest(self) -> Run | None:
        """The least recently used run that can be evicted."""
        entries = self._entries
        while entries:
            stamp, run = entries[0]
            if self._is_valid(stamp, run):
                return run
            heappop(entries)
        return None

    def _is_valid(self, stamp: int, run: Run) -> bool:
        return run.stamp == stamp and self._evictable(run)

    def listed(self) -> set[Run]:
        """The runs that will come up. Slow: for checks."""
        return {run for stamp, run in self._entries if self._is_valid(stamp, run)}


class Lapsed:
    """The runs of one tier that no active program retains, by standing and age."""

    def __init__(self, retention: Retention, evictable: Callable[[Run], bool], blocks: int) -> None:
        """
        Args:
            evictable: As for `AgeHeap`.
            blocks: Size of the tier.
        """
        self._retention = retention
        self._ended = AgeHeap(lambda run: not run.retainers and evictable(run), blocks)
        self._idle = AgeHeap(lambda run: bool(run.retainers) and not run.warm and evictable(run), blocks)

    def add(self, run: Run) -> None:
        """Lists a run without warm pairs that can be evicted."""
        (self._idle if run.retainers else self._ended).add(run)

    def __bool__(self) -> bool:
        """Whether there may be such runs."""
        return bool(self._ended) or bool(self._idle) or self._retention.is_unsettled

    def oldest(self, standing: Standing, before: int = NEVER) -> Run | None:
        """The oldest run of that standing, ENDED or IDLE, that can be evicted; None: none is older than
        `before`.

        For IDLE, all ENDED pairs must be settled: ask for the oldest ENDED one first.
        """
        heap = self._ended if standing is Standing.ENDED else self._idle
        while True:
            run = heap.oldest()
            if run is not None and run.stamp >= before:
                run = None
            if not self._retention.settle(standing, before if run is None else run.stamp):
                return run

    def listed(self) -> set[Run]:
        """The runs that will come up. Slow: for checks."""
        return self._ended.listed() | self._idle.listed()
