"""What a key names: the content of one block, on the device, on the host, or on both.

A *key* is the chained hash of a full block whose tokens are certain (16 bytes, `svc_runtime.block_hashes`),
or, for the uncertain or partial tail blocks of a preempted call, a private key that nobody else can have.
"""

from collections.abc import Sequence
from enum import IntEnum

from scheduler_svc.core.ids import BlockId, ProgramId, TenantId

Key = bytes
ProgramKey = tuple[TenantId, ProgramId]


def private_key(call_seq: int, index: int) -> Key:
    """The key of block `index` of one preempted call; 12 bytes long, so it is no digest of anything.

    Raises: OverflowError when `call_seq` does not fit into 64 bits, or `index` into 32.
    """
    return call_seq.to_bytes(8, "little") + index.to_bytes(4, "little")


class Standing(IntEnum):
    """Who still wants a content, in order of eviction."""

    ENDED = 0
    """Nobody, or only programs that have ended."""
    IDLE = 1
    """Programs of which none is active, but one may come back."""
    LIVE = 2
    """An active program."""


class Retainer:
    """A program that retains contents; known as long as there is one."""

    __slots__ = ("alone", "cold", "pairs", "program", "standing", "turn", "walk")

    def __init__(self, program: ProgramKey) -> None:
        self.program = program
        self.standing = Standing.LIVE
        self.pairs: dict[Content, int] = {}
        """content -> its stamp when it was retained last; in that order."""
        self.cold: dict[Content, None] = {}
        """Those of them that no longer count on this program. Empty while it is active."""
        self.turn = 0
        """Which entry of the queue of its standing is valid; 0: none."""
        self.walk: list[Content] | None = None
        """Pairs that are not settled yet, newest first; None: not begun."""
        self.alone: dict[Retainer, None] = {self: None}
        """Itself: `retainers` of all contents that nobody else retains. Never changed."""

    def join(self, content: "Content") -> None:
        """Becomes a retainer of a content that it did not retain."""
        others = content.retainers
        if not others:
            content.retainers = self.alone
        elif len(others) == 1:
            content.retainers = {**others, self: None}
        else:
            others[self] = None

    def part(self, content: "Content") -> None:
        """Ceases to be one of a content's retainers."""
        retainers = content.retainers
        if retainers is self.alone:
            content.retainers = NOBODY
            return
        del retainers[self]
        if len(retainers) == 1:
            content.retainers = next(iter(retainers)).alone


NOBODY: dict[Retainer, None] = {}
"""`retainers` of all contents that nobody retains. Never changed."""


class Content:
    """One content and where it lies. Compared by identity.

    Invariant: it lies in at least one tier, from when it is put into one until it is forgotten.
    """

    __slots__ = ("device", "host", "key", "listed", "pins", "retainers", "stamp", "warm")

    def __init__(self, key: Key, stamp: int, device: BlockId | None = None) -> None:
        self.key = key
        self.device = device
        self.host: BlockId | None = None
        self.stamp = stamp
        """When it was used last: a count of uses, different for each content."""
        self.warm = 0
        """Retainers that are not known to be idle or ended. Never less than the active ones."""
        self.retainers = NOBODY
        """Programs that retain it, less those known to have ended: a dictionary of its own from two on. Most
        contents have one retainer, and a dictionary each would be most of their memory."""
        self.pins = 0
        """Calls that found it on the host only and may bring it in."""
        self.listed = 0
        """Stamp under which the host tier lists it by age; 0: it does not."""


class Found:
    """The longest known prefix of some keys. Immutable; true until the cache changes, or from `hold` on."""

    __slots__ = ("contents", "device", "to_bring")

    def __init__(self, contents: Sequence[Content]) -> None:
        self.contents = contents
        self.device: Sequence[BlockId | None] = [content.device for content in contents]
        """The device block of each; None: it is on the host only."""
        self.to_bring = self.device.count(None)
        """How many are on the host only."""

    @property
    def host(self) -> Sequence[BlockId | None]:
        """The host block of each that is there only."""
        return [
            content.host if block is None else None
            for content, block in zip(self.contents, self.device, strict=True)
        ]

    def __len__(self) -> int:
        return len(self.device)


NOTHING_FOUND = Found(())
