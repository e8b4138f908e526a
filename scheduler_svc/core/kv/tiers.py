"""The two tiers: which blocks are free, and whose turn it is to go."""

from collections.abc import Iterable, Sequence

from scheduler_svc.core.ids import BlockId
from scheduler_svc.core.kv.order import AgeHeap, AgeList, Lapsed
from scheduler_svc.core.kv.retention import NEVER, Retention
from scheduler_svc.core.kv.runs import Run, Standing


class DeviceTier:
    """The device blocks. Each is plain, or in a run, held or not, or a call holds it that has not named it.

    Block 0 is the null block and is never handed out.
    """

    def __init__(self, size: int, retention: Retention) -> None:
        """
        Args:
            size: Blocks, the null block included. >= 1.
        """
        self.size = size
        self.plain = [BlockId(block) for block in range(size - 1, 0, -1)]
        self.unheld = 0
        """Blocks of runs that nobody holds."""
        self.by_age = AgeList()
        """Those runs."""
        self.lapsed = Lapsed(retention, self.can_evict, size)
        """Those of them that are not LIVE."""

    def can_evict(self, run: Run) -> bool:
        """Whether a run lies here and nobody holds it."""
        return run.device is not None and not run.holders

    def worst_lapsed(self) -> tuple[Standing, Run] | None:
        """The run that goes first, unless all that nobody holds are LIVE."""
        if self.lapsed:
            for standing in (Standing.ENDED, Standing.IDLE):
                run = self.lapsed.oldest(standing)
                if run is not None:
                    return standing, run
        return None

    def oldest(self) -> Run:
        """The least recently used unheld run, which goes first if all are LIVE. There must be one."""
        assert self.by_age.oldest is not None, "an unheld run is listed"
        return self.by_age.oldest

    def hold(self, run: Run) -> None:
        """One call more holds a run that lies here."""
        if not run.holders:
            self.unheld -= len(run.keys)
            self.by_age.remove(run)
        run.holders += 1

    def unhold(self, run: Run) -> None:
        """One call less does. It was just used."""
        run.holders -= 1
        if not run.holders:
            self.unheld += len(run.keys)
            self.by_age.append(run)
            if not run.warm:
                self.lapsed.add(run)

    def renew(self, run: Run) -> None:
        """A run was used by a call that has it in other blocks, if it lies here."""
        if self.can_evict(run):
            self.by_age.remove(run)
            self.by_age.append(run)
            self.lapse(run)

    def lapse(self, run: Run) -> None:
        """Lists a run, if it lies here and no active program wants it, under its standing or stamp, which
        are new."""
        if not run.warm and self.can_evict(run):
            self.lapsed.add(run)

    def cut(self, head: Run, tail: Run) -> None:
        """The head of a run was cut off."""
        if self.can_evict(tail):
            self.by_age.insert_after(tail, head)
            self.lapse(head)

    def shorten(self, run: Run, count: int) -> list[BlockId]:
        """Takes the last blocks, but not all, of an unheld run that is only here. Returns: them."""
        assert run.device is not None, "it lies here"
        blocks = run.device[-count:]
        run.shorten(count)
        self.unheld -= count
        return blocks

    def remove(self, run: Run) -> list[BlockId]:
        """Takes a run off its blocks, which are the caller's."""
        blocks = run.device
        assert blocks is not None, "it lies here"
        run.device = None
        if not run.holders:
            self.unheld -= len(blocks)
            self.by_age.remove(run)
        return blocks

    def check(self, runs: Iterable[Run], tables: Iterable[Sequence[BlockId]]) -> None:
        """Checks the tier against all runs and the block tables of all calls.

        Raises: AssertionError.
        """
        counted = [0] * self.size
        for table in tables:
            assert len(set(table)) == len(table), f"a table holds a block twice: {table}"
            for block in table:
                counted[block] += 1
        here = [(run, block) for run in runs for block in run.device or ()]
        for run, block in here:
            assert counted[block] == run.holders, f"references do not add up: {block}"
            counted[block] = 0
        assert max(counted) <= 1, "references do not add up: a block without a name has two holders"
        nameless = [block for block, count in enumerate(counted) if count]
        places = [*self.plain, *nameless, *(block for _, block in here)]
        assert sorted(places) == list(range(1, self.size)), (
            "references do not add up: a block is in no place or in two"
        )
        unheld = {run for run, _ in here if not run.holders}
        assert self.unheld == sum(map(len, unheld)), "unheld blocks are miscounted"
        by_age = list(self.by_age)
        assert set(by_age) == unheld, "an unheld run would never be evicted"
        assert [run.stamp for run in by_age] == sorted(run.stamp for run in unheld), "runs are out of order"
        lapsed = {run for run in unheld if not run.warm}
        assert self.lapsed.listed() == lapsed, "runs are not listed by their standing"


class HostTier:
    """The host blocks. Each is in a run, or plain, or read once more though it is in no run any more."""

    def __init__(self, size: int, retention: Retention) -> None:
        self.size = size
        self.plain = [BlockId(block) for block in range(size - 1, -1, -1)]
        self.reading: dict[BlockId, None] = {}
        """Blocks that a noted swap-in reads."""
        self.read: list[Run] = []
        """Runs that may have such blocks."""
        self.leaving: dict[BlockId, None] = {}
        """Those of the blocks that are in no run any more: plain once they are read."""
        self.by_age = AgeHeap(self.can_evict, size)
        """Runs that can be evicted."""
        self.lapsed = Lapsed(retention, self.can_evict, size)
        """Those of them that are not LIVE."""

    def can_evict(self, run: Run) -> bool:
        """Whether a run lies here and is neither waited for nor read."""
        return run.host is not None and not run.pins and not self.is_read(run)

    def is_read(self, run: Run) -> bool:
        """Whether noted swap-ins read a run that lies here: all its blocks or none."""
        return run.host is not None and run.host[0] in self.reading

    def relist(self, run: Run) -> None:
        """Lists a run, if it lies here, that has come, was used, or is not kept here any more."""
        if run.host is not None and self.can_evict(run):
            self.by_age.add(run)
            if not run.warm:
                self.lapsed.add(run)

    def lapse(self, run: Run) -> None:
        """Lists a run, if it lies here and no active program wants it, under its standing, which is new."""
        if not run.warm and self.can_evict(run):
            self.lapsed.add(run)

    def worst(self, standing: Standing, before: int) -> Run | None:
        """The run that goes first, if it goes before one of this standing and age."""
        for worse in (Standing.ENDED, Standing.IDLE):
            if worse > standing:
                return None
            run = self.lapsed.oldest(worse, NEVER if worse < standing else before)
            if run is not None:
                return run
        run = self.by_age.oldest() if standing is Standing.LIVE else None
        return run if run is not None and run.stamp < before else None

    def free(self, blocks: Iterable[BlockId]) -> None:
        """Blocks that are in no run any more are plain, as soon as nobody reads them."""
        for block in blocks:
            if block in self.reading:
                self.leaving[block] = None
            else:
                self.plain.append(block)

    def read_done(self, block: BlockId) -> None:
        """The swap-in that reads this block is out, or is not needed any more."""
        del self.reading[block]
        if block in self.leaving:
            del self.leaving[block]
            self.plain.append(block)

    def all_read(self) -> None:
        """All swap-ins are out."""
        for block in list(self.reading):
            self.read_done(block)
        for run in self.read:
            self.relist(run)
        self.read.clear()

    def check(self, runs: Iterable[Run]) -> None:
        """Checks the tier against all runs.

        Raises: AssertionError.
        """
        here = [run for run in runs if run.host is not None]
        blocks = [block for run in here for block in run.host or ()]
        assert sorted([*self.plain, *blocks, *self.leaving]) == list(range(self.size)), (
            "a host block is in no place or in two"
        )
        assert self.leaving.keys() <= self.reading.keys(), "a block leaves that nobody reads"
        for run in here:
            assert len({block in self.reading for block in run.host or ()}) == 1, "a run is read in part"
        free_to_go = {run for run in here if self.can_evict(run)}
        assert self.by_age.listed() == free_to_go, "a run would never leave the host"
        lapsed = {run for run in free_to_go if not run.warm}
        assert self.lapsed.listed() == lapsed, "runs are not listed by their standing"
