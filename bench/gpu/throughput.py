"""GPU check 2: tokens per second of our three services against vLLM's own server, same GPU, same limits.

The model has the shape of LLaMA-3.1-8B and random weights made on the GPU (vLLM's ``load_format=dummy``):
the time of a step does not depend on what the weights say. One server at a time owns the GPU; sides follow
each other within one run.

usage: python -m bench.gpu.throughput [--streams 1 32 128 256] [--out bench/results/gpu_throughput.json]
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench import http_load, machine
from bench.cluster import Cluster
from bench.gpu import device
from bench.split import Side, vllm_server
from demo.models import make_tiny

RESULT = Path(__file__).parents[1] / "results" / "gpu_throughput.json"
LLAMA_8B = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "rope_theta": 500000.0,
}
ENGINE = {
    "max_num_seqs": 256,
    "max_num_batched_tokens": 8192,
    "max_model_len": 4096,
    "block_size": 16,
    "dtype": "bfloat16",
    "load_format": "dummy",
    "gpu_memory_utilization": 0.6,
}


def make_model(path: Path) -> None:
    """The tiny model's tokenizer with the configuration of an 8B Llama; no weights."""
    make_tiny(path)
    for weights in path.glob("*.safetensors"):
        weights.unlink()
    config = json.loads((path / "config.json").read_text())
    config |= {**LLAMA_8B, "dtype": "bfloat16", "torch_dtype": "bfloat16"}
    (path / "config.json").write_text(json.dumps(config, indent=1))


@contextmanager
def our_services(model: Path, directory: Path, eager: bool) -> Iterator[Side]:
    """Scheduler, one executor and one frontend, policy fcfs."""
    executor = {**ENGINE, "enforce_eager": eager}
    services = Cluster(directory, model=model, scheduler={"policy": "fcfs"}, executor=executor, env={})
    with services as cluster:
        yield Side(cluster.base_url, "test", [service.process.pid for service in cluster.services.values()])


def measure(side: Side, streams: list[int], rounds: int) -> dict[str, dict[str, float]]:
    """Medians by number of streams."""
    side.measure(http_load.Load(streams=16, calls_per_stream=2, seed=-1))
    figures = {}
    for count in streams:
        loads = [
            http_load.Load(streams=count, calls_per_stream=2, prompt_tokens=256, output_tokens=256, seed=seed)
            for seed in range(rounds)
        ]
        rows = [side.measure(load) for load in loads]
        figures[str(count)] = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
        print(f"{count:4d} streams: {figures[str(count)]['tokens_per_s']:.0f} tok/s", flush=True)
    return figures


def main() -> None:
    """Runs both sides and writes the result."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu.throughput", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 32, 128, 256])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--eager", action="store_true", help="without CUDA graphs and torch.compile, both sides"
    )
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    os.environ.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")
    directory = Path(tempfile.mkdtemp())
    try:
        make_model(directory / "model")
        with vllm_server(
            directory / "model", directory / "vllm.log", engine=ENGINE, eager=options.eager
        ) as side:
            print("vLLM's server", flush=True)
            theirs = measure(side, options.streams, options.rounds)
        with our_services(directory / "model", directory / "ours", options.eager) as side:
            print("our services", flush=True)
            ours = measure(side, options.streams, options.rounds)
    finally:
        shutil.rmtree(directory)
    ratios = {count: ours[count]["tokens_per_s"] / theirs[count]["tokens_per_s"] for count in ours}
    result: dict[str, Any] = {
        **machine.describe(),
        "gpu": device.describe(),
        "engine": {**ENGINE, "enforce_eager": options.eager},
        "tokens_per_s_ratio": ratios,
        "ours": ours,
        "vllm": theirs,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(ratios))


if __name__ == "__main__":
    subprocess.run([sys.executable, "-c", "import vllm"], check=True)
    main()
