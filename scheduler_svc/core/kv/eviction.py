"""How runs leave the device: forgotten, or moved to the host, which may push others out of it.

An evicted run goes from the tail on, one that is expelled from the head on; either as much at once as can
be. Block by block all would come out the same, to the ids of the blocks, so that it does not matter where
runs were cut before. Copies that are noted and not ordered yet may be on their way to some blocks of a run
and not to others; only such a run goes block by block.

Why a part of a run finds room on the host at once: its stamps follow each other, as do those of each run
there. So a run there is older than all of it or newer than all of it, and if it goes for one block of the
part, it goes on for the next.
"""

from scheduler_svc.core.ids import BlockId
from scheduler_svc.core.kv.runs import Run, Standing
from scheduler_svc.core.kv.store import Store


class Eviction:
    """Decides who leaves the device and the host, and how."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._device = store.device
        self._host = store.host
        self._outs = store.swaps.outs
        self._ins = store.swaps.ins
        self.move_to_host = True
        """Whether an evicted run that is still wanted is copied to the host, or dropped."""
        self.forgotten = 0
        """Contents forgotten to make room so far."""

    def evict(self, count: int) -> list[BlockId]:
        """Frees `count` device blocks that nobody holds; there are so many."""
        blocks: list[BlockId] = []
        while len(blocks) < count and (lapsed := self._device.worst_lapsed()) is not None:
            standing, run = lapsed
            blocks += self._evict(run, count - len(blocks), standing)
        while len(blocks) < count:  # nothing is left to settle: the others are live
            blocks += self._evict(self._device.oldest(), count - len(blocks), Standing.LIVE)
        return blocks

    def expel(self, run: Run) -> list[BlockId]:
        """Moves an unheld run of the device to the host, its head first, as far as there is room.

        Returns: the blocks that it left, in its order.
        """
        if run.host is not None:
            return self._leave_behind(run)
        standing = self._store.retention.standing_of(run)
        blocks: list[BlockId] = []
        rest: Run | None = run
        while rest is not None:
            part, rest = (self._store.cut(rest, 1), rest) if self._is_split(rest) else (rest, None)
            blocks += self._expel(part, standing)
        return blocks

    def _expel(self, run: Run, standing: Standing) -> list[BlockId]:
        blocks: list[BlockId] = []
        while run.device is not None and (room := self._room_on_host(run, standing)):
            head = run if len(room) == len(run.keys) else self._store.cut(run, len(room))
            assert head.device is not None, "it lies there"
            room.reverse()
            self._outs.update(zip(room, head.device, strict=True))
            head.host = room
            blocks += self._leave_behind(head)
        return blocks

    def _leave_behind(self, run: Run) -> list[BlockId]:
        """Takes a run off the device that is on the host as well. Returns: the blocks that it left."""
        blocks = self._store.leave_device(run)
        self._host.relist(run)
        return blocks

    # ── eviction from the device; blocks are in order of eviction ───────────────────────────────────

    def _evict(self, run: Run, count_max: int, standing: Standing) -> list[BlockId]:
        """Evicts the tail of an unheld run, or all of it."""
        count = min(count_max, len(run.keys))
        moves = self.move_to_host and self._host.size > 0 and standing is not Standing.ENDED
        if run.host is None and not moves:
            return self._drop(run, count)
        if self._is_split(run):
            count = 1
        if count < len(run.keys):
            self._store.cut(run, len(run.keys) - count)
        if run.host is None:
            return self._move_or_drop(run, standing)
        return self._leave_behind(run)[::-1]

    def _drop(self, run: Run, count: int) -> list[BlockId]:
        """Forgets the last blocks of a run that is on the device only."""
        self.forgotten += count
        if count == len(run.keys):
            blocks = self._store.leave_device(run)
            self._store.forget(run)
        else:
            self._store.retention.resize(run, -count)
            blocks = self._device.shorten(run, count)
            if self._ins:
                self._store.cancel_ins(blocks)
        return blocks[::-1]

    def _move_or_drop(self, run: Run, standing: Standing) -> list[BlockId]:
        """Copies to the host as much of the tail of a run as finds room at once, and so on."""
        blocks: list[BlockId] = []
        while room := self._room_on_host(run, standing):
            missing = len(run.keys) - len(room)
            rest = self._store.cut(run, missing) if missing else None
            assert run.device is not None, "it lies there"
            self._outs.update(zip(reversed(room), reversed(run.device), strict=True))
            run.host = room
            blocks += self._leave_behind(run)[::-1]
            if rest is None:
                return blocks
            run = rest
        return blocks + self._drop(run, len(run.keys))

    def _is_awaited(self, run: Run) -> bool:
        """Whether copies are on their way to some blocks of a run."""
        return bool(self._ins) and run.device is not None and not self._ins.keys().isdisjoint(run.device)

    def _is_split(self, run: Run) -> bool:
        """Whether a run must go block by block."""
        return len(run.keys) > 1 and self._is_awaited(run)

    # ── room on the host ────────────────────────────────────────────────────────────────────────────

    def _room_on_host(self, run: Run, standing: Standing) -> list[BlockId]:
        """Host blocks for one part of a run: that which is at its end is to be used first. None: those that
        are there are worth more than any of it, or what it is to hold is still on its way to the device."""
        if self._is_awaited(run):
            return []
        plain, count = self._host.plain, len(run.keys)
        if plain:
            room = plain[-count:]
            del plain[-count:]
            return room
        victim = self._host.worst(standing, run.stamp)
        return [] if victim is None else self._make_room(victim, min(count, len(victim.keys)))

    def _make_room(self, run: Run, count: int) -> list[BlockId]:
        """The last blocks of a run leave the host. Returns: them."""
        if run.device is None:
            self.forgotten += count
            if count < len(run.keys):
                return self._shorten(run, count)
        elif count < len(run.keys):
            self._store.cut(run, len(run.keys) - count)
        room = self._store.leave_host(run)
        if run.device is None:
            self._store.forget(run)
        return room

    def _shorten(self, run: Run, count: int) -> list[BlockId]:
        """Forgets the last blocks, but not all, of a run that is on the host only. Returns: them."""
        assert run.host is not None, "it lies there"
        room = run.host[-count:]
        self._store.cancel_outs(room)
        self._store.retention.resize(run, -count)
        run.shorten(count)
        return room
