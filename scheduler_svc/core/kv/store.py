"""Where every run lies: the two tiers under one index.

The rules of the copies (`swaps.py`) are kept here: a host block that is read is not freed, a device block
that is written is not copied out, and a copy that nobody needs any more is not ordered.
"""

from collections.abc import Sequence

from scheduler_svc.core.ids import BlockId
from scheduler_svc.core.kv.index import RunIndex
from scheduler_svc.core.kv.retention import Retention
from scheduler_svc.core.kv.runs import NOBODY, Key, Retainer, Run
from scheduler_svc.core.kv.swaps import Copy, Swaps
from scheduler_svc.core.kv.tiers import DeviceTier, HostTier


class Store:
    """All runs of one executor."""

    def __init__(self, *, device_blocks: int, host_blocks: int) -> None:
        self.retention = Retention(lapsed=self._lapse, ended_pairs_max=device_blocks + host_blocks)
        self.device = DeviceTier(device_blocks, self.retention)
        self.host = HostTier(host_blocks, self.retention)
        self.swaps = Swaps()
        self.index = RunIndex(self.cut)
        self.clock = 0
        """Uses of blocks so far."""

    # ── runs ────────────────────────────────────────────────────────────────────────────────────────

    def name(self, blocks: Sequence[BlockId], keys: Sequence[Key], program: Retainer | None) -> list[Run]:
        """The runs of a call's first blocks. What has no name yet gets that of its key; it lies in the call's
        blocks if it was not on the device yet.

        Args:
            blocks: Held by the call. Shape: (blocks,).
            keys: From the root on. Shape: (blocks,).
            program: What it alone retains may grow.
        """
        runs: list[Run] = []
        at, end = 0, len(keys)
        while at < end:
            run = self.index.by_first.get(keys[at])
            if run is None:
                upto = self.index.unknown_upto(keys, at)
                new_keys, new_blocks = [*keys[at:upto]], [*blocks[at:upto]]
                if runs and _can_grow(runs[-1], blocks[at - 1], program):
                    self._grow(runs[-1], new_keys, new_blocks)
                else:
                    runs.append(self._begin(new_keys, new_blocks))
            else:
                run = self.index.upto(run, run.agreement(keys, at))
                upto = at + len(run.keys)
                if run.device is None:
                    run.device, run.holders = [*blocks[at:upto]], 1
                runs.append(run)
            at = upto
        return runs

    def _begin(self, keys: list[Key], blocks: list[BlockId]) -> Run:
        """A new run in blocks that one call holds."""
        run = Run(keys, blocks)
        run.holders = 1
        self.stamp(run)
        self.index.add(run)
        return run

    def _grow(self, run: Run, keys: list[Key], blocks: list[BlockId]) -> None:
        """The call that alone holds a run has computed on."""
        assert run.device is not None, "it lies there"
        if run.retainers:
            self.retention.resize(run, len(blocks))
        run.keys += keys
        run.device += blocks
        self.stamp(run)

    def join(self, runs: list[Run], blocks: Sequence[BlockId], program: Retainer | None) -> list[Run]:
        """Joins neighbours that a call alone holds, now as if it had computed them in one go.

        Args:
            runs: As `name` returned them for `blocks` and `program`. They are about to be given back.

        Returns: what they are now.
        """
        if len(runs) < 2:
            return runs
        joined: list[Run] = []
        end, was_own = 0, False
        for run in runs:
            end += len(run.keys)
            is_own = _is_own(run, blocks[end - 1], program)
            if was_own and is_own and self._can_join(joined[-1], run):
                self._join(joined[-1], run)
            else:
                joined.append(run)
            was_own = is_own
        return joined

    def _can_join(self, head: Run, tail: Run) -> bool:
        """Whether two runs of a call's own lie in the same tiers, and nobody waits for them or reads them."""
        if tail.retainers and not head.retainers:
            return False
        if head.host is None or tail.host is None:
            return head.host is None and tail.host is None
        return not (head.pins or tail.pins or self.host.is_read(head) or self.host.is_read(tail))

    def _join(self, head: Run, tail: Run) -> None:
        keys, device, host = tail.keys, tail.device, tail.host
        assert device is not None, "a call holds it"
        tail.device = tail.host = None
        self.forget(tail)
        self._grow(head, keys, device)
        if head.host is not None and host is not None:
            head.host += host

    def stamp(self, run: Run) -> None:
        """A run is used now, its tail first."""
        run.stamp = self.clock + 1
        self.clock += len(run.keys)

    def release(self, run: Run) -> None:
        """A call gives up one reference to a run, just stamped."""
        self.device.unhold(run)
        if run.host is not None:
            self.host.relist(run)

    def renew(self, run: Run) -> None:
        """A run was used in another call's blocks, and just stamped."""
        self.device.renew(run)
        self.host.relist(run)

    def unpin(self, run: Run) -> None:
        """A call that found it on the host only has brought it in, or has gone away."""
        run.pins -= 1
        self.host.relist(run)

    def forget(self, run: Run) -> None:
        """A run is off the device, and not wanted on the host."""
        if run.host is not None:
            self.host.free(self.leave_host(run))
        self.index.remove(run)
        self.retention.forget(run)
        run.keys = []

    def cut(self, run: Run, count: int) -> Run:
        """Cuts the first blocks of a run off. Returns: those as a run; `run` keeps the others."""
        head = self.retention.cut(run, count)
        self.index.add(head)
        self.index.add(run)
        self.device.cut(head, run)
        if self.host.is_read(head):
            self.host.read.append(head)
        self.host.relist(head)
        return head

    def _lapse(self, run: Run) -> None:
        """Lists a run by its new standing in the tiers where it can be evicted."""
        self.device.lapse(run)
        self.host.lapse(run)

    # ── between the tiers ───────────────────────────────────────────────────────────────────────────

    def leave_device(self, run: Run) -> list[BlockId]:
        """Takes a run off its device blocks. Returns: them."""
        blocks = self.device.remove(run)
        if self.swaps.ins:
            self.cancel_ins(blocks)
        return blocks

    def leave_host(self, run: Run) -> list[BlockId]:
        """Takes a run off its host blocks. Returns: them."""
        blocks, run.host = run.host, None
        assert blocks is not None, "it lies there"
        self.cancel_outs(blocks)
        return blocks

    def note_in(self, run: Run, blocks: list[BlockId]) -> None:
        """Device blocks that a call holds are to receive a run that is on the host only."""
        assert run.host is not None, "a run lies in some tier"
        if self.swaps.ins:
            self.cancel_ins(blocks)
        for block, host in zip(blocks, run.host, strict=True):
            self.swaps.ins[block] = host
            self.host.reading[host] = None
        self.host.read.append(run)
        run.device, run.holders = blocks, 1

    def drain_swaps(self) -> tuple[tuple[Copy, ...], tuple[Copy, ...]]:
        """The noted copies, outs and ins; none are left and nothing is kept for them."""
        outs, ins = self.swaps.drain()
        if self.host.read:
            self.host.all_read()
        return outs, ins

    def cancel_ins(self, blocks: Sequence[BlockId]) -> None:
        """What noted copies would bring to these device blocks is not needed there any more."""
        for block in blocks:
            host = self.swaps.ins.pop(block, None)
            if host is not None:
                self.host.read_done(host)

    def cancel_outs(self, blocks: Sequence[BlockId]) -> None:
        """Copies to these host blocks are not needed, unless they are read; then they are."""
        for block in blocks:
            if block not in self.host.reading:
                self.swaps.outs.pop(block, None)

    # ── checks ──────────────────────────────────────────────────────────────────────────────────────

    def check(self, tables: Sequence[Sequence[BlockId]]) -> None:
        """Checks all invariants against the block tables of all calls.

        Raises: AssertionError.
        """
        runs = list(self.index.by_first.values())
        stamps: list[int] = []
        for key, run in self.index.by_first.items():
            assert run.keys[0] == key, "a run is listed under another key"
            assert run.device is not None or run.host is not None, "a run lies nowhere"
            assert {len(run.keys)} == {len(blocks) for blocks in (run.device, run.host) if blocks is not None}
            assert run.device is not None or not run.holders, "a call holds what is not there"
            assert run.host is not None or not run.pins, "a call waits for what is not there"
            stamps += range(run.stamp, run.stamp + len(run.keys))
        assert len(set(stamps)) == len(stamps), "two blocks have one stamp"
        assert not stamps or 0 < min(stamps) <= max(stamps) <= self.clock
        keys = [key for run in runs for key in run.keys]
        assert len(set(keys)) == len(keys), "a key is in two runs"
        self.device.check(runs, tables)
        self.host.check(runs)
        self.retention.check(runs)
        assert list(self.host.reading) == list(self.swaps.ins.values()), "reads and swap-ins differ"
        assert not set(self.host.plain) & set(self.swaps.ins.values()), "a block is free and read"


def _can_grow(run: Run, block: BlockId, program: Retainer | None) -> bool:
    """Whether a run is a call's own and on the device only."""
    return run.host is None and _is_own(run, block, program)


def _is_own(run: Run, block: BlockId, program: Retainer | None) -> bool:
    """Whether one call alone holds a run, which no other program retains.

    Args:
        block: The block of the call that holds what the run ends with, or a copy of it.
    """
    return (
        run.holders == 1
        and run.device is not None
        and run.device[-1] == block
        and (run.retainers is NOBODY or (program is not None and run.retainers is program.alone))
    )
