"""Device blocks of one executor: who holds them, and which of them hold a known prefix.

A block is in exactly one place:

    held     by one or more calls (reference count > 0)
    cached   by none, but its content is a known prefix: found by hash, or evicted when nothing else is free
    plain    by none, and its content is worthless

Block 0 is the null block and is never handed out. Only a full block whose tokens are certain is published
under its hash; a hash names the tokens of the block *and* everything before them, the tenant and its salt. Of
two blocks with one content the first published one is found, the other stays a private copy.

Ids only: the tensors are the executor's.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from scheduler_svc.core.ids import BlockId

NULL_BLOCK = BlockId(0)


class BlockPool:
    """The blocks of one tier of one executor.

    Invariant: held + cached + plain == num_blocks - 1.
    """

    def __init__(self, num_blocks: int) -> None:
        self._plain: list[BlockId] = [BlockId(block) for block in range(num_blocks - 1, 0, -1)]
        self._cached: OrderedDict[BlockId, None] = OrderedDict()
        """Unheld blocks with a hash, least recently used first."""
        self._references: dict[BlockId, int] = {}
        self._block_of: dict[bytes, BlockId] = {}
        self._hash_of: dict[BlockId, bytes] = {}
        self.size = num_blocks - 1

    @property
    def available(self) -> int:
        """Blocks that `take` can hand out."""
        return len(self._plain) + len(self._cached)

    @property
    def plain(self) -> int:
        return len(self._plain)

    @property
    def held(self) -> int:
        return len(self._references)

    def references(self, block: BlockId) -> int:
        """How many calls hold `block`."""
        return self._references.get(block, 0)

    def find(self, hashes: Iterable[bytes]) -> list[BlockId]:
        """The blocks of the longest known prefix."""
        found: list[BlockId] = []
        for content in hashes:
            block = self._block_of.get(content)
            if block is None:
                break
            found.append(block)
        return found

    def hold(self, blocks: Iterable[BlockId]) -> None:
        """Adds a reference to blocks that `find` returned."""
        for block in blocks:
            self._cached.pop(block, None)
            self._references[block] = self._references.get(block, 0) + 1

    def take(self, count: int) -> list[BlockId]:
        """Hands out `count` <= available blocks, worthless ones first, then the least recently used."""
        assert count <= self.available, f"{count} blocks wanted, {self.available} available"
        taken = [self._plain.pop() if self._plain else self._evict() for _ in range(count)]
        for block in taken:
            self._references[block] = 1
        return taken

    def release(self, blocks: Sequence[BlockId]) -> None:
        """Gives one reference of each block back. The last blocks of a table become the first to be evicted:
        a prefix is worth more than what follows it."""
        for block in reversed(blocks):
            left = self._references[block] - 1
            if left:
                self._references[block] = left
                continue
            del self._references[block]
            if block in self._hash_of:
                self._cached[block] = None
            else:
                self._plain.append(block)

    def publish(self, block: BlockId, content: bytes) -> None:
        """Makes a full, held block findable, unless its content is already found elsewhere."""
        if content not in self._block_of and block not in self._hash_of:
            self._block_of[content] = block
            self._hash_of[block] = content

    def _evict(self) -> BlockId:
        """Frees a cached block: the one place that decides whose prefix is forgotten first."""
        block, _ = self._cached.popitem(last=False)
        del self._block_of[self._hash_of.pop(block)]
        return block

    def check(self, tables: Iterable[Sequence[BlockId]]) -> None:
        """Checks the invariants against the block tables of all calls.

        Raises: AssertionError.
        """
        counted: dict[BlockId, int] = {}
        for table in tables:
            assert len(set(table)) == len(table), f"a table holds a block twice: {table}"
            for block in table:
                counted[block] = counted.get(block, 0) + 1
        assert counted == self._references, "references do not add up"
        places = [*self._plain, *self._cached, *self._references]
        assert sorted(places) == list(range(1, self.size + 1)), "a block is in no place or in two"
        assert self._block_of == {content: block for block, content in self._hash_of.items()}
        assert set(self._cached) <= set(self._hash_of), "a cached block has no hash"
        assert not set(self._plain) & set(self._hash_of), "a plain block has a hash"
