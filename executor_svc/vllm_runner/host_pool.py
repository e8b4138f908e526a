"""The host tier of one worker: memory for KV blocks, and the copies between it and the device.

Theory of operation: a host block holds all layers of a device block in one contiguous piece of memory, so
that a block is gathered from, or scattered to, as many places as the layout has runs (see `block_layout`),
and the host side of a list of copies is as few pieces as it has blocks.

    device   layer 0 [ ..b.. ]   layer 1 [ ..b.. ]   ...          host   [ layer 0 | layer 1 | ... ]   block h

A list of copies is carried out whole, `swap_out` before `swap_in`; within a list every target occurs once,
so its order does not matter. Nothing of the pool is read or written in between by anybody else.

On the CPU a copy is finished when `copy` returns. numpy copies one strided block a call, at the speed of a
plain memcpy; index operations (index_select, index_copy_, advanced indexing) were measured at 0.1 to 0.5 of
that, for they copy items rather than runs, or pass through a temporary. Lists are shared out to as many
threads as the model computes with. Memory is taken from the system as host blocks are first used.

On CUDA host memory is pinned and a list is one call of vLLM's `swap_blocks_batch` (cuMemcpyBatchAsync) on a
stream of its own, which waits for all steps launched before, and which the next step waits for: a block that
was swapped out may be reused by that very step. Source bytes are read in stream order: a host block may have
been written by the copies just before.

Source: Autellix, memory section: one contiguous host buffer instead of one copy a block. vLLM 0.32.0:
`_custom_ops.swap_blocks_batch`, `v1/simple_kv_offload/cuda_mem_ops.pin_tensor`.
"""

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
import torch

from executor_svc.vllm_runner.block_layout import CacheView, Slab, slabs

Pairs = np.ndarray
"""(source block, target block) of each copy. int64, shape (copies, 2)."""

THREAD_BYTES_MIN = 8 << 20
"""A thread of its own pays from so many bytes."""


class HostPool(Protocol):
    """Host blocks 0..host_blocks-1 of one worker; none of them is special."""

    block_bytes: int
    """Bytes of one block over all layers of this worker."""

    def copy(self, swap_out: Pairs, swap_in: Pairs) -> None:
        """Copies device -> host, then host -> device; ids must be in range, targets unique in their list.

        Ordered after all steps started before and before any started later."""
        ...

    def seconds(self) -> float:
        """Waits until the last `copy` is done; returns how long its copies took."""
        ...


def open_host_pool(kv_caches: Sequence[torch.Tensor], num_blocks: int, host_blocks: int) -> HostPool:
    """A pool for the blocks of a worker's KV tensors.

    Args:
        kv_caches: one tensor a layer, vLLM's `model_runner.kv_caches`.
        num_blocks: device blocks, the null block included.

    Raises: ValueError when a tensor does not divide into blocks; RuntimeError when memory cannot be pinned.
    """
    layout = slabs([_cache_view(cache) for cache in kv_caches], num_blocks)
    storages = {cache.untyped_storage().data_ptr(): _storage_bytes(cache) for cache in kv_caches}
    if kv_caches[0].device.type == "cpu":
        return CpuHostPool(layout, storages, num_blocks, host_blocks)
    return CudaHostPool(layout, storages, host_blocks)


def _cache_view(cache: torch.Tensor) -> CacheView:
    item_bytes = cache.element_size()
    return CacheView(
        storage=cache.untyped_storage().data_ptr(),
        offset=cache.storage_offset() * item_bytes,
        shape=tuple(cache.shape),
        strides=tuple(stride * item_bytes for stride in cache.stride()),
        item_bytes=item_bytes,
    )


def _storage_bytes(cache: torch.Tensor) -> torch.Tensor:
    """The whole allocation behind a tensor, as bytes."""
    return torch.empty(0, dtype=torch.uint8, device=cache.device).set_(cache.untyped_storage())


class CpuHostPool:
    """See the module. Device blocks are in main memory too."""

    def __init__(
        self, layout: Sequence[Slab], storages: dict[int, torch.Tensor], num_blocks: int, host_blocks: int
    ) -> None:
        self.block_bytes = sum(slab.block_bytes for slab in layout)
        # Not by numpy: it asks for huge pages, and copies between huge and small pages were 12 % slower.
        host = torch.empty((host_blocks, self.block_bytes), dtype=torch.uint8).numpy()
        self._sides: list[tuple[np.ndarray, np.ndarray]] = []
        """(device, host) of each slab. Shapes: (num_blocks or host_blocks, pieces, piece_bytes)."""
        start = 0
        for slab in layout:
            device = _device_view(slab, storages[slab.storage].numpy(), num_blocks)
            part = host[:, start : start + slab.block_bytes]
            self._sides.append((device, part.reshape(host_blocks, *device.shape[1:])))
            start += slab.block_bytes
        self._threads = _copy_threads()
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="autellix-copies")
        self._seconds = 0.0

    def copy(self, swap_out: Pairs, swap_in: Pairs) -> None:
        """See HostPool."""
        started = time.perf_counter()
        self._copy([(host, device) for device, host in self._sides], swap_out)
        self._copy(self._sides, swap_in)
        self._seconds = time.perf_counter() - started

    def seconds(self) -> float:
        """See HostPool."""
        return self._seconds

    def _copy(self, sides: Sequence[tuple[np.ndarray, np.ndarray]], pairs: Pairs) -> None:
        """Copies blocks from the second side to the first."""
        threads = min(self._threads, len(pairs) * self.block_bytes // THREAD_BYTES_MIN)
        if threads <= 1:
            _copy_blocks(sides, pairs.tolist())
            return
        copies = [self._pool.submit(_copy_blocks, sides, pairs[i::threads].tolist()) for i in range(threads)]
        for copied in copies:
            copied.result()


def _device_view(slab: Slab, storage: np.ndarray, num_blocks: int) -> np.ndarray:
    """A slab's bytes of all device blocks. Shape: (num_blocks, pieces, piece_bytes)."""
    return np.lib.stride_tricks.as_strided(
        storage[slab.offset :],
        shape=(num_blocks, slab.pieces, slab.piece_bytes),
        strides=(slab.block_stride, slab.piece_stride, 1),
    )


def _copy_blocks(sides: Sequence[tuple[np.ndarray, np.ndarray]], pairs: Sequence[Sequence[int]]) -> None:
    for to_side, from_side in sides:
        for source, target in pairs:
            to_side[target] = from_side[source]


def _copy_threads() -> int:
    """As many as compute; fewer where this thread, and so those it makes, may not use so many cores."""
    return min(torch.get_num_threads(), len(os.sched_getaffinity(0)))


class CudaHostPool:
    """See the module. Copies run beside the host, in the order of the device's work."""

    def __init__(self, layout: Sequence[Slab], storages: dict[int, torch.Tensor], host_blocks: int) -> None:
        from vllm.v1.simple_kv_offload.cuda_mem_ops import pin_tensor

        self.block_bytes = sum(slab.block_bytes for slab in layout)
        self._host = torch.zeros((host_blocks, self.block_bytes), dtype=torch.uint8)
        pin_tensor(self._host)
        self._addresses = BlockAddresses(layout, self._host.data_ptr())
        self._storages = storages  # keeps the device's memory where the addresses say
        self._stream = torch.cuda.Stream()
        self._started = torch.cuda.Event(enable_timing=True)
        self._ended = torch.cuda.Event(enable_timing=True)
        self._descriptors: list[Any] = []
        """Of the last `copy`, until the next."""

    def copy(self, swap_out: Pairs, swap_in: Pairs) -> None:
        """See HostPool."""
        from vllm._custom_ops import swap_blocks_batch

        steps = torch.cuda.current_stream()
        self._stream.wait_stream(steps)
        self._descriptors = [self._addresses.out_of_device(swap_out), self._addresses.into_device(swap_in)]
        with torch.cuda.stream(self._stream):
            self._started.record()
            for sources, targets, sizes in self._descriptors:
                if len(sizes):
                    swap_blocks_batch(*map(torch.from_numpy, (sources, targets, sizes)))
            self._ended.record()
        steps.wait_event(self._ended)

    def seconds(self) -> float:
        """See HostPool."""
        self._ended.synchronize()
        return self._started.elapsed_time(self._ended) * 1e-3


class BlockAddresses:
    """Addresses of every run of a block on both sides, for copies by pointer."""

    def __init__(self, layout: Sequence[Slab], host_address: int) -> None:
        places = [(slab, piece) for slab in layout for piece in range(slab.pieces)]
        self._sizes = np.array([slab.piece_bytes for slab, _ in places], dtype=np.int64)
        self._device = np.array(
            [slab.storage + slab.offset + piece * slab.piece_stride for slab, piece in places], dtype=np.int64
        )
        self._device_strides = np.array([slab.block_stride for slab, _ in places], dtype=np.int64)
        self._host = host_address + np.cumsum(self._sizes) - self._sizes
        self._host_stride = int(self._sizes.sum())

    def out_of_device(self, pairs: Pairs) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(source, target, bytes) of each run of each (device block, host block). int64, equally long."""
        return (
            self._device_runs(pairs[:, 0]),
            self._host_runs(pairs[:, 1]),
            np.tile(self._sizes, len(pairs)),
        )

    def into_device(self, pairs: Pairs) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(source, target, bytes) of each run of each (host block, device block). int64, equally long."""
        return (
            self._host_runs(pairs[:, 0]),
            self._device_runs(pairs[:, 1]),
            np.tile(self._sizes, len(pairs)),
        )

    def _device_runs(self, blocks: np.ndarray) -> np.ndarray:
        return (self._device + blocks[:, None] * self._device_strides).ravel()

    def _host_runs(self, blocks: np.ndarray) -> np.ndarray:
        return (self._host + blocks[:, None] * self._host_stride).ravel()
