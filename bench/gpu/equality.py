"""GPU check 1: tokens of our executor on model runner V2 equal plain vLLM, with preemptions by real limits.

Scheduler and executor run as processes; the plans are real. bfloat16 results depend on the shape of the
batch, so vLLM's batch-invariant mode is asked for (``--no-batch-invariant`` to do without). A divergence is
accepted, and counted, only where plain vLLM's own top two log probabilities differ by no more than 0.02.

usage: python -m bench.gpu.equality [--dtype bfloat16] [--out bench/results/gpu_equality.json]
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench import machine
from bench.cluster import Cluster
from bench.gpu import device
from bench.mixed_requests import greedy_requests
from bench.program_client import Generated, ProgramClient
from demo.models import make_tiny
from protos.autellix.scheduler.v1 import scheduler_pb2 as pb
from protos.autellix.scheduler.v1 import scheduler_pb2_grpc as rpc
from svc_runtime.grpc_aio import open_channel

RESULT = Path(__file__).parents[1] / "results" / "gpu_equality.json"
NEAR_TIE = 0.02
ENGINE = {
    "max_model_len": 1024,
    "max_num_seqs": 16,
    "max_num_batched_tokens": 256,
    "block_size": 32,
    "num_gpu_blocks_override": 97,
    "gpu_memory_utilization": 0.3,
}
EAGER_PREEMPTION = {"policy": "plas", "levels": 6, "first_quantum_s": 0.02}


def baseline(model: Path, requests: list[dict[str, Any]], dtype: str) -> list[dict[str, Any]]:
    """Plain vLLM in a process of its own; each answer has token_ids and, a token, the gap of the top two."""
    argv = [sys.executable, "-m", "bench.gpu.plain_generate", str(model), dtype]
    done = subprocess.run(
        argv, input=json.dumps(requests).encode(), stdout=subprocess.PIPE, timeout=300, check=True
    )
    answers: list[dict[str, Any]] = json.loads(done.stdout.decode().splitlines()[-1])
    return answers


async def ours(
    cluster: Cluster, requests: list[dict[str, Any]]
) -> tuple[list[Generated], pb.GetStatisticsResponse]:
    """The same requests through the three services."""
    async with ProgramClient(cluster.grpc_target) as client:
        generated = await client.generate_all(requests, programs=16)
    async with open_channel(cluster.scheduler_target, peer_token=cluster.peer_token) as channel:
        statistics = await rpc.SchedulerServiceStub(channel).GetStatistics(
            pb.GetStatisticsRequest(), timeout=10
        )
    return generated, statistics


def compare(generated: list[Generated], plain: list[dict[str, Any]]) -> dict[str, int]:
    """Counts equal calls, divergences at a near tie, and divergences without excuse."""
    counts = {"equal": 0, "near_ties": 0, "unequal": 0}
    for answer, reference in zip(generated, plain, strict=True):
        expected = reference["token_ids"]
        if answer.token_ids == expected:
            counts["equal"] += 1
            continue
        pairs = zip(answer.token_ids, expected, strict=False)
        first = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
        excused = first is not None and reference["gaps"][first] <= NEAR_TIE
        counts["near_ties" if excused else "unequal"] += 1
    return counts


def main() -> None:
    """Runs the check; exit code 1 when tokens differ without excuse or nothing was preempted."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.equality", description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--calls", type=int, default=128)
    parser.add_argument("--no-batch-invariant", action="store_true")
    parser.add_argument("--eager", action="store_true", help="without CUDA graphs and torch.compile")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    if not options.no_batch_invariant:
        os.environ["VLLM_BATCH_INVARIANT"] = "1"
    os.environ["AUTELLIX_GPU_CHECK_EAGER"] = "1" if options.eager else "0"
    requests = greedy_requests(options.calls)
    with tempfile.TemporaryDirectory() as name:
        model = Path(name) / "tiny"
        make_tiny(model)
        plain = baseline(model, requests, options.dtype)
        executor = {**ENGINE, "dtype": options.dtype, "enforce_eager": options.eager}
        services = Cluster(
            Path(name) / "run", model=model, scheduler=EAGER_PREEMPTION, executor=executor, env={}
        )
        with services as cluster:
            generated, statistics = asyncio.run(ours(cluster, requests))
    counts = compare(generated, plain)
    result = {
        **machine.describe(),
        "gpu": device.describe(),
        "calls": options.calls,
        "dtype": options.dtype,
        "batch_invariant": not options.no_batch_invariant,
        **counts,
        "preemptions": statistics.preemptions,
        "recomputed_tokens": statistics.recomputed_tokens,
        "cached_tokens": statistics.cached_tokens,
        "steps": statistics.steps,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    sys.exit(1 if counts["unequal"] or not statistics.preemptions else 0)


if __name__ == "__main__":
    main()
