"""Copies of blocks, byte for byte, under each of vLLM's layouts and on as many threads as there may be."""

import ctypes
import threading
from typing import Any

import numpy as np
import pytest
import torch

from executor_svc.vllm_runner import host_pool
from executor_svc.vllm_runner.block_layout import slabs
from executor_svc.vllm_runner.host_pool import BlockAddresses, CpuHostPool, open_host_pool

LAYERS, BLOCKS, HEADS, TOKENS, CONTENT = 3, 12, 2, 8, 5
HOST_BLOCKS = 9
ORDERS = {
    "LBHNC": (0, 1, 2, 3, 4),
    "LBNHC": (0, 1, 3, 2, 4),
    "LHBNC": (0, 2, 1, 3, 4),
    "BLHNC": (1, 0, 2, 3, 4),
    "BHLNC": (1, 2, 0, 3, 4),
}
"""Physical order of (layer, block, head, token, content)."""
NONE = np.empty((0, 2), dtype=np.int64)


def pairs(*copies: tuple[int, int]) -> np.ndarray:
    return np.array(copies, dtype=np.int64)


@pytest.fixture(params=ORDERS)
def caches(request: pytest.FixtureRequest) -> list[torch.Tensor]:
    """A tensor a layer; every number occurs once. Shape of each: (BLOCKS, HEADS, TOKENS, CONTENT)."""
    order = ORDERS[request.param]
    shape = (LAYERS, BLOCKS, HEADS, TOKENS, CONTENT)
    memory = torch.arange(LAYERS * BLOCKS * HEADS * TOKENS * CONTENT, dtype=torch.float32)
    physical = memory.view([shape[axis] for axis in order])
    return list(physical.permute([order.index(axis) for axis in range(5)]))


def content(caches: list[torch.Tensor], block: int) -> list[torch.Tensor]:
    return [cache[block].clone() for cache in caches]


def same(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def test_blocks_go_and_come_back_elsewhere(caches: list[torch.Tensor]) -> None:
    before = [content(caches, block) for block in range(BLOCKS)]
    pool = open_host_pool(caches, BLOCKS, HOST_BLOCKS)
    pool.copy(pairs((3, 0), (11, 8), (4, 5)), NONE)
    assert all(same(content(caches, block), before[block]) for block in range(BLOCKS)), "only read"
    caches[0][3] = caches[1][11] = -1
    pool.copy(NONE, pairs((0, 6), (8, 3), (5, 11)))
    expected = list(range(BLOCKS))
    expected[6], expected[3], expected[11] = 3, 11, 4
    assert all(same(content(caches, block), before[source]) for block, source in enumerate(expected))
    assert pool.seconds() > 0
    assert pool.block_bytes == LAYERS * HEADS * TOKENS * CONTENT * 4


def test_large_blocks_of_several_kernel_blocks() -> None:
    cache = torch.arange(BLOCKS * 6, dtype=torch.bfloat16).view(BLOCKS, 6)
    before = cache.clone()
    pool = open_host_pool([cache], BLOCKS // 4, 2)
    pool.copy(pairs((2, 1)), pairs((1, 0)))
    assert torch.equal(cache[:4], before[8:])
    assert torch.equal(cache[4:], before[4:])


@pytest.fixture
def copiers(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Four threads for lists of any length; the names of those that copied."""
    names: set[str] = set()
    copy_blocks = host_pool._copy_blocks

    def named(sides: Any, pairs: Any) -> None:
        if pairs:
            names.add(threading.current_thread().name)
        copy_blocks(sides, pairs)

    monkeypatch.setattr(host_pool, "_copy_threads", lambda: 4)
    monkeypatch.setattr(host_pool, "THREAD_BYTES_MIN", 1)
    monkeypatch.setattr(host_pool, "_copy_blocks", named)
    return names


def test_a_list_shared_out_to_threads(caches: list[torch.Tensor], copiers: set[str]) -> None:
    before = [content(caches, block) for block in range(BLOCKS)]
    pool = open_host_pool(caches, BLOCKS, HOST_BLOCKS)
    pool.copy(pairs(*((block, block - 1) for block in range(1, 10))), NONE)
    pool.copy(NONE, pairs(*((host, 9 - host) for host in range(9))))
    assert all(same(content(caches, 9 - host), before[host + 1]) for host in range(9))
    assert copiers
    assert all(name.startswith("autellix-copies") for name in copiers)


def test_what_a_thread_raises_is_raised(caches: list[torch.Tensor], copiers: set[str]) -> None:
    pool = open_host_pool(caches, BLOCKS, HOST_BLOCKS)
    with pytest.raises(IndexError):
        pool.copy(pairs((1, 0), (2, 1), (3, HOST_BLOCKS)), NONE)


def test_addresses_for_copies_by_pointer(caches: list[torch.Tensor]) -> None:
    """What CUDA's batched copy is told, carried out one memmove after the other."""
    before = [content(caches, block) for block in range(BLOCKS)]
    layout = slabs([host_pool._cache_view(cache) for cache in caches], BLOCKS)
    block_bytes = sum(slab.block_bytes for slab in layout)
    host = torch.zeros(HOST_BLOCKS, block_bytes, dtype=torch.uint8)
    addresses = BlockAddresses(layout, host.data_ptr())

    def copy(sources: np.ndarray, targets: np.ndarray, sizes: np.ndarray) -> None:
        assert sources.dtype == targets.dtype == sizes.dtype == np.int64
        for source, target, size in zip(sources.tolist(), targets.tolist(), sizes.tolist(), strict=True):
            ctypes.memmove(target, source, size)

    copy(*addresses.out_of_device(pairs((3, 0), (11, 8))))
    copy(*addresses.into_device(pairs((8, 5), (0, 1))))
    assert same(content(caches, 5), before[11])
    assert same(content(caches, 1), before[3])
    assert same(content(caches, 4), before[4])
    assert all(len(column) == 0 for column in addresses.out_of_device(NONE))


def test_the_same_host_block_layout_on_both_devices(caches: list[torch.Tensor]) -> None:
    pool = open_host_pool(caches, BLOCKS, HOST_BLOCKS)
    assert isinstance(pool, CpuHostPool)
    addresses = BlockAddresses(slabs(map(host_pool._cache_view, caches), BLOCKS), 0)
    _, targets, sizes = addresses.out_of_device(pairs((1, 2)))
    assert targets[0] == 2 * pool.block_bytes
    assert sizes.sum() == pool.block_bytes
