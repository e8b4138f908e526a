"""Where the bytes of a KV block lie, whatever layout vLLM chose.

Theory of operation: vLLM keeps the KV of all layers in one allocation and orders layers, blocks, heads and
tokens in it as the attention kernels like best. What a copy needs to know is less: which runs of bytes make
up block 0, and how far it is to the next block. A `Slab` says that for many runs at once:

    offset      piece_stride
      |---piece---|......|---piece---|......       block 0        `pieces` of them
      block_stride later:
      |---piece---|......|---piece---|......       block 1

A block may be several kernel blocks (vLLM splits large blocks for its kernels): they are runs like others.
Layers that share KV are the same bytes and count once. Padding between runs belongs to no slab.

No torch here: addresses are numbers of bytes.

Source: vllm/v1/worker/utils.py, `copy_kv_cache_blocks_inplace` (kernel blocks), `allocate_kv_cache`.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheView:
    """One layer's KV tensor. The first dimension counts kernel blocks; strides and offset are in bytes."""

    storage: int
    """Names the allocation that the tensor is a view of."""
    offset: int
    shape: Sequence[int]
    strides: Sequence[int]
    item_bytes: int


@dataclass(frozen=True, slots=True)
class Slab:
    """Evenly spaced runs of bytes in evenly spaced blocks of one allocation."""

    storage: int
    offset: int
    """Of the first run of block 0."""
    block_stride: int
    pieces: int
    piece_stride: int
    piece_bytes: int

    @property
    def block_bytes(self) -> int:
        """Bytes of one block in this slab."""
        return self.pieces * self.piece_bytes


def slabs(caches: Iterable[CacheView], num_blocks: int) -> list[Slab]:
    """The fewest slabs that hold each byte of the caches once.

    Args:
        num_blocks: blocks as plans count them, the null block included.

    Raises: ValueError when a tensor does not divide into so many blocks.
    """
    runs: defaultdict[tuple[int, int, int], set[int]] = defaultdict(set)
    for cache in caches:
        block_stride, run_bytes, offsets = _runs(cache, num_blocks)
        runs[cache.storage, block_stride, run_bytes].update(offsets)
    return [
        _slab(storage, block_stride, run_bytes, row)
        for (storage, block_stride, run_bytes), offsets in runs.items()
        for row in _evenly_spaced(sorted(offsets))
    ]


def _runs(cache: CacheView, num_blocks: int) -> tuple[int, int, list[int]]:
    """(bytes from block to block, bytes of a run, offsets of the runs of block 0)."""
    kernel_blocks, remainder = divmod(cache.shape[0], num_blocks)
    if remainder or not kernel_blocks:
        raise ValueError(f"{cache.shape[0]} kernel blocks do not divide into {num_blocks} blocks")
    inner = sorted(
        (stride, size)
        for stride, size in zip(cache.strides, (kernel_blocks, *cache.shape[1:]), strict=True)
        if size > 1
    )
    run_bytes = cache.item_bytes
    while inner and inner[0][0] == run_bytes:
        run_bytes *= inner.pop(0)[1]
    steps = [range(0, stride * size, stride) for stride, size in inner]
    offsets = [cache.offset + sum(places) for places in product(*steps)]
    return cache.strides[0] * kernel_blocks, run_bytes, offsets


def _evenly_spaced(offsets: Sequence[int]) -> Iterator[list[int]]:
    """Cuts ascending offsets into rows of equal steps."""
    row: list[int] = []
    for offset in offsets:
        if len(row) > 1 and offset - row[-1] != row[1] - row[0]:
            yield row
            row = []
        row.append(offset)
    if row:
        yield row


def _slab(storage: int, block_stride: int, run_bytes: int, offsets: Sequence[int]) -> Slab:
    """One slab of equally spaced runs; runs that touch become one."""
    step = offsets[1] - offsets[0] if len(offsets) > 1 else run_bytes
    if step == run_bytes:
        return Slab(storage, offsets[0], block_stride, 1, step * len(offsets), run_bytes * len(offsets))
    return Slab(storage, offsets[0], block_stride, len(offsets), step, run_bytes)
