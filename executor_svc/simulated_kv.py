"""What the blocks of the simulated executor hold, to the slot.

Theory of operation: the KV of a position depends on all tokens up to it, so a slot's content is named by
the hash of that prefix. A block keeps the hashes of its filled slots, in order; writing a slot drops those
behind it. A slot may be written only when the slot before it holds the prefix that it continues, and only
while no other row of the batch uses the block. Hence: a block whose k-th slot holds a prefix's hash holds
all k of them, and one comparison a block proves a claim of computed tokens.

Blocks are counted as used by the rows of the current batch alone: a paused call's blocks may be given away
without a word; what is left in them is checked when the call joins again.

All of it is columns, indexed by block: contents, number of filled slots, number of users. The decode rows of
a batch, which write one slot each into blocks of their own, are checked and written together.
"""

import numpy as np
import numpy.typing as npt

from executor_svc.runner import PlanViolation
from executor_svc.simulated_tokens import Hashes

Indices = npt.NDArray[np.intp]
Mask = npt.NDArray[np.bool_]

_NULL_BLOCK = _ZERO = np.array(0, np.intp)
ONE = np.array(1, np.intp)
"""Operands of columns are arrays without dimensions: numpy converts a plain number anew each time."""


class BlockLedger:
    """Content and users of all blocks of both tiers. Tables and hashes are given from position 0 on."""

    def __init__(self, *, block_size: int, num_blocks: int, host_blocks: int) -> None:
        self.block_size = block_size
        self.num_blocks = num_blocks
        self.host_blocks = host_blocks
        self._block_size = np.array(block_size, np.intp)
        self._num_blocks = np.array(num_blocks, np.intp)
        self._content = np.zeros((num_blocks, block_size), np.uint64)
        self._slots = self._content.reshape(-1)
        """The same memory, slot after slot."""
        self._filled = np.zeros(num_blocks, np.intp)
        self._users = np.zeros(num_blocks, np.intp)
        self._host_content = np.zeros((host_blocks, block_size), np.uint64)
        self._host_filled = np.zeros(host_blocks, np.intp)

    def use(self, blocks: Indices) -> None:
        """Rows of the batch use these blocks from now on.

        Raises: PlanViolation when one is the null block or not on this device.
        """
        inside = blocks < self._num_blocks
        inside &= blocks > _NULL_BLOCK
        if not all_of(inside):
            self._check_device(int(blocks[inside.argmin()]))
        np.add.at(self._users, blocks, 1)

    def leave(self, table: Indices) -> None:
        """The row is no longer in the batch; content stays."""
        np.subtract.at(self._users, table, 1)

    def check_holds(self, table: Indices, hashes: Hashes, computed: int) -> None:
        """Proves that the first `computed` positions are in the table's blocks.

        Args:
            hashes: hash of each prefix, by position.

        Raises: PlanViolation naming the first block that holds something else.
        """
        ends = _ends(0, computed, self.block_size)
        blocks = table[: len(ends)]
        slots = (ends - 1) % self.block_size
        holds = (self._filled[blocks] > slots) & (self._content[blocks, slots] == hashes[ends - 1])
        if not holds.all():
            index = int(holds.argmin())
            raise PlanViolation(
                f"block {table[index]} does not hold the KV of positions"
                f" {index * self.block_size}..{ends[index] - 1}"
            )

    def write(self, table: Indices, hashes: Hashes, start: int, end: int) -> None:
        """Computes the KV of positions [start, end) of one row into the table's blocks.

        Raises: PlanViolation when the table is too short, another row uses a block, or what comes before is
        missing.
        """
        size = self.block_size
        if end > len(table) * size:
            raise PlanViolation(f"positions up to {end - 1} do not fit into {len(table)} blocks")
        ends = _ends(start, end, size)
        blocks = table[start // size : start // size + len(ends)]
        self._check_written_alone(blocks[:1])
        self._check_continues(int(blocks[0]), start, hashes)
        self._check_written_alone(blocks)
        positions = np.arange(start, end)
        self._slots[table[positions // size] * size + positions % size] = hashes[start:end]
        self._filled[blocks] = (ends - 1) % size + 1

    def write_each(self, blocks: Indices, slots: Indices, priors: Hashes, hashes: Hashes) -> bool:
        """Computes one position of each of many rows, all of them or none.

        Args:
            blocks: the block that each row writes to. Shape of all arguments: (rows,).
            slots: the slot in that block.
            priors: hash of the prefix that each row continues; of no meaning where its slot is 0.
            hashes: hash of the prefix that each row writes.

        Returns: False when `write` would refuse any of them: nothing was written.
        """
        cells = blocks * self._block_size
        cells += slots
        allowed = self._slots[cells - ONE] == priors
        allowed |= slots == _ZERO
        allowed &= self._filled[blocks] >= slots
        allowed &= self._users[blocks] == ONE
        if not all_of(allowed):
            return False
        self._slots[cells] = hashes
        self._filled[blocks] = slots + ONE
        return True

    def swap_out(self, device_block: int, host_block: int) -> None:
        """Copies a block to the host tier."""
        self._check_device(device_block)
        self._check_host(host_block)
        self._host_content[host_block] = self._content[device_block]
        self._host_filled[host_block] = self._filled[device_block]

    def swap_in(self, host_block: int, device_block: int) -> None:
        """Copies a block back to the device.

        Raises: PlanViolation when a row of the batch uses the target.
        """
        self._check_host(host_block)
        self._check_device(device_block)
        if self._users[device_block]:
            raise PlanViolation(f"block {device_block} is swapped in while a row of the batch uses it")
        self._content[device_block] = self._host_content[host_block]
        self._filled[device_block] = self._host_filled[host_block]

    def _check_written_alone(self, blocks: Indices) -> None:
        users = self._users[blocks]
        if (users != 1).any():
            index = int((users != 1).argmax())
            raise PlanViolation(f"block {blocks[index]} is written while {users[index]} rows use it")

    def _check_continues(self, block: int, start: int, hashes: Hashes) -> None:
        slot = start % self.block_size
        if slot > self._filled[block] or (slot and self._content[block, slot - 1] != hashes[start - 1]):
            raise PlanViolation(f"block {block} does not hold the KV before position {start}")

    def _check_device(self, block: int) -> None:
        if not 0 < block < self.num_blocks:
            raise PlanViolation(f"block {block} is not one of the device's 1..{self.num_blocks - 1}")

    def _check_host(self, block: int) -> None:
        if not 0 <= block < self.host_blocks:
            raise PlanViolation(f"host block {block} is not one of {self.host_blocks}")


def all_of(mask: Mask) -> bool:
    """`mask.all()`, several times as fast."""
    return np.count_nonzero(mask) == len(mask)


def _ends(start: int, end: int, block_size: int) -> Indices:
    """End of the part of each block that positions [start, end) touch."""
    first = start // block_size * block_size + block_size
    return np.minimum(np.arange(first, end + block_size, block_size), end)
