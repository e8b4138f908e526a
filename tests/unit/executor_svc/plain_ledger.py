"""`executor_svc.simulated_kv.BlockLedger` written without columns: the oracle of the fast one."""

from collections import Counter
from collections.abc import Iterator, Sequence

from executor_svc.runner import PlanViolation


class PlainLedger:
    """Content and users of all blocks of both tiers."""

    def __init__(self, *, block_size: int, num_blocks: int, host_blocks: int) -> None:
        self.block_size = block_size
        self.num_blocks = num_blocks
        self.host_blocks = host_blocks
        self._device: dict[int, list[int]] = {}
        self._host: dict[int, list[int]] = {}
        self._users: Counter[int] = Counter()

    def use(self, blocks: Sequence[int]) -> None:
        """A row of the batch uses these blocks from now on.

        Raises: PlanViolation when one is the null block or not on this device.
        """
        for block in blocks:
            self._check_device(block)
        self._users.update(blocks)

    def leave(self, blocks: Sequence[int]) -> None:
        """The row is no longer in the batch; content stays."""
        self._users.subtract(blocks)

    def check_holds(self, table: Sequence[int], hashes: Sequence[int], computed: int) -> None:
        """Proves that the first `computed` positions are in the table's blocks.

        Args:
            hashes: hash of each prefix, by position.

        Raises: PlanViolation naming the first block that holds something else.
        """
        for block, start, end in self._spans(table, 0, computed):
            slots = self._device.get(block, ())
            if len(slots) < end - start or slots[end - start - 1] != hashes[end - 1]:
                raise PlanViolation(f"block {block} does not hold the KV of positions {start}..{end - 1}")

    def write(self, table: Sequence[int], hashes: Sequence[int], start: int, end: int) -> None:
        """Computes the KV of positions [start, end) into the table's blocks.

        Raises: PlanViolation when the table is too short, another row uses a block, or what comes before is
        missing.
        """
        size = self.block_size
        if end > len(table) * size:
            raise PlanViolation(f"positions up to {end - 1} do not fit into {len(table)} blocks")
        if end - start == 1:  # a decode row: most of a simulation's work
            self._fill(table[start // size], start % size, hashes, start, end)
            return
        for block, first, last in self._spans(table, start, end):
            self._fill(block, first % size, hashes, first, last)

    def swap_out(self, device_block: int, host_block: int) -> None:
        """Copies a block to the host tier."""
        self._check_device(device_block)
        self._check_host(host_block)
        self._host[host_block] = list(self._device.get(device_block, ()))

    def swap_in(self, host_block: int, device_block: int) -> None:
        """Copies a block back to the device.

        Raises: PlanViolation when a row of the batch uses the target.
        """
        self._check_host(host_block)
        self._check_device(device_block)
        if self._users[device_block]:
            raise PlanViolation(f"block {device_block} is swapped in while a row of the batch uses it")
        self._device[device_block] = list(self._host.get(host_block, ()))

    def _fill(self, block: int, slot: int, hashes: Sequence[int], first: int, last: int) -> None:
        if self._users[block] != 1:
            raise PlanViolation(f"block {block} is written while {self._users[block]} rows use it")
        slots = self._device.get(block)
        if slots is None:
            slots = self._device[block] = []
        if len(slots) < slot or (slot and slots[slot - 1] != hashes[first - 1]):
            raise PlanViolation(f"block {block} does not hold the KV before position {first}")
        slots[slot:] = hashes[first:last]

    def _spans(self, table: Sequence[int], start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """(block, first position, end) of each block that positions [start, end) touch."""
        while start < end:
            index = start // self.block_size
            stop = min(end, (index + 1) * self.block_size)
            yield table[index], start, stop
            start = stop

    def _check_device(self, block: int) -> None:
        if not 0 < block < self.num_blocks:
            raise PlanViolation(f"block {block} is not one of the device's 1..{self.num_blocks - 1}")

    def _check_host(self, block: int) -> None:
        if not 0 <= block < self.host_blocks:
            raise PlanViolation(f"host block {block} is not one of {self.host_blocks}")
