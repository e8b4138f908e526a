"""KV memory of a simulated executor: what each block of both tiers holds.

A block is a list of sums, one for each position written so far:

    block    [ s0, s1, s2, s3 ]      sk = state after its position k - state before its position 0

So the state after any position is the sum of the last entries of the full blocks before it and the entry of
its own block, plus the state before the first token: each step reads every block of the table. Writing
position k forgets what the block held behind it, as new content makes the rest meaningless; reading what is
not there fails.
"""

from collections.abc import Iterable, Sequence

from sim.broken import Broken, require
from sim.model import state_after, states_after

Pairs = Iterable[tuple[int, int]]


class BlockMemory:
    """Blocks by id, device and host.

    Args:
        num_blocks: Device blocks, the null block (0) included.
        host_blocks: Host blocks; 0 is one of them.
    """

    def __init__(self, *, block_size: int, num_blocks: int, host_blocks: int) -> None:
        self._size = block_size
        self._device: list[list[int]] = [[] for _ in range(num_blocks)]
        self._host: list[list[int]] = [[] for _ in range(host_blocks)]

    def state(self, begin: int, table: Sequence[int], length: int) -> int:
        """The state after the first `length` tokens of a call whose state is `begin` before them.

        Raises: Broken when a position of it was never written, or was overwritten.
        """
        size, device = self._size, self._device
        full, rest = divmod(length, size)
        try:
            if rest:
                state = begin + device[table[full]][rest - 1]
            else:
                state = begin
            last = size - 1
            return state + sum([device[block][last] for block in table[:full]])
        except IndexError:
            raise Broken(f"KV of the first {length} tokens is not all in blocks {list(table)}") from None

    def compute(self, begin: int, table: Sequence[int], start: int, tokens: Sequence[int]) -> int:
        """Writes the KV of `tokens` at positions from `start` on, and returns the state after them."""
        state = self.state(begin, table, start)
        if len(tokens) == 1:
            after = state_after(state, tokens[0])
            self._write(table, start, state, [after])
            return after
        states = states_after(state, tokens)
        self._write(table, start, state, states)
        return states[-1]

    def _write(self, table: Sequence[int], start: int, before: int, states: list[int]) -> None:
        size = self._size
        done = 0
        while done < len(states):
            index, offset = divmod(start + done, size)
            block = self._device[table[index]]
            base = before - block[offset - 1] if offset else before
            part = states[done : done + size - offset]
            block[offset:] = [state - base for state in part]
            before = part[-1]
            done += len(part)

    def swap_out(self, pairs: Pairs) -> int:
        """Copies (device, host) pairs of blocks and returns how many."""
        return _copy(self._device, self._host, pairs, source_from=1, target_from=0)

    def swap_in(self, pairs: Pairs) -> int:
        """Copies (host, device) pairs of blocks and returns how many."""
        return _copy(self._host, self._device, pairs, source_from=0, target_from=1)


def _copy(
    source: list[list[int]], target: list[list[int]], pairs: Pairs, *, source_from: int, target_from: int
) -> int:
    listed = [(int(a), int(b)) for a, b in pairs]
    for a, b in listed:
        require(source_from <= a < len(source), f"a copy from block {a}, which there is not")
        require(target_from <= b < len(target), f"a copy to block {b}, which there is not")
    require(len({b for _, b in listed}) == len(listed), "two copies to one block")
    for a, b in listed:
        target[b] = source[a].copy()
    return len(listed)
