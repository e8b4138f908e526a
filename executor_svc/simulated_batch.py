"""The rows of the simulated executor's batch, as columns.

Theory of operation: what is one number a row (tokens computed, tokens known, ...) is a column in the plan's
order. What is long, a row's prefix hashes and its block table, lies in the row's *lane* of two wide arrays; a
row keeps its lane for as long as it is in the batch, so that a batch in another order costs one permutation
of the short columns. A batch that only decodes advances by a few vector operations, whatever its size:

    row        0    1    2            lane 0  | h h h h h h h .  |   hashes
    lane       2    0    1            lane 1  | h h h h h . . .  |   `known` of them are filled
    computed   6    6    4            lane 2  | h h h h h h h .  |
    known      7    7    5

A call that is not in the batch keeps its hashes by itself, see `SimulatedCall`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from executor_svc.simulated_kv import ONE, BlockLedger, Indices, Mask, all_of
from executor_svc.simulated_tokens import Hashes, TokenRule, Tokens, extend_each

Selection = Indices | slice
"""Some rows of a batch: their numbers, or ALL."""
ALL = slice(None)

_LANE, _COMPUTED, _KNOWN, _BLOCKS, _ROOM, _FAILED = range(6)


@dataclass(slots=True)
class SimulatedCall:
    """A known call."""

    hashes: Hashes
    """Hash of the prefix that ends at each position, prompt and output; stale while the call is a row."""
    failure: str = ""
    """Why it cannot run; empty when it can."""
    failure_reported: bool = field(default=False)


class Batch:
    """The rows of the current batch, and the lanes that hold their hashes and tables.

    Invariant: 0 <= computed <= known, and a row's lane holds `known` hashes and `blocks` block ids.
    """

    def __init__(self, *, seats: int, block_size: int, length_max: int) -> None:
        """
        Args:
            seats: most rows.
            length_max: most tokens of a row, whatever its table could hold.
        """
        self.handles: Sequence[int] = ()
        self.has_failed = False
        """Whether any row's call has failed."""
        self._block_size = np.array(block_size, np.intp)
        self._length_max = np.array(length_max, np.intp)
        self._row_of: dict[int, int] = {}
        self._free_lanes = list(range(seats))
        self._longest = 0
        """Hashes that the longest lane holds after the next step, at most."""
        self._hashes = _Lanes(seats, np.uint64)
        self._tables = _Lanes(seats, np.intp)
        self._arrange(np.zeros((6, 1), np.intp))

    # ── who is in it ────────────────────────────────────────────────────────────────────────────────

    def leaving(self, handles: Sequence[int]) -> list[int]:
        """Rows of this batch that are not among `handles`."""
        staying = set(handles)
        return [row for handle, row in self._row_of.items() if handle not in staying]

    def entering(self, handles: Sequence[int]) -> list[int]:
        """Rows of the batch of `handles` that are not in this one."""
        return [row for row, handle in enumerate(handles) if handle not in self._row_of]

    def regroup(self, handles: Sequence[int], leaving: Sequence[int], entering: Sequence[int]) -> None:
        """The batch of `handles`; entering rows have a lane, and nothing in it."""
        self._free_lanes += self.lane[list(leaving)].tolist()
        before = np.array([self._row_of.get(handle, -1) for handle in handles] + [-1], np.intp)
        columns = self._columns[:, before]  # the entry -1 is all zeros
        for row in entering:
            columns[_LANE, row] = self._free_lanes.pop()
        self._arrange(columns)
        self.handles = handles
        self._row_of = dict(zip(handles, range(len(handles)), strict=True))

    def open(self, row: int, call: SimulatedCall, computed: int) -> None:
        """A row takes its call's hashes."""
        count = len(call.hashes)
        self._reserve_hashes(count + 1)
        self._hashes.line(self.lane[row])[:count] = call.hashes
        self.known[row] = count
        self.computed[row] = computed
        self.computed_sum += computed
        self.failed[row] = bool(call.failure)
        self.has_failed |= bool(call.failure)

    def give_blocks(self, rows: Indices, counts: Indices, blocks: Indices) -> None:
        """Tables grow.

        Args:
            rows: Shape: (growing rows,).
            counts: blocks for each of them. Shape: (growing rows,).
            blocks: all of them, row after row. Shape: (sum of counts,).
        """
        starts = self.blocks[rows]
        ends = starts + counts
        if self._tables.reserve(int(ends.max())):
            self._table_bases = self._tables.bases(self.lane)
        cells = self._table_bases[rows] + starts
        if not all_of(counts == ONE):  # lists of several blocks: one cell after the other
            first_of_list = np.cumsum(counts) - counts
            cells = np.repeat(cells - first_of_list, counts) + np.arange(len(blocks))
        self._tables.flat[cells] = blocks
        self.blocks[rows] = ends
        self.room[rows] = np.minimum(ends * self._block_size, self._length_max)

    def hashes(self, row: int) -> Hashes:
        """The prefix hashes of a row: a view, gone when the row is."""
        return self._hashes.line(self.lane[row])[: self.known[row]]

    def table(self, row: int) -> Indices:
        """The block table of a row: a view, gone when the row is."""
        return self._tables.line(self.lane[row])[: self.blocks[row]]

    # ── what a step does ────────────────────────────────────────────────────────────────────────────

    def compute_each(self, rows: Selection, kv: BlockLedger) -> bool:
        """Computes one token of each of these rows, or nothing when any of them must not be computed."""
        position = self.computed[rows]
        fits = position < self.known[rows]
        fits &= position < self.room[rows]
        if not all_of(fits):
            return False
        index = position // self._block_size
        cell = self._hash_bases[rows] + position
        written = kv.write_each(
            self._tables.flat[self._table_bases[rows] + index],
            position - index * self._block_size,
            self._hashes.flat[cell - ONE],
            self._hashes.flat[cell],
        )
        if written:
            self.computed[rows] += ONE
            self.computed_sum += len(position)
        return written

    def computed_one(self, row: int, end: int) -> None:
        """The first `end` tokens of a row are computed."""
        self.computed_sum += end - int(self.computed[row])
        self.computed[row] = end

    def sampling(self) -> Mask:
        """Rows whose tokens are all computed: their next token is due. Shape: (rows,).

        None of them has failed: a row joins with less computed than known, and a failed one stays there.
        """
        due: Mask = self.computed == self.known
        return due

    def sample(self, rows: Selection, rule: TokenRule) -> Tokens:
        """Appends the next token to each of these rows; returns the tokens."""
        cell = self._hash_bases[rows] + self.known[rows]
        prefixes = self._hashes.flat[cell - ONE]
        tokens = rule.after_each(prefixes)
        self._hashes.flat[cell] = extend_each(prefixes, tokens)
        self.known[rows] += ONE
        self._longest += 1
        self._reserve_hashes(self._longest)
        return tokens

    def _reserve_hashes(self, count: int) -> None:
        """Every lane has room for `count` hashes."""
        self._longest = max(self._longest, count)
        if self._hashes.reserve(count):
            self._hash_bases = self._hashes.bases(self.lane)

    def _arrange(self, columns: Indices) -> None:
        """Takes the short columns; they have one entry more than rows, of zeros.

        Args:
            columns: Shape: (6, rows + 1).
        """
        self._columns = columns
        rows = columns[:, :-1]
        self.lane = rows[_LANE]
        self.computed = rows[_COMPUTED]
        """Tokens whose KV is in the row's blocks."""
        self.computed_sum = int(self.computed.sum())
        self.known = rows[_KNOWN]
        """Tokens of the call: prompt and output."""
        self.blocks = rows[_BLOCKS]
        """Blocks in the row's table."""
        self.room = rows[_ROOM]
        """Tokens that the row may have computed at most."""
        self.failed = rows[_FAILED]
        """1 where the call has failed: it is never computed."""
        self.has_failed = bool(self.failed.any())
        self._hash_bases = self._hashes.bases(self.lane)
        self._table_bases = self._tables.bases(self.lane)
        self._longest = int(self.known.max(initial=0)) + 1


class _Lanes:
    """Lines of numbers that grow together, so that one flat index reaches any of them."""

    FIRST_WIDTH = 64

    def __init__(self, count: int, dtype: Any) -> None:
        self._lines = np.zeros((count, self.FIRST_WIDTH), dtype)
        self.flat = self._lines.reshape(-1)

    def line(self, lane: int) -> npt.NDArray[Any]:
        """One line."""
        line: npt.NDArray[Any] = self._lines[lane]
        return line

    def bases(self, lanes: Indices) -> Indices:
        """Where these lines begin in `flat`, until the next growth."""
        return lanes * self._lines.shape[1]

    def reserve(self, width: int) -> bool:
        """Lines are at least so wide afterwards; True when that moved them."""
        old = self._lines.shape[1]
        if width <= old:
            return False
        grown = np.zeros((len(self._lines), max(width, 2 * old)), self._lines.dtype)
        grown[:, :old] = self._lines
        self._lines = grown
        self.flat = grown.reshape(-1)
        return True
