"""The KV of one executor in two tiers, found by content.

Theory of operation. Everything that is worth keeping has a key and lies in a device block, in a host block,
or in both; what follows each other in a chain of keys is kept as a run (`runs.py`). A call holds device
blocks; when it gives them back under keys, nothing is copied and nothing forgotten: preemption, retention
over tool calls and prefix reuse are this one act. Who comes back with the same keys finds them, on the device
or on the host, and holds what was found; what is on the host only is brought in. A device block is

    held      by one or more calls; findable if it is in a run
    unheld    by none, but it is in a run
    plain     by none, and what is in it is worthless

When plain blocks run out, unheld ones are evicted in this order (`Standing`): what only ended programs
retained, or nobody; what only idle or ended programs retain; the rest; each least recently used first. The
first are dropped. Others move to the host, if it is worth it and there is room: a plain host block, or one
whose content comes earlier in the same order. A content that has left both tiers leaves no trace. One that
was brought in keeps its host copy while the host has room: to evict it again then needs no copy.

All is counted and ordered block by block, as if there were no runs; but a call that starts or ends touches
its runs, not its blocks. With a host tier, copies are listed by block.

Ids only: the tensors are the executor's. Copies are noted (`swaps.py`) and leave with the next plan. Blocks
taken since the last plan must not be given back under keys before it: nobody has computed them.
"""

from collections.abc import Iterable, Iterator, Sequence

from scheduler_svc.core.ids import BlockId
from scheduler_svc.core.kv.departures import Departures
from scheduler_svc.core.kv.eviction import Eviction
from scheduler_svc.core.kv.runs import NOTHING_FOUND, Found, Key, ProgramKey
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
        self._eviction = Eviction(self._store)
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
        return self._eviction.move_to_host

    @move_to_host.setter
    def move_to_host(self, worth_it: bool) -> None:
        self._eviction.move_to_host = worth_it

    @property
    def available(self) -> int:
        """Device blocks that `take` can hand out."""
        return len(self._device.plain) + self._device.unheld

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
        return self._eviction.forgotten

    @property
    def swaps_pending(self) -> int:
        """Copies that the next plan will order."""
        return len(self._store.swaps)

    @property
    def live_footprint(self) -> int:
        """Sum of the footprints of all programs that are neither idle nor ended."""
        return self._retention.live_blocks

    def footprint(self, program: ProgramKey) -> int:
        """Contents retained for a program, whichever tier they are in; 0 if it has ended."""
        return self._retention.footprint(program)

    # ── finding ─────────────────────────────────────────────────────────────────────────────────────

    def find(self, keys: Sequence[Key]) -> Found:
        """The longest known prefix of `keys`, from the root on, over both tiers; changes nothing."""
        device: list[BlockId | None] = []
        for run, count in self._store.index.prefix(keys):
            device += [None] * count if run.device is None else run.device[:count]
        return Found(keys[: len(device)], device) if device else NOTHING_FOUND

    def hold(self, found: Found) -> None:
        """Adds a reference to the device blocks just found; what is on the host only is not evicted from
        there."""
        for run in self._store.index.exactly(found.keys):
            if run.device is None:
                run.pins += 1
            else:
                self._device.hold(run)

    def let_go(self, found: Found) -> None:
        """Undoes `hold`. Device blocks that nobody else holds count as just used, the first ones last."""
        store, at = self._store, len(found)
        for run in reversed(list(store.index.exactly(found.keys))):
            at -= len(run.keys)
            if found.device[at] is None:
                store.unpin(run)
            else:
                store.stamp(run)
                store.release(run)

    def bring_in(self, found: Found) -> list[BlockId]:
        """Takes device blocks for what is held on the host only, and notes the copies.

        `available` must be at least `found.to_bring`.

        Returns: the device blocks of all that was found. The caller has one reference to each.
        """
        if found.to_bring:
            self._bring(found)
        table: list[BlockId] = []
        for run, _ in self._store.index.prefix(found.keys):
            assert run.device is not None, "all is on the device now"
            table += run.device
        return table

    def _bring(self, found: Found) -> None:
        waited_for, at = [], 0
        for run in self._store.index.exactly(found.keys):
            if found.device[at] is None:
                waited_for.append(run)
            at += len(run.keys)
        missing = [run for run in waited_for if run.device is None]
        for run in waited_for:
            if run.device is not None:
                self._device.hold(run)  # somebody else brought it in
        blocks = self.take(sum(map(len, missing)))
        for run in missing:
            self._store.note_in(run, blocks[: len(run.keys)])
            del blocks[: len(run.keys)]
        for run in waited_for:
            self._store.unpin(run)

    # ── blocks ──────────────────────────────────────────────────────────────────────────────────────

    def take(self, count: int) -> list[BlockId]:
        """Hands out `count` <= available device blocks: plain ones first, then evicts."""
        plain = self._device.plain
        if 0 <= count <= len(plain):
            taken = plain[: -count - 1 : -1]
            del plain[len(plain) - count :]
            return taken
        assert 0 <= count <= self.available, f"{count} blocks wanted, {self.available} available"
        taken = plain[::-1]
        plain.clear()
        return taken + self._eviction.evict(count - len(taken))

    def publish(self, blocks: Sequence[BlockId], keys: Sequence[Key]) -> None:
        """Makes the first blocks of a table findable, each unless its content is found on the device already.

        Args:
            blocks: Held, from the beginning of the table on. Shape: (blocks,).
            keys: From the root on. Shape: (blocks,).
        """
        self._store.name(blocks, keys, None)

    def give_back(
        self, blocks: Sequence[BlockId], keys: Sequence[Key], program: ProgramKey | None = None
    ) -> None:
        """Takes one reference off each block of a table; the end of the table is the first to be evicted.

        Args:
            blocks: The table, or what is left of it when its private tail has been given back.
            keys: Name the contents of its first blocks, at least of those that were found or published; the
                others are published. What is in the blocks behind them is worthless.
            program: Retains those contents from now on; None: nobody does. It must not have ended.
        """
        store, plain, at = self._store, self._device.plain, len(keys)
        plain += reversed(blocks[at:])
        if not at:
            return
        retainer = None if program is None else self._retention.retainer(program, store.clock)
        for run in reversed(store.join(store.name(blocks[:at], keys, retainer), blocks, retainer)):
            upto, at = at, at - len(run.keys)
            store.stamp(run)
            if retainer is not None:
                self._retention.retain(retainer, run)
            if run.device is not None and run.device[0] == blocks[at]:
                store.release(run)
            else:
                plain += reversed(blocks[at:upto])  # a private copy: two calls computed the same
                store.renew(run)

    def own(self, keys: Sequence[Key]) -> None:
        """A call that holds these private contents on the device, alone, is going to write into them: they
        are found no more, and their host copies are free."""
        for run in self._store.index.exactly(keys):
            assert run.device is not None, "a call owns what it holds"
            assert run.holders == 1, "it holds it alone"
            assert not run.pins, "nobody else has found it"
            self._device.remove(run)
            self._store.forget(run)

    def forget(self, keys: Sequence[Key]) -> None:
        """Frees contents wherever they are, but not those that are held or may be brought in."""
        for run in self._store.index.exactly(keys):
            if run.pins or run.holders:
                continue
            if run.device is not None:
                self._device.plain += self._store.leave_device(run)
            self._store.forget(run)

    def drop(self, keys: Sequence[Key]) -> None:
        """Forced recomputation: as `forget`, whoever else retains the contents."""
        self.forget(keys)

    def expel(self, keys: Sequence[Key]) -> None:
        """Forced swap: moves contents that nobody holds from the device to the host, as far as there is room;
        the others stay."""
        for run in self._store.index.exactly(keys):
            if self._device.can_evict(run):
                self._device.plain += self._eviction.expel(run)

    def departures(self) -> Departures:
        """Nobody has left yet."""
        return Departures(self._store.index)

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

    # ── to look at; slow ────────────────────────────────────────────────────────────────────────────

    def contents(self) -> Iterator[tuple[Key, BlockId | None, BlockId | None]]:
        """All that is kept: keys with their device and host blocks."""
        for run in self._store.index.by_first.values():
            nowhere = [None] * len(run.keys)
            yield from zip(run.keys, run.device or nowhere, run.host or nowhere, strict=True)

    def references(self, block: BlockId) -> int:
        """How many calls hold a device block."""
        for run in self._store.index.by_first.values():
            if run.device is not None and block in run.device:
                return run.holders
        return int(block not in self._device.plain)

    def check(self, tables: Iterable[Sequence[BlockId]]) -> None:
        """Checks all invariants from scratch, against the block tables of all calls.

        Raises: AssertionError.
        """
        self._store.check(list(tables))
