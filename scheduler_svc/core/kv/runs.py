"""What is found by keys: runs of blocks, and who wants them.

A *key* is the chained hash of a full block whose tokens are certain (16 bytes, `svc_runtime.block_hashes`),
or, for the uncertain or partial tail blocks of a preempted call, a private key that nobody else can have.
What it names is the *content* of a block: its KV.

Theory of operation. A key names its tokens and all tokens before them. So the blocks that a call computes one
after the other are found, held and given back together, they grow old together, and they leave together. They
are a *run*: what is true of all of them is said once, and most calls touch one run or two, however long.

    ┌ 2 calls hold it ┐   ┌ 1 call holds it ─────┐
    │ a   b   c   d   │───│ e   f   g            │     one chain of keys: a first call computed a to g,
    │ 31  30  29  28  │ │ │ 27  26  25           │     a second one found a to d and computed on from there
    └─────────────────┘ │ └──────────────────────┘
                        │ ┌──────────────────────┐
                        └─│ x   y                │     numbers: stamps. A run keeps the one of its tail, 28;
                          └──────────────────────┘     a run given back later has larger ones throughout

Who finds or names a part of a run cuts it in two. The new object gets the head; the old one keeps the tail
and with it the stamp, so lists by age stay right. Who gives neighbours back that nobody else holds or retains
joins them again. A run goes from the tail on: the end of a prefix is of no use without its beginning. Runs
know nothing of those before and behind them: if two chains agree in one
place, they agree in all places before it, so that a chain is followed from run to run by its keys (`index`).
"""

from bisect import bisect_left
from collections.abc import Sequence
from enum import IntEnum
from typing import TypeVar

from scheduler_svc.core.ids import BlockId, ProgramId, TenantId

_T = TypeVar("_T")

Key = bytes
ProgramKey = tuple[TenantId, ProgramId]


def private_key(call_seq: int, index: int) -> Key:
    """The key of block `index` of one preempted call; 12 bytes long, so it is no digest of anything.

    Raises: OverflowError when `call_seq` does not fit into 64 bits, or `index` into 32.
    """
    return call_seq.to_bytes(8, "little") + index.to_bytes(4, "little")


class Standing(IntEnum):
    """Who still wants a run, in order of eviction."""

    ENDED = 0
    """Nobody, or only programs that have ended."""
    IDLE = 1
    """Programs of which none is active, but one may come back."""
    LIVE = 2
    """An active program."""


class Retainer:
    """A program that retains runs; known as long as there is one."""

    __slots__ = ("alone", "blocks", "cold", "program", "runs", "since", "standing", "turn", "walk")

    def __init__(self, program: ProgramKey, since: int) -> None:
        self.program = program
        self.standing = Standing.LIVE
        self.runs: dict[Run, None] = {}
        """In no order."""
        self.blocks = 0
        """How many there are in its runs."""
        self.cold: dict[Run, None] = NO_RUNS
        """Those of its runs that no longer count on this program: none while it is active."""
        self.since = since
        """Its runs are stamped later."""
        self.turn = 0
        """Which entry of the queue of its standing is valid; 0: none."""
        self.walk: list[tuple[int, Run]] | None = None
        """Runs that are not settled yet and their stamps when the walk began, newest first; None: it has
        not begun."""
        self.alone: dict[Retainer, None] = {self: None}
        """Itself: `retainers` of all runs that nobody else retains. Never changed."""

    def join(self, run: "Run") -> None:
        """Becomes a retainer of a run that it did not retain."""
        others = run.retainers
        if not others:
            run.retainers = self.alone
        elif len(others) == 1:
            run.retainers = {**others, self: None}
        else:
            others[self] = None

    def part(self, run: "Run") -> None:
        """Ceases to be one of a run's retainers."""
        retainers = run.retainers
        if retainers is self.alone:
            run.retainers = NOBODY
            return
        del retainers[self]
        if len(retainers) == 1:
            run.retainers = next(iter(retainers)).alone


NO_RUNS: dict["Run", None] = {}
"""Never changed."""
NOBODY: dict[Retainer, None] = {}
"""`retainers` of all runs that nobody retains. Never changed."""


class Run:
    """Contents with consecutive keys of one chain, and the blocks where they lie. Compared by identity.

    Invariant: it lies in at least one tier, whole, from when it is named until it is forgotten; a call that
    holds one block of it holds all.
    """

    __slots__ = ("device", "holders", "host", "keys", "newer", "older", "pins", "retainers", "stamp", "warm")

    def __init__(self, keys: list[Key], device: list[BlockId] | None) -> None:
        self.keys = keys
        """Not empty, until it is forgotten: lists that it is still in shall not keep them."""
        self.device = device
        """The device block of each key; None: it is on the host only."""
        self.host: list[BlockId] | None = None
        """The host block of each key; None: it is on the device only."""
        self.stamp = 0
        """When its tail was used last: uses of blocks are counted, so each block has a stamp of its own, one
        more than the block behind it. A run that has lost its tail keeps the stamp: that makes it no older
        than others."""
        self.holders = 0
        """Calls that hold its device blocks."""
        self.pins = 0
        """Calls that found it on the host only and may bring it in."""
        self.retainers = NOBODY
        """Programs that retain it, less those known to have ended: a dictionary of its own from two on."""
        self.warm = 0
        """Retainers that are not known to be idle or ended. Never less than the active ones."""
        self.older: Run | None = None
        self.newer: Run | None = None
        """Its neighbours among the unheld runs of the device."""

    def __len__(self) -> int:
        return len(self.keys)

    def agreement(self, keys: Sequence[Key], at: int) -> int:
        """How many of its keys follow each other in `keys` from `at` on, where its first one is."""
        mine = self.keys
        count = min(len(mine), len(keys) - at)
        if mine[count - 1] == keys[at + count - 1]:
            return count
        return bisect_left(range(count), True, key=lambda index: mine[index] != keys[at + index])

    def cut(self, count: int) -> "Run":
        """Cuts its first blocks off. Both parts have the same retainers, who need to be told. Cost: the
        shorter part.

        Args:
            count: 0 < count < len(self).

        Returns: those blocks as a run. This one keeps the others, and its stamp.
        """
        keys, self.keys = _parted(self.keys, count)
        head = Run(keys, None)
        if self.device is not None:
            head.device, self.device = _parted(self.device, count)
        if self.host is not None:
            head.host, self.host = _parted(self.host, count)
        head.stamp = self.stamp + len(self.keys)
        head.holders, head.pins, head.warm = self.holders, self.pins, self.warm
        head.retainers = self.retainers if len(self.retainers) < 2 else dict(self.retainers)
        return head

    def shorten(self, count: int) -> None:
        """Drops its last blocks, but not all. It keeps its place in all lists."""
        del self.keys[-count:]
        if self.device is not None:
            del self.device[-count:]
        if self.host is not None:
            del self.host[-count:]


def _parted(items: list[_T], count: int) -> tuple[list[_T], list[_T]]:
    """The first `count` items of a list, and the others. It becomes the longer part itself."""
    if 2 * count < len(items):
        head = items[:count]
        del items[:count]
        return head, items
    tail = items[count:]
    del items[count:]
    return items, tail


class Found:
    """The longest known prefix of some keys. Immutable; true until the cache changes, or from `hold` on."""

    __slots__ = ("device", "keys", "to_bring")

    def __init__(self, keys: Sequence[Key], device: Sequence[BlockId | None]) -> None:
        self.keys = keys
        """The keys that were found."""
        self.device = device
        """The device block of each; None: it is on the host only."""
        self.to_bring = device.count(None)
        """How many are on the host only."""

    def __len__(self) -> int:
        return len(self.device)


NOTHING_FOUND = Found((), ())
