"""All runs by their keys: how a chain of keys is followed from run to run.

Only the first key of each run is listed. That is enough: keys are chained, so a known key either is the first
of its run or comes there right behind the key that comes before it in every chain. Hence where one run ends,
or is left because the chain goes another way, the next key begins a run or is unknown.

Chains are given from their root on. A private tail may be given alone: it is given back alone (`call_kv`),
so a run begins with it.
"""

from collections.abc import Callable, Iterator, Sequence

from scheduler_svc.core.kv.runs import Key, Run


class RunIndex:
    """All runs of one executor."""

    def __init__(self, cut: Callable[[Run, int], Run]) -> None:
        """
        Args:
            cut: Cuts the first blocks of a run off, lists both parts where the whole was listed, and returns
                the head.
        """
        self.by_first: dict[Key, Run] = {}
        """Runs by their first keys."""
        self._cut = cut

    def prefix(self, keys: Sequence[Key]) -> list[tuple[Run, int]]:
        """The runs that make up the longest known prefix of `keys`, and how many keys of each are in it."""
        by_first = self.by_first
        found: list[tuple[Run, int]] = []
        at, end = 0, len(keys)
        while at < end and (run := by_first.get(keys[at])) is not None:
            count = run.agreement(keys, at)
            found.append((run, count))
            at += count
        return found

    def exactly(self, keys: Sequence[Key]) -> Iterator[Run]:
        """Those of `keys` that are known, as runs that hold nothing else, in order. Runs may change while it
        goes on."""
        at = 0
        while at < len(keys):
            run = self.by_first.get(keys[at])
            if run is None:
                at += 1
                continue
            count = run.agreement(keys, at)
            at += count
            yield self.upto(run, count)

    def upto(self, run: Run, count: int) -> Run:
        """The first blocks of a run as a run."""
        return run if count == len(run.keys) else self._cut(run, count)

    def unknown_upto(self, keys: Sequence[Key], at: int) -> int:
        """Where the stretch of unknown keys ends that begins at `at`."""
        if self.by_first.keys().isdisjoint(keys[at:]):
            return len(keys)
        while keys[at] not in self.by_first:
            at += 1
        return at

    def add(self, run: Run) -> None:
        """Lists a run that begins with another key than all others."""
        self.by_first[run.keys[0]] = run

    def remove(self, run: Run) -> None:
        """Forgets a run."""
        del self.by_first[run.keys[0]]
