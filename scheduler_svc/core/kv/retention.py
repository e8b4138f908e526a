"""Which programs want which runs, and when a run is wanted no more.

Theory of operation. A program retains the runs that its calls gave back: a (program, run) pair. The standing
of a run is the best of its retainers' (`Standing`). When a program ends or falls idle, nothing is walked: it
queues up, and its pairs are *settled* one by one, least recently used first, when eviction asks for runs of
that standing:

    program ended    the pair is gone
    program idle     the pair is cold; it is warm again when the program is

A run counts its warm pairs. When the last one is settled, the run has lapsed: it is known to be IDLE, or
ENDED if no pair is left, and is listed for eviction in the tiers where it lies.

The order is exact although the work is put off: who wants the oldest run of a standing settles all pairs of
runs that are older than the oldest one listed. A program queues up under a stamp that none of its runs is
older than, that of the oldest if they are few; when its turn comes, its walk sorts them by age, once. They
may be used again meanwhile: that makes them newer, and settling early does no harm. Hence also: a run that
is cut is settled first, so that walks need not know of it.

Each pair is settled once in a life of its program, and once in each spell of idleness. Pairs of ended
programs that eviction has no need of are settled bit by bit when new pairs come, so that they never outnumber
the blocks.
"""

from collections.abc import Callable, Iterable
from heapq import heapify, heappop, heappush, heapreplace

from scheduler_svc.core.kv.runs import NO_RUNS, NOBODY, ProgramKey, Retainer, Run, Standing

NEVER = 1 << 62
"""A stamp that is newer than all."""

Entry = tuple[int, int, Retainer]
"""(lower bound of the stamps of its unsettled runs, turn, program)."""

_SPARE_ENTRIES = 64
_FEW_RUNS = 8


class Retention:
    """The pairs of all programs."""

    def __init__(self, *, lapsed: Callable[[Run], None], ended_pairs_max: int) -> None:
        """
        Args:
            lapsed: Told of each run whose last warm pair, or last pair, was settled.
            ended_pairs_max: Unsettled pairs of ended programs that are put up with.
        """
        self._lapsed = lapsed
        self._ended_pairs_max = ended_pairs_max
        self._retainers: dict[ProgramKey, Retainer] = {}
        """Those that retain something and have not ended."""
        self._unsettled: tuple[list[Entry], list[Entry]] = ([], [])
        """Heaps by standing, ENDED and IDLE."""
        self._entries_max = [_SPARE_ENTRIES, _SPARE_ENTRIES]
        """Longer heaps are rid of their stale entries."""
        self._ended_pairs = 0
        self._turns = 0
        self.live_blocks = 0
        """Sum of the footprints of active programs."""

    @property
    def is_unsettled(self) -> bool:
        """Whether programs have ended or are idle whose pairs may not all be settled."""
        ended, idle = self._unsettled
        return bool(ended or idle)

    # ── pairs ───────────────────────────────────────────────────────────────────────────────────────

    def footprint(self, program: ProgramKey) -> int:
        """Blocks that a program retains; 0 for one that is not known or has ended."""
        retainer = self._retainers.get(program)
        return retainer.blocks if retainer else 0

    def retainer(self, program: ProgramKey, clock: int) -> Retainer:
        """A program that is about to retain something. It is active from now on.

        Args:
            clock: All that it will retain is stamped later.
        """
        retainer = self._retainers.get(program)
        if retainer is None:
            retainer = self._retainers[program] = Retainer(program, clock)
        elif retainer.standing is Standing.IDLE:
            self.active(program)
        return retainer

    def retain(self, retainer: Retainer, run: Run) -> None:
        """An active program has used a run and may need it again."""
        if run in retainer.runs:
            return
        retainer.join(run)
        retainer.runs[run] = None
        run.warm += 1
        blocks = len(run.keys)
        retainer.blocks += blocks
        self.live_blocks += blocks
        if self._ended_pairs > self._ended_pairs_max:
            self._work_off(2)

    def resize(self, run: Run, blocks: int) -> None:
        """A run is about to be so many blocks longer, or shorter if < 0."""
        for retainer in run.retainers:
            retainer.blocks += blocks
            if retainer.standing is Standing.LIVE:
                self.live_blocks += blocks

    def cut(self, run: Run, count: int) -> Run:
        """Cuts the first blocks of a run off. Cost: its retainers.

        Returns: those blocks as a run.
        """
        for retainer in list(run.retainers):
            if retainer.standing is not Standing.LIVE and not _is_settled(retainer, run):
                self._settle_pair(retainer, run)
        head = run.cut(count)
        for retainer in head.retainers:
            retainer.runs[head] = None
            if run in retainer.cold:
                retainer.cold[head] = None
        return head

    def forget(self, run: Run) -> None:
        """A run is nowhere any more: nobody retains it."""
        for retainer in run.retainers:
            self._remove(retainer, run)
        run.retainers = NOBODY

    def _remove(self, retainer: Retainer, run: Run) -> None:
        """Takes a pair off its program's books."""
        del retainer.runs[run]
        if retainer.cold:
            retainer.cold.pop(run, None)
        blocks = len(run.keys)
        retainer.blocks -= blocks
        if retainer.standing is Standing.LIVE:
            self.live_blocks -= blocks
        elif retainer.standing is Standing.ENDED:
            self._ended_pairs -= 1
        if not retainer.runs:
            retainer.alone = NOBODY  # it would hold itself
            if retainer.standing is not Standing.ENDED:
                del self._retainers[retainer.program]

    # ── programs ────────────────────────────────────────────────────────────────────────────────────

    def active(self, program: ProgramKey) -> None:
        """An idle program is active again. Cost: the pairs that were settled since it fell idle."""
        retainer = self._retainers.get(program)
        if retainer is None or retainer.standing is not Standing.IDLE:
            return
        for run in retainer.cold:
            run.warm += 1
        retainer.cold = NO_RUNS
        retainer.standing, retainer.turn, retainer.walk = Standing.LIVE, 0, None
        self.live_blocks += retainer.blocks

    def idle(self, program: ProgramKey) -> None:
        """An active program has had nothing to do for a while."""
        retainer = self._retainers.get(program)
        if retainer is not None and retainer.standing is Standing.LIVE:
            self.live_blocks -= retainer.blocks
            retainer.cold = {}
            self._queue_up(retainer, Standing.IDLE)

    def ended(self, program: ProgramKey) -> None:
        """A program will never come back."""
        retainer = self._retainers.pop(program, None)
        if retainer is None:
            return
        if retainer.standing is Standing.LIVE:
            self.live_blocks -= retainer.blocks
        self._ended_pairs += len(retainer.runs)
        self._queue_up(retainer, Standing.ENDED)

    def _queue_up(self, retainer: Retainer, standing: Standing) -> None:
        self._turns += 1
        retainer.standing, retainer.turn, retainer.walk = standing, self._turns, None
        queue = self._unsettled[standing]
        heappush(queue, (_oldest_stamp(retainer), retainer.turn, retainer))
        if len(queue) > self._entries_max[standing]:
            queue[:] = [entry for entry in queue if entry[2].turn == entry[1] and entry[2].runs]
            heapify(queue)
            self._entries_max[standing] = 2 * len(queue) + _SPARE_ENTRIES

    # ── settling ────────────────────────────────────────────────────────────────────────────────────

    def settle(self, standing: Standing, before: int) -> bool:
        """Settles the oldest unsettled pair of the programs of this standing, if it is older than `before`.

        Returns: whether there was one.
        """
        queue = self._unsettled[standing]
        while queue and queue[0][0] < before:
            bound, turn, retainer = queue[0]
            walk = _walk_of(retainer) if retainer.turn == turn else None
            if not walk:
                heappop(queue)
                continue
            stamp, run = walk[-1]
            if stamp > bound:
                heapreplace(queue, (stamp, turn, retainer))
                continue
            walk.pop()
            self._settle_pair(retainer, run)
            return True
        return False

    def _settle_pair(self, retainer: Retainer, run: Run) -> None:
        was_warm = run.warm
        run.warm -= run not in retainer.cold
        if retainer.standing is Standing.IDLE:
            retainer.cold[run] = None
        else:
            retainer.part(run)
            self._remove(retainer, run)
        if not run.warm and (was_warm or not run.retainers):
            self._lapsed(run)

    def _work_off(self, pairs: int) -> None:
        """Settles pairs of ended programs, as many as `pairs`."""
        for _ in range(pairs):
            if not self.settle(Standing.ENDED, NEVER):
                return

    # ── checks ──────────────────────────────────────────────────────────────────────────────────────

    @staticmethod
    def standing_of(run: Run) -> Standing:
        """The standing of a run, settled or not. Cost: its retainers."""
        return max((retainer.standing for retainer in run.retainers), default=Standing.ENDED)

    def check(self, runs: Iterable[Run]) -> None:
        """Checks the books of all runs.

        Raises: AssertionError.
        """
        retained: dict[Retainer, list[Run]] = {}
        assert not NOBODY
        assert not NO_RUNS
        for run in runs:
            for retainer in run.retainers:
                retained.setdefault(retainer, []).append(run)
            if len(run.retainers) < 2:
                shared = next((retainer.alone for retainer in run.retainers), NOBODY)
                assert run.retainers is shared, "a run has a dictionary for less than two retainers"
            warm = sum(run not in retainer.cold for retainer in run.retainers)
            assert warm == run.warm, f"{run.warm} warm pairs noted, there are {warm}"
        for retainer, theirs in retained.items():
            _check_retainer(retainer, theirs)
        known = {retainer for retainer in retained if retainer.standing is not Standing.ENDED}
        assert known == set(self._retainers.values()), "programs that retain nothing are remembered"
        live = sum(retainer.blocks for retainer in known if retainer.standing is Standing.LIVE)
        assert live == self.live_blocks, "blocks of active programs are miscounted"
        ended = sum(len(retainer.runs) for retainer in retained.keys() - known)
        assert ended == self._ended_pairs, "pairs of ended programs are miscounted"


def _oldest_stamp(retainer: Retainer) -> int:
    """A stamp that no run of a program is older than. Without a long walk: exact if they are few."""
    if len(retainer.runs) > _FEW_RUNS:
        return retainer.since
    return min([run.stamp for run in retainer.runs])


def _walk_of(retainer: Retainer) -> list[tuple[int, Run]]:
    """The walk of an idle or ended program, rid of what is settled or gone at its end."""
    runs, walk = retainer.runs, retainer.walk
    if walk is None:
        walk = retainer.walk = sorted(((run.stamp, run) for run in runs), reverse=True)
    while walk and (walk[-1][1] not in runs or _is_settled(retainer, walk[-1][1])):
        walk.pop()
    return walk


def _is_settled(retainer: Retainer, run: Run) -> bool:
    """Whether a pair of an idle or ended program is."""
    return retainer.standing is Standing.IDLE and run in retainer.cold


def _check_retainer(retainer: Retainer, runs: list[Run]) -> None:
    assert set(runs) == retainer.runs.keys(), "a program and its runs do not know each other"
    assert retainer.blocks == sum(map(len, runs)), "blocks of a program are miscounted"
    assert retainer.cold.keys() <= retainer.runs.keys()
    assert not retainer.cold or retainer.standing is not Standing.LIVE
    assert all(run.stamp > retainer.since for run in runs), "a run is older than its program says"
