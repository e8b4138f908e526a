"""The KV of one executor in two tiers, found by content.

Theory of operation. Everything that is worth keeping is a content with a key (`content.py`). It lies in a
device block, in a host block, or in both. A call holds device blocks; when it gives them back under keys,
nothing is copied and nothing forgotten: preemption, retention over tool calls and prefix reuse are this one
act. Who comes back with the same keys finds them, on the device or on the host, and holds what was found;
what is on the host only is brought in. A device block is

    held      by one or more calls (references > 0); findable if it has a content
    unheld    by none, but it has a content
    plain     by none, and what is in it is worthless

When plain blocks run out, unheld contents are evicted in this order (`Standing`): what only ended programs
retained, or nobody; what only idle or ended programs retain; the rest; each least recently used first. The
first are dropped. Others move to the host, if it is worth it and there is room: a plain host block, or one
whose content comes earlier in the same order. A content that has left both tiers leaves no trace. One that
was brought in keeps its host copy while the host has room: to evict it again then needs no copy.

Ids only: the tensors are the executor's. Copies are noted (`swaps.py`) and leave with the next plan. Blocks
taken since the last plan must not be given back under keys before it: nobody has computed them.
"""

from collections.abc import Iterable, Sequence

from scheduler_svc.core.ids import BlockId
from scheduler_svc.core.kv.content import NOTHING_FOUND, Content, Found, Key, ProgramKey
from scheduler_svc.core.kv.store import Store
from scheduler_svc.core.kv.swaps import Copy


class KvCache:
    """The blocks of both tiers of one executor."""

    def __init__(self, *, device_blocks: int, host_blocks: int) -> None:
        """
        Args:
            device_blocks: Ids are 1..device_blocks-1; 0 is the null block, which is never handed out.
            host_blocks: Ids are 0..host_blocks-1. 0: there is no host tier.
        """
        self._store = Store(device_blocks=device_blocks, host_blocks=host_blocks)
        self._device = self._store.device
        self._host = self._store.host
        self._retention = self._store.retention
        self.size = device_blocks - 1
        """Device blocks that can be handed out. Invariant: held + available == size."""
        self.host_size = host_blocks
        self.swapped_out = 0
        """Blocks that plans have copied to the host so far."""
        self.swapped_in = 0
        """Blocks that plans have copied to the device so far."""

    # ── figures ─────────────────────────────────────────────────────────────────────────────────────

    @property
    def move_to_host(self) -> bool:
        """Whether an evicted content that is still wanted is copied to the host, or dropped."""
        return self._store.move_to_host

    @move_to_host.setter
    def move_to_host(self, worth_it: bool) -> None:
        self._store.move_to_host = worth_it

    @property
    def available(self) -> int:
        """Device blocks that `take` can hand out."""
        return len(self._device.plain) + len(self._device.unheld)

    @property
    def plain(self) -> int:
        """Device blocks whose content is worthless."""
        return len(self._device.plain)

    @property
    def held(self) -> int:
        """Device blocks that calls hold."""
        return self.size - self.available

    @property
    def host_plain(self) -> int:
        """Host blocks whose content is worthless."""
        return len(self._host.plain)

    @property
    def evicted(self) -> int:
        """Contents forgotten to make room so far."""
        return self._store.forgotten

    @property
    def swaps_pending(self) -> int:
        """Copies that the next plan will order."""
        return len(self._store.swaps)

    @property
    def live_footprint(self) -> int:
        """Sum of the footprints of all programs that are neither idle nor ended."""
        return self._retention.live_pairs

    def footprint(self, program: ProgramKey) -> int:
        """Contents retained for a program, whichever tier they are in; 0 if it has ended."""
        return self._retention.footprint(program)

    def references(self, block: BlockId) -> int:
        """How many calls hold a device block."""
        return self._device.references[block]

    # ── finding ─────────────────────────────────────────────────────────────────────────────────────

    def find(self, keys: Sequence[Key]) -> Found:
        """The longest known prefix of `keys` over both tiers; changes nothing."""
        contents: list[Content] = []
        for content in map(self._store.contents.get, keys):
            if content is None:
                break
            contents.append(content)
        return Found(contents) if contents else NOTHING_FOUND

    def available_with(self, found: Found) -> int:
        """What `available` would be if what was just found were held, and not brought in yet."""
        references = self._device.references
        return self.available - sum(block is not None and not references[block] for block in found.device)

    def hold(self, found: Found) -> None:
        """Adds a reference to the device blocks just found; what is on the host only is not evicted from
        there."""
        references, unheld = self._device.references, self._device.unheld
        for content, block in zip(found.contents, found.device, strict=True):
            if block is None:
                content.pins += 1
                continue
            if not references[block]:
                del unheld[block]
            references[block] += 1

    def let_go(self, found: Found) -> None:
        """Undoes `hold`. Device blocks that nobody else holds count as just used, the first ones last."""
        store = self._store
        for content, block in zip(reversed(found.contents), reversed(found.device), strict=True):
            if block is None:
                store.unpin(content)
                continue
            store.clock += 1
            content.stamp = store.clock
            store.unhold(block, content)

    def bring_in(self, found: Found) -> list[BlockId]:
        """Takes device blocks for what is held on the host only, and notes the copies.

        `available` must be at least `found.to_bring`.

        Returns: the device blocks of all that was found. The caller has one reference to each.
        """
        if not found.to_bring:
            return [block for block in found.device if block is not None]
        waited_for = [
            content for content, block in zip(found.contents, found.device, strict=True) if block is None
        ]
        missing: list[Content] = []
        for content in waited_for:
            if content.device is None:
                missing.append(content)
            else:
                self._device.hold(content.device)  # somebody else brought it in
        for content, block in zip(missing, self.take(len(missing)), strict=True):
            self._store.note_in(content, block)
        for content in waited_for:
            self._store.unpin(content)
        return [content.device for content in found.contents if content.device is not None]

    # ── blocks ──────────────────────────────────────────────────────────────────────────────────────

    def take(self, count: int) -> list[BlockId]:
        """Hands out `count` <= available device blocks: plain ones first, then evicts."""
        plain, references = self._device.plain, self._device.references
        if 0 <= count <= len(plain):
            taken = plain[: -count - 1 : -1]
            del plain[len(plain) - count :]
        else:
            assert 0 <= count <= self.available, f"{count} blocks wanted, {self.available} available"
            taken = plain[::-1]
            plain.clear()
            taken += self._store.evict(count - len(taken))
        for block in taken:
            references[block] = 1
        return taken

    def publish(self, block: BlockId, key: Key) -> None:
        """Makes a held block findable, unless its content is found on the device already."""
        self.publish_all((block,), (key,))

    def publish_all(self, blocks: Sequence[BlockId], keys: Sequence[Key]) -> None:
        """The same for several blocks. Shape of both: (blocks,)."""
        self._store.name(blocks, keys)

    def give_back(
        self,
        blocks: Sequence[BlockId],
        keys: Sequence[Key],
        program: ProgramKey | None,
        *,
        wanted: bool = True,
    ) -> None:
        """Takes one reference off each block of a table; the end of the table is the first to be evicted.

        Args:
            blocks: The table.
            keys: Names the contents of its first blocks; they are published if they are not yet. What is in
                unpublished blocks behind them is worthless.
            program: Retains those contents from now on; None: nobody does. It must not have ended.
            wanted: False: the program does not retain them, even if it did.
        """
        store, named = self._store, len(keys)
        contents = store.name(blocks[:named], keys)
        contents.reverse()
        if named < len(blocks):
            self._give_back_rest(blocks[named:])
        if not named:
            return
        if program is not None and wanted:
            self._retention.retain(program, contents, store.clock)
            store.clock += named
        else:
            store.stamp(contents)
            if program is not None:
                self._retention.let_go(program, contents)
        references, unheld, unhold = self._device.references, self._device.unheld, store.unhold
        for block, content in zip(reversed(blocks[:named]), contents, strict=True):
            if references[block] == 1 and content.device == block and content.warm:  # as `unhold` would do
                references[block] = 0
                unheld[block] = None
            else:
                unhold(block, content)

    def _give_back_rest(self, blocks: Sequence[BlockId]) -> None:
        """The blocks behind those that the caller names, published or not."""
        for block in reversed(blocks):
            content = self._device.contents[block]
            if content is not None:
                self._store.stamp((content,))
            self._store.unhold(block, content)

    def own(self, keys: Iterable[Key]) -> None:
        """A call that holds these private contents on the device, alone, is going to write into them: they
        are found no more, and their host copies are free."""
        for key in keys:
            content = self._store.contents[key]
            assert content.device is not None, "a call owns what it holds"
            assert self._device.references[content.device] == 1, "it holds it alone"
            assert not content.pins, "nobody else has found it"
            self._device.remove(content)
            self._store.forget(content)

    def forget(self, keys: Iterable[Key]) -> None:
        """Frees contents wherever they are, but not those that are held or may be brought in."""
        for key in keys:
            content = self._store.contents.get(key)
            if content is None or content.pins:
                continue
            if content.device is not None:
                if self._device.references[content.device]:
                    continue
                self._device.plain.append(self._store.leave_device(content))
            self._store.forget(content)

    def drop(self, keys: Iterable[Key]) -> None:
        """Forced recomputation: as `forget`, whoever else retains the contents."""
        self.forget(keys)

    def expel(self, keys: Iterable[Key]) -> None:
        """Forced swap: moves contents that nobody holds from the device to the host, as far as there is room;
        the others stay."""
        for key in keys:
            content = self._store.contents.get(key)
            if content is None or not self._device.can_evict(content):
                continue
            if self._store.copy_to_host(content, self._retention.standing_of(content)):
                self._device.plain.append(self._store.leave_device(content))

    # ── programs ────────────────────────────────────────────────────────────────────────────────────

    def program_active(self, program: ProgramKey) -> None:
        """An idle program has work again. A program is active when it first retains something."""
        self._retention.active(program)

    def program_idle(self, program: ProgramKey) -> None:
        """A program has had nothing to do for a while: its contents go before those of active ones."""
        self._retention.idle(program)

    def program_ended(self, program: ProgramKey) -> None:
        """A program will not come back: its contents go first. Give blocks that its last calls still hold
        back for nobody: for the cache, the program would be a new one."""
        self._retention.ended(program)

    # ── swaps ───────────────────────────────────────────────────────────────────────────────────────

    def drain_swaps(self) -> tuple[tuple[Copy, ...], tuple[Copy, ...]]:
        """The copies noted since the last call, for the next plan.

        Returns: outs as (device block, host block) and ins as (host block, device block), each in order.
        """
        outs, ins = self._store.drain_swaps()
        self.swapped_out += len(outs)
        self.swapped_in += len(ins)
        return outs, ins

    def check(self, tables: Iterable[Sequence[BlockId]]) -> None:
        """Checks all invariants from scratch, against the block tables of all calls.

        Raises: AssertionError.
        """
        counted = [0] * (self.size + 1)
        for table in tables:
            assert len(set(table)) == len(table), f"a table holds a block twice: {table}"
            for block in table:
                counted[block] += 1
        assert counted == self._device.references, "references do not add up"
        self._store.check()
