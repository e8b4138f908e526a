"""What calls would leave behind if they left: asked before anybody is preempted for the sake of memory."""

from collections import Counter
from collections.abc import Sequence

from scheduler_svc.core.ids import BlockId
from scheduler_svc.core.kv.index import RunIndex
from scheduler_svc.core.kv.runs import Key, Run


class Departures:
    """How many device blocks would be free if some calls left: those that nobody else holds."""

    def __init__(self, index: RunIndex) -> None:
        self._index = index
        self._leaving: Counter[Run] = Counter()

    def add(self, blocks: Sequence[BlockId], keys: Sequence[Key]) -> int:
        """One more call leaves.

        Args:
            blocks: Its table.
            keys: From the root on, at least those of all that it has found or published.

        Returns: blocks that are free then and were not before.
        """
        freed, at, end = len(blocks), 0, min(len(blocks), len(keys))
        while at < end:
            run = self._index.by_first.get(keys[at])
            if run is None:
                at += 1
            elif run.device is not None and run.device[0] == blocks[at]:
                self._leaving[run] += 1
                if self._leaving[run] < run.holders:
                    freed -= len(run.keys)
                at += len(run.keys)
            else:
                at += run.agreement(keys, at)
        return freed
