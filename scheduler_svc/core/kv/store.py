"""Where every content lies: the two tiers under one index, and how contents move between them.

The rules of the copies (`swaps.py`) are kept here: a host block that is read is not freed, a device block
that is written is not copied out, and a copy that nobody needs any more is not ordered.
"""

from collections.abc import Iterable, Sequence

from scheduler_svc.core.ids import BlockId
from scheduler_svc.core.kv.content import Content, Key, Standing
from scheduler_svc.core.kv.retention import Retention
from scheduler_svc.core.kv.swaps import Copy, Swaps
from scheduler_svc.core.kv.tiers import DeviceTier, HostTier


class Store:
    """All contents of one executor."""

    def __init__(self, *, device_blocks: int, host_blocks: int) -> None:
        self.retention = Retention(lapsed=self._relist, ended_pairs_max=device_blocks + host_blocks)
        self.device = DeviceTier(device_blocks, self.retention)
        self.host = HostTier(host_blocks, self.retention)
        self.swaps = Swaps()
        self.contents: dict[Key, Content] = {}
        self.clock = 0
        """Uses of contents so far."""
        self.move_to_host = True
        """Whether an evicted content that is still wanted is copied to the host, or dropped."""
        self.forgotten = 0
        """Contents forgotten to make room so far."""

    # ── contents ────────────────────────────────────────────────────────────────────────────────────

    def name(self, blocks: Sequence[BlockId], keys: Sequence[Key]) -> list[Content]:
        """The contents of held blocks. The content of a nameless block is that of its key; it lies in the
        block if it was not on the device yet. Shape of both: (blocks,)."""
        of_block, by_key, clock = self.device.contents, self.contents, self.clock
        named: list[Content] = []
        for block, key in zip(blocks, keys, strict=True):
            content = of_block[block]
            if content is None:
                content = by_key.get(key)
                if content is None:
                    clock += 1
                    of_block[block] = content = by_key[key] = Content(key, clock, block)
                elif content.device is None:
                    self.device.put(content, block)
            named.append(content)
        self.clock = clock
        return named

    def stamp(self, contents: Iterable[Content]) -> None:
        """These contents are used now, in this order."""
        for stamp, content in enumerate(contents, self.clock + 1):
            content.stamp = self.clock = stamp

    def unhold(self, block: BlockId, content: Content | None) -> None:
        """Takes a reference off a block.

        Args:
            content: What is in the block, just used. It may be found in another block: then this one is a
                private copy. None: nothing worth keeping.
        """
        device = self.device
        device.references[block] = left = device.references[block] - 1
        if content is None:
            if not left:
                device.plain.append(block)
            return
        if content.device == block:
            if not left:
                device.unheld[block] = None
        else:
            assert content.device is not None, "the twin of a copy is on the device"
            if not left:
                device.plain.append(block)
            if device.can_evict(content):
                device.unheld.move_to_end(content.device)
        if not content.warm:
            self._relist(content)

    def unpin(self, content: Content) -> None:
        """A call that found it on the host only has brought it in, or has gone away."""
        content.pins -= 1
        self.host.relist(content)

    def forget(self, content: Content) -> None:
        """The content is off the device, and not wanted on the host."""
        if content.host is not None:
            self.host.free(self._leave_host(content))
        del self.contents[content.key]
        if content.retainers:
            self.retention.forget((content,))

    def _relist(self, content: Content) -> None:
        """Lists a content by its new standing or age in the tiers where it can be evicted."""
        if self.device.can_evict(content):
            self.device.lapsed.add(content)
        if content.host is not None:
            self.host.relist(content)

    # ── leaving the device ──────────────────────────────────────────────────────────────────────────

    def evict(self, count: int) -> list[BlockId]:
        """Frees device blocks, which there are: the one place that decides whose content leaves the
        device."""
        blocks: list[BlockId] = []
        if self.device.lapsed:
            live = Standing.LIVE
            while len(blocks) < count:
                standing, content = self.device.worst()
                if standing is live:
                    break  # nothing is left to settle: the others are live as well
                blocks.append(self._evict(content, standing))
        return blocks + self._evict_oldest(count - len(blocks))

    def _evict(self, content: Content, standing: Standing) -> BlockId:
        if self.move_to_host and standing is not Standing.ENDED:
            self.copy_to_host(content, standing)
        block = self.leave_device(content)
        if content.host is None:
            self.forgotten += 1
            self.forget(content)
        return block

    def _evict_oldest(self, count: int) -> list[BlockId]:
        """The same where nothing has lapsed: the least recently used go."""
        if self.host.contents:
            return [self._evict(self.device.oldest(), Standing.LIVE) for _ in range(count)]
        unheld, of_block, by_key = self.device.unheld, self.device.contents, self.contents
        blocks: list[BlockId] = []
        gone: list[Content] = []
        for _ in range(count):
            block, _ = unheld.popitem(last=False)
            content = of_block[block]
            assert content is not None, "an unheld block has a content"
            of_block[block] = content.device = None
            del by_key[content.key]
            blocks.append(block)
            gone.append(content)
        self.retention.forget(gone)
        self.forgotten += count
        return blocks

    def leave_device(self, content: Content) -> BlockId:
        """Takes an unheld content off its device block; the block is the caller's."""
        block = self.device.remove(content)
        self._cancel_in(block)
        return block

    def copy_to_host(self, content: Content, standing: Standing) -> bool:
        """Makes sure that an unheld device content is on the host as well; False: it cannot be."""
        if content.host is not None:
            return True
        assert content.device is not None, "a content lies in some tier"
        if content.device in self.swaps.ins:
            return False
        host = self._room_on_host(standing, content.stamp)
        if host is None:
            return False
        self.swaps.outs[host] = content.device
        self.host.put(content, host)
        return True

    def _room_on_host(self, standing: Standing, stamp: int) -> BlockId | None:
        """A host block for a content of this standing and age; None: those that are there are worth more."""
        if self.host.plain:
            return self.host.plain.pop()
        content = self.host.worst(standing, stamp)
        if content is None:
            return None
        block = self._leave_host(content)
        if content.device is None:
            self.forgotten += 1
            self.forget(content)
        return block

    def _leave_host(self, content: Content) -> BlockId:
        block = self.host.remove(content)
        if block not in self.host.reading:
            self.swaps.outs.pop(block, None)
        return block

    # ── coming back ─────────────────────────────────────────────────────────────────────────────────

    def note_in(self, content: Content, block: BlockId) -> None:
        """A held device block is to receive a content that is on the host only."""
        assert content.host is not None, "a content lies in some tier"
        self._cancel_in(block)
        self.swaps.ins[block] = content.host
        self.host.reading[content.host] = None
        self.device.put(content, block)

    def drain_swaps(self) -> tuple[tuple[Copy, ...], tuple[Copy, ...]]:
        """The noted copies, outs and ins; none are left and nothing is kept for them."""
        outs, ins = self.swaps.drain()
        for host, _ in ins:
            self.host.read_done(host)
        return outs, ins

    def _cancel_in(self, block: BlockId) -> None:
        """What a noted copy would bring to this device block is not needed there any more."""
        host = self.swaps.ins.pop(block, None)
        if host is not None:
            self.host.read_done(host)

    # ── checks ──────────────────────────────────────────────────────────────────────────────────────

    def check(self) -> None:
        """Checks all invariants but the references.

        Raises: AssertionError.
        """
        for content in self.contents.values():
            assert self.contents[content.key] is content
            assert content.device is not None or content.host is not None, "a content lies nowhere"
            assert 0 < content.stamp <= self.clock
            assert not content.pins or content.host is not None, "a call waits for what is not there"
        self.device.check(self.contents.values())
        self.host.check(self.contents.values())
        self.retention.check(self.contents.values())
        assert list(self.host.reading) == list(self.swaps.ins.values()), "reads and swap-ins differ"
        assert not set(self.host.plain) & set(self.swaps.ins.values()), "a block is free and read"
