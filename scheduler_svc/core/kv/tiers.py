"""The two tiers: which block holds which content, which are free, and whose turn it is to go.

A tier lists what it can evict in order of (standing, age). Contents known to be ENDED or IDLE are in a heap
each; entries become stale when the content moves, is used, held or wanted again, and are thrown away when
they come up. The others are LIVE as far as is known: on the device in order of use, since a block gets there
when it is given back; on the host in a heap by lower bounds of their stamps, since contents arrive there that
are older than some that are there.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from heapq import heapify, heappop, heappush, heapreplace

from scheduler_svc.core.ids import BlockId
from scheduler_svc.core.kv.content import Content, Standing
from scheduler_svc.core.kv.retention import NEVER, Retention

Entry = tuple[int, Content]
"""(stamp, content). Stamps of different contents differ, so contents are never compared."""

_SPARE_ENTRIES = 64


class Lapsed:
    """The contents of one tier that no active program retains, by standing and age."""

    def __init__(self, retention: Retention, evictable: Callable[[Content], bool], size: int) -> None:
        """
        Args:
            evictable: Whether a content lies in the tier and nothing keeps it there.
            size: Blocks of the tier.
        """
        self._retention = retention
        self._evictable = evictable
        self._heaps: tuple[list[Entry], list[Entry]] = ([], [])
        """By standing, ENDED and IDLE."""
        self._entries_max = 2 * size + _SPARE_ENTRIES

    def add(self, content: Content) -> None:
        """Lists a content without warm pairs that can be evicted."""
        standing = Standing.IDLE if content.retainers else Standing.ENDED
        heap = self._heaps[standing]
        heappush(heap, (content.stamp, content))
        if len(heap) > self._entries_max:
            heap[:] = dict.fromkeys(entry for entry in heap if self._is_valid(standing, *entry))
            heapify(heap)

    def __bool__(self) -> bool:
        """Whether there may be such contents."""
        return bool(self._heaps[0] or self._heaps[1] or self._retention.is_unsettled)

    def oldest(self, standing: Standing, before: int = NEVER) -> Content | None:
        """The oldest content of that standing, ENDED or IDLE, that can be evicted; None: none is older than
        `before`.

        For IDLE, all ENDED pairs must be settled: ask for the oldest ENDED one first.
        """
        heap = self._heaps[standing]
        while True:
            while heap and not self._is_valid(standing, *heap[0]):
                heappop(heap)
            oldest = min(heap[0][0], before) if heap else before
            if not self._retention.settle(standing, oldest):
                return heap[0][1] if oldest < before else None

    def listed(self) -> set[Content]:
        """The contents that will come up. Slow: for checks."""
        return {
            entry[1]
            for standing, heap in enumerate(self._heaps)
            for entry in heap
            if self._is_valid(Standing(standing), *entry)
        }

    def _is_valid(self, standing: Standing, stamp: int, content: Content) -> bool:
        return (
            content.stamp == stamp
            and not content.warm
            and bool(content.retainers) == (standing is Standing.IDLE)
            and self._evictable(content)
        )


class DeviceTier:
    """The device blocks. Each is held (references > 0), or unheld with a content, or plain.

    Block 0 is the null block and is never handed out.
    """

    def __init__(self, size: int, retention: Retention) -> None:
        """
        Args:
            size: Blocks, the null block included. >= 1.
        """
        self.plain = [BlockId(block) for block in range(size - 1, 0, -1)]
        self.references = [0] * size
        """By block."""
        self.contents: list[Content | None] = [None] * size
        """By block."""
        self.unheld: OrderedDict[BlockId, None] = OrderedDict()
        """Blocks with a content that nobody holds, least recently used first."""
        self.lapsed = Lapsed(retention, self.can_evict, size)

    def can_evict(self, content: Content) -> bool:
        """Whether a content lies here and nobody holds it."""
        return content.device is not None and not self.references[content.device]

    def worst(self) -> tuple[Standing, Content]:
        """The content that goes first. There must be an unheld one."""
        for standing in (Standing.ENDED, Standing.IDLE):
            content = self.lapsed.oldest(standing)
            if content is not None:
                return standing, content
        return Standing.LIVE, self.oldest()

    def oldest(self) -> Content:
        """The least recently used unheld content, whatever its standing."""
        content = self.contents[next(iter(self.unheld))]
        assert content is not None, "an unheld block has a content"
        return content

    def hold(self, block: BlockId) -> None:
        """Adds a reference to a block with a content."""
        if not self.references[block]:
            del self.unheld[block]
        self.references[block] += 1

    def put(self, content: Content, block: BlockId) -> None:
        """A held block has this content."""
        content.device = block
        self.contents[block] = content

    def remove(self, content: Content) -> BlockId:
        """Takes a content off its block, held or not; the block is the caller's."""
        block = content.device
        assert block is not None
        content.device = self.contents[block] = None
        self.unheld.pop(block, None)
        return block

    def check(self, contents: Iterable[Content]) -> None:
        """Checks the tier against all contents.

        Raises: AssertionError.
        """
        here = {content.device: content for content in contents if content.device is not None}
        assert here == {block: c for block, c in enumerate(self.contents) if c}, (
            "a block or a content is lost"
        )
        held = [block for block, count in enumerate(self.references) if count]
        places = [*self.plain, *self.unheld, *held]
        assert sorted(places) == list(range(1, len(self.references))), "a block is in no place or in two"
        assert not here.keys() & set(self.plain), "a plain block has a content"
        assert here.keys() >= self.unheld.keys(), "an unheld block has no content"
        stamps = [here[block].stamp for block in self.unheld]
        assert stamps == sorted(set(stamps)), "unheld blocks are out of order"
        lapsed = {here[block] for block in self.unheld if not here[block].warm}
        assert lapsed == self.lapsed.listed(), "unheld blocks are not listed by their standing"


class HostTier:
    """The host blocks. Each has a content, or is plain, or is read once more though its content has gone."""

    def __init__(self, size: int, retention: Retention) -> None:
        self.plain = [BlockId(block) for block in range(size - 1, -1, -1)]
        self.contents: list[Content | None] = [None] * size
        """By block."""
        self.reading: dict[BlockId, None] = {}
        """Blocks that a noted swap-in reads."""
        self.leaving: dict[BlockId, None] = {}
        """Those of them whose content has gone: plain once they are read."""
        self.lapsed = Lapsed(retention, self.can_evict, size)
        self._by_age: list[Entry] = []
        """A heap: lower bounds of stamps. The valid entry of a content is that of `content.listed`."""
        self._entries_max = 2 * size + _SPARE_ENTRIES

    def can_evict(self, content: Content) -> bool:
        """Whether a content lies here and is neither waited for nor read."""
        return content.host is not None and not content.pins and content.host not in self.reading

    def worst(self, standing: Standing, stamp: int) -> Content | None:
        """The content that goes first, if it goes before one of this standing and age."""
        for worse in (Standing.ENDED, Standing.IDLE):
            if worse > standing:
                return None
            content = self.lapsed.oldest(worse, NEVER if worse < standing else stamp)
            if content is not None:
                return content
        content = self._oldest() if standing is Standing.LIVE else None
        return content if content is not None and content.stamp < stamp else None

    def _oldest(self) -> Content | None:
        """The least recently used one, when none has lapsed."""
        heap = self._by_age
        while heap:
            stamp, content = heap[0]
            if content.listed != stamp:
                heappop(heap)
            elif not self.can_evict(content):
                heappop(heap)
                content.listed = 0
            elif content.stamp != stamp:
                content.listed = content.stamp
                heapreplace(heap, (content.stamp, content))
            else:
                return content
        return None

    def put(self, content: Content, block: BlockId) -> None:
        """The block holds, or will hold once the swaps are done, this content."""
        content.host = block
        self.contents[block] = content
        self.relist(content)

    def relist(self, content: Content) -> None:
        """Lists a content that can be evicted now: it has come, lapsed, or nothing keeps it any more."""
        if not self.can_evict(content):
            return
        if not content.warm:
            self.lapsed.add(content)
        if not content.listed:
            content.listed = content.stamp
            heappush(self._by_age, (content.stamp, content))
            if len(self._by_age) > self._entries_max:
                valid = [entry for entry in self._by_age if entry[1].listed == entry[0]]
                self._by_age[:] = dict.fromkeys(valid)
                heapify(self._by_age)

    def remove(self, content: Content) -> BlockId:
        """Takes a content off its block; the block is the caller's."""
        block = content.host
        assert block is not None
        content.host = self.contents[block] = None
        content.listed = 0
        return block

    def free(self, block: BlockId) -> None:
        """A block without content is plain, as soon as nobody reads it."""
        if block in self.reading:
            self.leaving[block] = None
        else:
            self.plain.append(block)

    def read_done(self, block: BlockId) -> None:
        """The swap-in that reads this block is out, or is not needed any more."""
        del self.reading[block]
        content = self.contents[block]
        if content is not None:
            self.relist(content)
        elif block in self.leaving:
            del self.leaving[block]
            self.plain.append(block)

    def listed(self) -> set[Content]:
        """The contents that will come up. Slow: for checks."""
        by_age = {content for stamp, content in self._by_age if content.listed == stamp <= content.stamp}
        lapsed = self.lapsed.listed()
        return {content for content in by_age if content.warm or content in lapsed}

    def check(self, contents: Iterable[Content]) -> None:
        """Checks the tier against all contents.

        Raises: AssertionError.
        """
        here = {content.host: content for content in contents if content.host is not None}
        assert here == {block: c for block, c in enumerate(self.contents) if c}, (
            "a block or a content is lost"
        )
        assert sorted([*self.plain, *here, *self.leaving]) == list(range(len(self.contents)))
        assert self.leaving.keys() <= self.reading.keys(), "a block leaves that nobody reads"
        free_to_go = {content for content in here.values() if self.can_evict(content)}
        assert free_to_go <= self.listed(), "a host block would never be evicted"
