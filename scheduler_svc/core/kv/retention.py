"""Which programs want which contents, and when a content is wanted no more.

Theory of operation. A program retains the contents that its calls gave back: a (program, content) pair. The
standing of a content is the best of its retainers' (`Standing`). When a program ends or falls idle, nothing
is walked: it queues up, and its pairs are *settled* one by one, least recently used first, when eviction asks
for contents of that standing:

    program ended    the pair is gone
    program idle     the pair is cold; it is warm again when the program is

A content counts its warm pairs. When the last one is settled, the content has lapsed: it is known to be IDLE,
or ENDED if no pair is left, and is listed for eviction in the tiers where it lies.

The order is exact although the work is put off: a content is never older than a pair of it, so who wants the
oldest content of a standing settles the pairs that are older than the oldest one listed, and no more. Each
pair is settled once in a life of its program, and once in each spell of idleness. Pairs of ended programs
that eviction has no need of are settled bit by bit when new pairs come, so that they never outnumber the
blocks.
"""

from collections.abc import Callable, Iterable, Sequence
from heapq import heapify, heappop, heappush, heapreplace

from scheduler_svc.core.kv.content import NOBODY, Content, ProgramKey, Retainer, Standing

NEVER = 1 << 62
"""A stamp that is newer than all."""

_SPARE_ENTRIES = 64


class Retention:
    """The pairs of all programs."""

    def __init__(self, *, lapsed: Callable[[Content], None], ended_pairs_max: int) -> None:
        """
        Args:
            lapsed: Told of each content whose last warm pair, or last pair, was settled.
            ended_pairs_max: Unsettled pairs of ended programs that are put up with.
        """
        self._lapsed = lapsed
        self._ended_pairs_max = ended_pairs_max
        self._retainers: dict[ProgramKey, Retainer] = {}
        """Those that retain something and have not ended."""
        self._unsettled: dict[Standing, list[tuple[int, int, Retainer]]] = {
            Standing.ENDED: [],
            Standing.IDLE: [],
        }
        """Heaps of (stamp of the oldest unsettled pair, turn, retainer)."""
        self._entries_max = {Standing.ENDED: _SPARE_ENTRIES, Standing.IDLE: _SPARE_ENTRIES}
        """Longer heaps are rid of their stale entries."""
        self._ended_pairs = 0
        self._turns = 0
        self.live_pairs = 0
        """Pairs of active programs."""

    @property
    def is_unsettled(self) -> bool:
        """Whether programs have ended or are idle whose pairs may not all be settled."""
        return any(self._unsettled.values())

    # ── pairs ───────────────────────────────────────────────────────────────────────────────────────

    def footprint(self, program: ProgramKey) -> int:
        """Contents that a program retains; 0 for one that is not known or has ended."""
        retainer = self._retainers.get(program)
        return len(retainer.pairs) if retainer else 0

    def retain(self, program: ProgramKey, contents: Sequence[Content], clock: int) -> None:
        """A program has used these contents, in this order, and may need them again.

        A program that is not known, or idle, is active from now on.

        Args:
            contents: They are stamped `clock` + 1, `clock` + 2, ...
        """
        retainer = self._retainers.get(program)
        if retainer is None:
            retainer = self._retainers[program] = Retainer(program)
        elif retainer.standing is Standing.IDLE:
            self.active(program)
        pairs, alone = retainer.pairs, retainer.alone
        before = len(pairs)
        for stamp, content in enumerate(contents, clock + 1):
            content.stamp = stamp
            if content in pairs:
                del pairs[content]
            else:
                if content.retainers:
                    retainer.join(content)
                else:
                    content.retainers = alone  # as `join` would do; most contents come here
                content.warm += 1
            pairs[content] = stamp
        new = len(pairs) - before
        self.live_pairs += new
        if self._ended_pairs > self._ended_pairs_max:
            self._work_off(2 * new)

    def let_go(self, program: ProgramKey, contents: Iterable[Content]) -> None:
        """A program does not want these contents any more. The caller looks whether they have lapsed."""
        retainer = self._retainers.get(program)
        if retainer is None:
            return
        for content in contents:
            if content in retainer.pairs:
                retainer.part(content)
                content.warm -= content not in retainer.cold
                self._remove(retainer, content)

    def forget(self, contents: Iterable[Content]) -> None:
        """These contents are nowhere any more: nobody retains them."""
        live, live_pairs = Standing.LIVE, self.live_pairs
        for content in contents:
            for retainer in content.retainers:
                pairs = retainer.pairs
                if retainer.standing is live and len(pairs) > 1:
                    del pairs[content]
                    live_pairs -= 1
                else:
                    self.live_pairs = live_pairs
                    self._remove(retainer, content)
                    live_pairs = self.live_pairs
        self.live_pairs = live_pairs

    def _remove(self, retainer: Retainer, content: Content) -> None:
        """Takes a pair off its program's books."""
        del retainer.pairs[content]
        retainer.cold.pop(content, None)
        self._ended_pairs -= retainer.standing is Standing.ENDED
        self.live_pairs -= retainer.standing is Standing.LIVE
        if not retainer.pairs:
            retainer.alone = NOBODY  # it would hold itself
            if retainer.standing is not Standing.ENDED:
                del self._retainers[retainer.program]

    # ── programs ────────────────────────────────────────────────────────────────────────────────────

    def active(self, program: ProgramKey) -> None:
        """An idle program is active again. Cost: the pairs that were settled since it fell idle."""
        retainer = self._retainers.get(program)
        if retainer is None or retainer.standing is not Standing.IDLE:
            return
        for content in retainer.cold:
            content.warm += 1
        retainer.cold.clear()
        retainer.standing, retainer.turn = Standing.LIVE, 0
        self.live_pairs += len(retainer.pairs)

    def idle(self, program: ProgramKey) -> None:
        """An active program has had nothing to do for a while."""
        retainer = self._retainers.get(program)
        if retainer is not None and retainer.standing is Standing.LIVE:
            self.live_pairs -= len(retainer.pairs)
            self._queue_up(retainer, Standing.IDLE)

    def ended(self, program: ProgramKey) -> None:
        """A program will never come back."""
        retainer = self._retainers.pop(program, None)
        if retainer is None:
            return
        if retainer.standing is Standing.LIVE:
            self.live_pairs -= len(retainer.pairs)
        self._ended_pairs += len(retainer.pairs)
        self._queue_up(retainer, Standing.ENDED)

    def _queue_up(self, retainer: Retainer, standing: Standing) -> None:
        self._turns += 1
        retainer.standing, retainer.turn, retainer.walk = standing, self._turns, None
        queue = self._unsettled[standing]
        heappush(queue, (next(iter(retainer.pairs.values())), retainer.turn, retainer))
        if len(queue) > self._entries_max[standing]:
            queue[:] = [entry for entry in queue if entry[2].turn == entry[1] and entry[2].pairs]
            heapify(queue)
            self._entries_max[standing] = 2 * len(queue) + _SPARE_ENTRIES

    # ── settling ────────────────────────────────────────────────────────────────────────────────────

    def settle(self, standing: Standing, before: int) -> bool:
        """Settles the oldest unsettled pair of the programs of this standing, if it is older than `before`.

        Returns: whether there was one.
        """
        queue = self._unsettled[standing]
        while queue and queue[0][0] < before:
            _, turn, retainer = queue[0]
            if retainer.turn != turn:
                heappop(queue)
                continue
            walk, pairs = retainer.walk, retainer.pairs
            if walk is None:
                walk = retainer.walk = list(reversed(pairs))
            content = walk.pop() if walk else None
            while walk and walk[-1] not in pairs:
                walk.pop()
            if walk:
                heapreplace(queue, (pairs[walk[-1]], turn, retainer))
            else:
                heappop(queue)
            if content is not None and content in pairs:
                self._settle_pair(retainer, content)
                return True
        return False

    def _settle_pair(self, retainer: Retainer, content: Content) -> None:
        was_warm = content.warm
        content.warm -= content not in retainer.cold
        if retainer.standing is Standing.IDLE:
            retainer.cold[content] = None
        else:
            retainer.part(content)
            self._remove(retainer, content)
        if not content.warm and (was_warm or not content.retainers):
            self._lapsed(content)

    def _work_off(self, pairs: int) -> None:
        """Settles pairs of ended programs, as many as `pairs`."""
        for _ in range(pairs):
            if not self.settle(Standing.ENDED, NEVER):
                return

    # ── checks ──────────────────────────────────────────────────────────────────────────────────────

    @staticmethod
    def standing_of(content: Content) -> Standing:
        """The standing of a content, settled or not. Cost: its retainers."""
        return max((retainer.standing for retainer in content.retainers), default=Standing.ENDED)

    def check(self, contents: Iterable[Content]) -> None:
        """Checks the books of all contents.

        Raises: AssertionError.
        """
        retainers: dict[Retainer, int] = {}
        assert not NOBODY
        for content in contents:
            for retainer in content.retainers:
                assert content in retainer.pairs, "a retainer does not know what it retains"
                retainers[retainer] = retainers.get(retainer, 0) + 1
            if len(content.retainers) < 2:
                shared = next((retainer.alone for retainer in content.retainers), NOBODY)
                assert content.retainers is shared, "a content has a dictionary for less than two retainers"
            warm = sum(content not in retainer.cold for retainer in content.retainers)
            assert warm == content.warm, f"{content.warm} warm pairs noted, there are {warm}"
        assert all(count == len(retainer.pairs) for retainer, count in retainers.items()), "a pair of nothing"
        known = {retainer for retainer in retainers if retainer.standing is not Standing.ENDED}
        assert known == set(self._retainers.values()), "programs that retain nothing are remembered"
        pairs = dict.fromkeys(Standing, 0)
        for retainer in retainers:
            stamps = list(retainer.pairs.values())
            assert stamps == sorted(stamps), "pairs are out of order"
            assert retainer.standing is not Standing.LIVE or not retainer.cold
            pairs[retainer.standing] += len(stamps)
        assert pairs[Standing.LIVE] == self.live_pairs, "pairs of active programs are miscounted"
        assert pairs[Standing.ENDED] == self._ended_pairs, "pairs of ended programs are miscounted"
