"""What a copy between the KV tiers costs: `python -m bench.swap`, JSON to bench/results/swap.json.

The executor's own worker methods copy blocks of KV tensors that vLLM allocated, with the shape of
LLaMA-3.1-8B (32 layers, 8 KV heads of 128, bfloat16, blocks of 16 tokens: 2 MiB a block), for lists of
several lengths, with consecutive and with scattered ids, both ways. Beside them, in every round and in
changing order, a plain memcpy copies as many bytes from one preallocated buffer into another (on a GPU:
between a pinned buffer and the device). Both sides use new places in each round, so that neither finds its
bytes in the processor's caches, and as many threads as the executor computes with.

A ratio is memcpy seconds over copy seconds of the same round, for numpy's memcpy and for torch's; reported is
the median of the rounds, for the memcpy that makes it lower. All blocks are compared at the end.
"""

import argparse
import json
import os
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec, KVCacheTensor
from vllm.v1.kv_cache_layout import KVCacheLayout
from vllm.v1.worker.utils import allocate_kv_cache

from bench import machine
from executor_svc.vllm_runner.worker_extension import WorkerExtension

RESULT = Path(__file__).parent / "results" / "swap.json"
TARGET = 0.8
"""Of memcpy, at the longest list."""
LAYERS = 32
SPEC = FullAttentionSpec(block_size=16, num_kv_heads=8, head_size=128, dtype=torch.bfloat16)
BLOCK_BYTES = LAYERS * SPEC.page_size_bytes
LAYOUTS = {"cpu": KVCacheLayout.LBHNC, "cuda": KVCacheLayout.LBNHC}
NO_COPIES = np.empty((0, 2), dtype=np.int64)
WAYS = ("out", "in")
PATTERNS = ("consecutive", "scattered")
MEMCPYS = ("torch memcpy", "numpy memcpy")


@dataclass(frozen=True, slots=True)
class Bench:
    """A worker with KV of both tiers, and buffers for memcpy."""

    worker: WorkerExtension
    caches: list[torch.Tensor]
    device_buffer: torch.Tensor
    host_buffer: torch.Tensor
    blocks: int
    """Of either tier, and of either buffer."""
    rng: random.Random

    def swap(self, way: str, pattern: str, count: int) -> float:
        """Copies so many blocks by the worker's methods; returns seconds."""
        pairs = np.array(list(zip(self._ids(pattern, count), self._ids(pattern, count), strict=True)))
        lists = (pairs, NO_COPIES) if way == "out" else (NO_COPIES, pairs)
        return self._timed(lambda: self.worker.autellix_swap(*lists))

    def torch_memcpy(self, way: str, count: int) -> float:
        """Copies as many bytes in one piece; returns seconds."""
        source, target = self._pieces(way, count)
        return self._timed(lambda: target.copy_(source, non_blocking=True))

    def numpy_memcpy(self, way: str, count: int) -> float:
        """The same by numpy, which uses one thread; main memory only."""
        source, target = (piece.numpy() for piece in self._pieces(way, count))
        return self._timed(lambda: np.copyto(target, source))

    def check(self) -> None:
        """Sends all blocks to the host and back in another order, and compares every byte.

        Raises: RuntimeError when one is not where it must be.
        """
        order = self._ids("scattered", self.blocks - 1)
        out = np.array([(block, host) for host, block in enumerate(order)])
        back = np.array([(host, block) for host, block in enumerate(reversed(order))])
        expected = [cache[order] for cache in self.caches]
        self.worker.autellix_swap(out, back)
        self.worker.autellix_swap_s()
        for cache, before in zip(self.caches, expected, strict=True):
            if not torch.equal(cache[order[::-1]], before):
                raise RuntimeError("a block came back with other bytes")

    def _ids(self, pattern: str, count: int) -> list[int]:
        """Ids from 1: device block 0 is never used, and the host has as many."""
        if pattern == "scattered":
            return self.rng.sample(range(1, self.blocks), count)
        first = self.rng.randrange(1, self.blocks - count + 1)
        return list(range(first, first + count))

    def _pieces(self, way: str, count: int) -> list[torch.Tensor]:
        """Source and target of a memcpy."""
        buffers = (self.device_buffer, self.host_buffer)
        starts = [self.rng.randrange(self.blocks - count + 1) * BLOCK_BYTES for _ in buffers]
        pieces = [
            buffer[start : start + count * BLOCK_BYTES] for buffer, start in zip(buffers, starts, strict=True)
        ]
        return pieces if way == "out" else pieces[::-1]

    def _timed(self, copy: Callable[[], object]) -> float:
        started = time.perf_counter()
        copy()
        if self.device_buffer.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - started


def prepare(device: str, blocks: int, seed: int) -> Bench:
    """Allocates both tiers and the buffers, and touches all of it."""
    caches, config = _kv_caches(device, blocks)
    for cache in caches:
        cache.normal_()
    worker = WorkerExtension()
    worker.model_runner = SimpleNamespace(kv_caches=caches, kv_cache_config=config)
    worker.autellix_open_host_pool(blocks)
    size = blocks * BLOCK_BYTES
    bench = Bench(
        worker=worker,
        caches=caches,
        device_buffer=torch.ones(size, dtype=torch.uint8, device=device),
        host_buffer=torch.ones(size, dtype=torch.uint8, pin_memory=device == "cuda"),
        blocks=blocks,
        rng=random.Random(seed),
    )
    bench.check()
    return bench


def _kv_caches(device: str, blocks: int) -> tuple[list[torch.Tensor], KVCacheConfig]:
    """A tensor a layer, placed in one allocation as vLLM places them on this kind of device."""
    names = [f"layers.{layer}" for layer in range(LAYERS)]
    page = SPEC.page_size_bytes
    place = KVCacheTensor(
        size=blocks * BLOCK_BYTES, layers=names, layer_stride=page * blocks, block_stride=page
    )
    config = KVCacheConfig(
        num_blocks=blocks, kv_cache_tensors=[place], kv_cache_groups=[KVCacheGroupSpec(names, SPEC)]
    )
    caches = allocate_kv_cache(config, torch.device(device), LAYOUTS[device])
    return list(caches.values()), config


def measure(bench: Bench, count: int, rounds: int) -> dict[str, Any]:
    """Figures of lists of `count` blocks, by way and pattern."""
    figures: dict[str, Any] = {}
    for way in WAYS:
        rows = [_round(bench, way, count, number) for number in range(rounds)]
        figures[way] = {name: _figure(count, [row[name] for row in rows]) for name in rows[0]}
        for pattern in PATTERNS:
            ratios = {name: [row[name] / row[pattern] for row in rows] for name in MEMCPYS if name in rows[0]}
            figures[way][pattern]["ratios"] = ratios
            figures[way][pattern]["ratio"] = min(map(statistics.median, ratios.values()))
    return figures


def _round(bench: Bench, way: str, count: int, number: int) -> dict[str, float]:
    """Seconds of each side, measured one after the other; each round begins with another side."""
    sides: dict[str, Callable[[], float]] = {name: partial(bench.swap, way, name, count) for name in PATTERNS}
    sides["torch memcpy"] = partial(bench.torch_memcpy, way, count)
    if not bench.device_buffer.is_cuda:
        sides["numpy memcpy"] = partial(bench.numpy_memcpy, way, count)
    names = list(sides)
    first = number % len(names)
    return {name: sides[name]() for name in names[first:] + names[:first]}


def _figure(count: int, seconds: list[float]) -> dict[str, Any]:
    median_s = statistics.median(seconds)
    return {"ms": median_s * 1e3, "gb_per_s": count * BLOCK_BYTES / median_s / 1e9}


def _say(count: int, figures: dict[str, Any]) -> None:
    for way in WAYS:
        row = figures[way]
        parts = [f"{name} {row[name]['gb_per_s']:5.1f} GB/s ({row[name]['ratio']:.2f})" for name in PATTERNS]
        parts += [f"{name} {row[name]['gb_per_s']:5.1f}" for name in MEMCPYS if name in row]
        print(f"{count:4d} blocks {way:>3}: {'   '.join(parts)}", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Measures all lengths and writes the result. `argv`: the options; None: those of the process."""
    parser = argparse.ArgumentParser(prog="python -m bench.swap", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=25, help="rounds of each length (default 25)")
    parser.add_argument("--blocks", type=int, nargs="+", default=[1, 8, 32, 128, 256], help="list lengths")
    threads = max(1, len(os.sched_getaffinity(0)) - 1)
    parser.add_argument(
        "--threads", type=int, default=threads, help=f"threads, the executor's default: {threads}"
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=tuple(LAYOUTS), default=device, help=f"default: {device}")
    parser.add_argument("--seed", type=int, default=0, help="of the block ids")
    parser.add_argument("--out", type=Path, default=RESULT, help="result file")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    bench = prepare(options.device, blocks=max(options.blocks) * 3 // 2, seed=options.seed)
    lists = {}
    for count in sorted(options.blocks):
        lists[str(count)] = measure(bench, count, options.rounds)
        _say(count, lists[str(count)])
    bench.check()
    longest = lists[str(max(options.blocks))]
    ratio = min(longest[way][pattern]["ratio"] for way in WAYS for pattern in PATTERNS)
    result = machine.describe() | {
        "device": options.device,
        "threads": options.threads,
        "block_bytes": BLOCK_BYTES,
        "layout": LAYOUTS[options.device].name,
        "ratio": ratio,
        "target": TARGET,
        "lists": lists,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"lowest ratio at {max(options.blocks)} blocks: {ratio:.2f}, target {TARGET}")
    print(f"written: {options.out}")


if __name__ == "__main__":
    main()
