"""Every byte of a block is in exactly one slab, under each of vLLM's layouts."""

import math
from collections import Counter
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executor_svc.vllm_runner.block_layout import CacheView, Slab, slabs

ITEM_BYTES = 2
AXES = "LBHNC"
LAYOUTS = ("LBHNC", "LBNHC", "LHBNC", "BLHNC", "BLNHC", "BHLNC")
"""Memory order of layers, blocks, heads, tokens, content: vllm/v1/kv_cache_layout.py."""


def caches(layout: str, sizes: dict[str, int], *, padding: int = 0, storage: int = 1000) -> list[CacheView]:
    """One tensor a layer, as vLLM makes them; `padding` bytes at the end of each outermost item."""
    strides, step = {}, ITEM_BYTES
    for axis in reversed(layout):
        if axis == layout[0]:
            step += padding
        strides[axis] = step
        step *= sizes[axis]
    return [
        CacheView(
            storage=storage,
            offset=layer * strides["L"],
            shape=[sizes[axis] for axis in "BHNC"],
            strides=[strides[axis] for axis in "BHNC"],
            item_bytes=ITEM_BYTES,
        )
        for layer in range(sizes["L"])
    ]


def bytes_of(views: list[CacheView], kernel_blocks: range) -> Counter[int]:
    """Addresses of all bytes of these kernel blocks, the slow way."""
    found: Counter[int] = Counter()
    for view in views:
        for index in product(kernel_blocks, *map(range, view.shape[1:])):
            first = view.offset + sum(map(math.prod, zip(index, view.strides, strict=True)))
            found.update(range(first, first + view.item_bytes))
    return found


def bytes_in(found: list[Slab], block: int) -> Counter[int]:
    addresses: Counter[int] = Counter()
    for slab in found:
        for piece in range(slab.pieces):
            first = slab.offset + block * slab.block_stride + piece * slab.piece_stride
            addresses.update(range(first, first + slab.piece_bytes))
    return addresses


@given(
    layout=st.sampled_from(LAYOUTS),
    counts=st.tuples(*[st.integers(1, 4)] * 4),
    num_blocks=st.integers(1, 4),
    padding=st.sampled_from([0, 6]),
)
def test_slabs_hold_each_byte_of_a_block_once(
    layout: str, counts: tuple[int, ...], num_blocks: int, padding: int
) -> None:
    sizes = dict(zip("LHNC", counts, strict=True)) | {"B": num_blocks}
    views = caches(layout, sizes, padding=padding)
    found = slabs(views, num_blocks)
    for block in range(num_blocks):
        assert bytes_in(found, block) == bytes_of(views, range(block, block + 1))
    assert sum(slab.block_bytes for slab in found) == math.prod(counts) * ITEM_BYTES


@pytest.mark.parametrize(
    ("layout", "pieces", "piece_bytes"),
    [
        ("LBHNC", 3, 80),  # a run a layer
        ("LBNHC", 3, 80),
        ("LHBNC", 6, 40),  # a run a layer and head
        ("BLHNC", 1, 240),  # the block in one piece
        ("BLNHC", 1, 240),
        ("BHLNC", 1, 240),
    ],
)
def test_runs_are_as_long_as_the_layout_allows(layout: str, pieces: int, piece_bytes: int) -> None:
    views = caches(layout, {"L": 3, "B": 7, "H": 2, "N": 4, "C": 5})
    (slab,) = slabs(views, 7)
    assert (slab.pieces, slab.piece_bytes) == (pieces, piece_bytes)


def test_a_block_of_several_kernel_blocks() -> None:
    views = caches("LBHNC", {"L": 2, "B": 12, "H": 2, "N": 4, "C": 5})
    (slab,) = slabs(views, 3)
    assert (slab.pieces, slab.piece_bytes, slab.block_stride) == (2, 4 * 80, 4 * 80)
    assert bytes_in([slab], 2) == bytes_of(views, range(8, 12))


def test_layers_that_share_kv_are_copied_once() -> None:
    views = caches("LBHNC", {"L": 2, "B": 3, "H": 1, "N": 4, "C": 5})
    assert slabs([*views, views[0]], 3) == slabs(views, 3)


def test_layers_of_different_sizes_and_uneven_places() -> None:
    """Three layers at uneven distances, and one of another size in another allocation."""
    small = caches("LBHNC", {"L": 1, "B": 3, "H": 1, "N": 4, "C": 5})[0]
    places = [0, 500, 700]
    views = [
        CacheView(storage=1, offset=at, shape=small.shape, strides=small.strides, item_bytes=ITEM_BYTES)
        for at in places
    ]
    large = caches("LBHNC", {"L": 1, "B": 3, "H": 2, "N": 4, "C": 5}, storage=2)
    found = slabs(views + large, 3)
    ours = [slab for slab in found if slab.storage == 1]
    assert bytes_in(ours, 1) == bytes_of(views, range(1, 2))
    assert [slab.block_bytes for slab in found if slab.storage == 2] == [80]


@pytest.mark.parametrize("num_blocks", [5, 24])
def test_tensors_that_do_not_divide_are_refused(num_blocks: int) -> None:
    views = caches("LBHNC", {"L": 1, "B": 12, "H": 1, "N": 4, "C": 5})
    with pytest.raises(ValueError, match=f"12 kernel blocks do not divide into {num_blocks} blocks"):
        slabs(views, num_blocks)
