"""What a run has exercised, so that one sees that what should happen did happen.

Entries have two-part names such as ``fault.executor lost``. A run that is long enough and lacks one of `due`
has proven less than it claims: it fails.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import fields

from scheduler_svc.core.snapshots import StatisticsSnapshot
from sim.executor import Work

LONG_RUN_CALL_STEPS = 500_000
"""From this length on, everything that is due must have happened."""

_GAUGES = {"policy", "live_calls", "open_programs", "waiting_programs"}


class Tally:
    """Counts by name over all episodes of a run."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.work = Work()
        self.episodes = 0
        self._due: dict[str, None] = {}

    def add(self, kind: str, name: str, count: int = 1) -> None:
        """Counts something that happened."""
        self.counts[f"{kind}.{name}"] += count

    def expect(self, kind: str, names: Iterable[str]) -> None:
        """Says what a long run must have seen at least once."""
        self._due.update((f"{kind}.{name}", None) for name in names)

    def missing(self) -> list[str]:
        """What is due and has never happened; nothing while the run is short."""
        return [] if self.work.call_steps < LONG_RUN_CALL_STEPS else self.unseen()

    def unseen(self) -> list[str]:
        """What is due in a long run and has not happened yet."""
        return [name for name in self._due if not self.counts[name]]

    def add_statistics(self, statistics: StatisticsSnapshot) -> None:
        """Adds the core's own counters of an episode that is over."""
        for field in fields(statistics):
            if field.name not in _GAUGES:
                self.add("core", field.name, int(getattr(statistics, field.name)))

    def lines(self) -> list[str]:
        """The summary, a line for each kind."""
        work = self.work
        head = (
            f"{work.call_steps} call-steps in {work.steps} steps, {self.episodes} episodes; "
            f"{work.computed_tokens} tokens computed, blocks swapped out {work.blocks_swapped_out} "
            f"and in {work.blocks_swapped_in}"
        )
        kinds: dict[str, list[str]] = {}
        for name, count in sorted(self.counts.items()):
            kind, _, rest = name.partition(".")
            kinds.setdefault(kind, []).append(f"{rest} {count}")
        return [head, *(f"  {kind}: {', '.join(entries)}" for kind, entries in kinds.items())]
