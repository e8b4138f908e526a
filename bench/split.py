"""What splitting the engine into three services costs: `python -m bench.split`, JSON to
bench/results/split_cost.json.

Two figures, each with both sides in one run on one machine:

* throughput: our three services against vLLM's own server on the tiny model; same limits and dtype, prefix
  caching on, FCFS, the same OMP threads and pinning; both servers stay up, loads alternate between them,
  median of the rounds.
* step period: a simulated executor at a fixed step time, driven by a scheduler in another process, against
  the same runner stepping the same plans from a local list (see `bench.period`).
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import urllib3

from bench import http_load, machine, period
from bench.cluster import Cluster, free_port, wait_until
from demo.models import make_tiny
from scripts.compiled_core import AUTO, CHOICES, CoreBuild, choose

RESULT = Path(__file__).parent / "results" / "split_cost.json"
ENGINE = {
    "max_num_seqs": 128,
    "max_num_batched_tokens": 2048,
    "max_model_len": 1024,
    "block_size": 32,
    "dtype": "float32",
}
SHARED_ENV = {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "0", "VLLM_CPU_KVCACHE_SPACE": "1"}
SETTLE_S = 2.0
"""Pause before each load: vLLM's workers spin for a second after their last step, on everybody's cores."""
CALLS_PER_STREAM = {1: 6, 32: 3, 128: 2}


class Side:
    """One server under load."""

    def __init__(self, base_url: str, model: str, processes: list[int]) -> None:
        self._base_url = base_url
        self._model = model
        self._processes = processes

    def cpu_s(self) -> float:
        """CPU seconds used so far by the server's processes and their children."""
        total = 0.0
        for pid in self._processes:
            root = psutil.Process(pid)
            for process in (root, *root.children(recursive=True)):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    def measure(self, load: http_load.Load) -> dict[str, float]:
        """Tokens per second and CPU seconds per token under `load`."""
        cpu_before_s = self.cpu_s()
        wall_s = asyncio.run(http_load.run(self._base_url, self._model, load))
        return {
            "tokens_per_s": load.tokens / wall_s,
            "cpu_s_per_token": (self.cpu_s() - cpu_before_s) / load.tokens,
        }


@contextmanager
def vllm_server(
    model: Path, log: Path, *, engine: Mapping[str, object] = ENGINE, eager: bool = True
) -> Iterator[Side]:
    """vLLM's own OpenAI server."""
    port = free_port()
    argv = [
        sys.executable,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        str(model),
        "--port",
        str(port),
    ]
    argv += ["--host", "127.0.0.1", "--served-model-name", "test", "--enable-prefix-caching"]
    argv += ["--enforce-eager"] if eager else []
    argv += [word for key, value in engine.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    argv += ["--disable-uvicorn-access-log"]
    env = os.environ | SHARED_ENV | {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
    with log.open("wb") as output:
        process = subprocess.Popen(argv, env=env, stdout=output, stderr=subprocess.STDOUT)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until("vLLM's server", lambda: _answers(f"{url}/health", process, log))
        yield Side(f"{url}/v1", "test", [process.pid])
    finally:
        process.terminate()
        process.wait(30)


def _answers(url: str, process: subprocess.Popen[bytes], log: Path) -> bool:
    if process.poll() is not None:
        raise RuntimeError(f"vLLM's server ended:\n{log.read_text(errors='replace')[-2000:]}")
    try:
        return urllib3.request("GET", url, timeout=1.0, retries=False).status == 200
    except urllib3.exceptions.HTTPError:
        return False


@contextmanager
def our_services(model: Path, directory: Path, core: CoreBuild) -> Iterator[Side]:
    """Scheduler, one executor and one frontend."""
    executor = {**ENGINE, "enforce_eager": True, "kv_cache_gib": 1}
    services = Cluster(
        directory, model=model, scheduler={"policy": "fcfs"}, executor=executor, env=SHARED_ENV, core=core
    )
    with services as cluster:
        yield Side(cluster.base_url, "test", [service.process.pid for service in cluster.services.values()])


def throughput(rounds: int, streams: list[int], core: CoreBuild) -> dict[str, Any]:
    """Alternates the loads; returns medians and ratios by number of streams."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        directory = Path(name)
        make_tiny(directory / "tiny")
        sides = {
            "vllm": stack.enter_context(vllm_server(directory / "tiny", directory / "vllm.log")),
            "ours": stack.enter_context(our_services(directory / "tiny", directory / "ours", core)),
        }
        for side in sides.values():
            side.measure(http_load.Load(streams=8, calls_per_stream=2, seed=-1))
        return {str(count): _compare(sides, count, rounds) for count in streams}


def _compare(sides: dict[str, Side], streams: int, rounds: int) -> dict[str, Any]:
    samples: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for number in range(rounds):
        order = list(sides) if number % 2 == 0 else list(reversed(sides))
        load = http_load.Load(streams=streams, calls_per_stream=CALLS_PER_STREAM.get(streams, 2), seed=number)
        for name in order:
            time.sleep(SETTLE_S)
            samples[name].append(sides[name].measure(load))
    figures: dict[str, Any] = {
        name: {key: statistics.median(s[key] for s in rows) for key in rows[0]}
        for name, rows in samples.items()
    }
    ours, vllm = figures["ours"], figures["vllm"]
    figures["tokens_per_s_ratio"] = ours["tokens_per_s"] / vllm["tokens_per_s"]
    figures["cpu_s_per_token_ratio"] = ours["cpu_s_per_token"] / vllm["cpu_s_per_token"]
    figures["samples"] = samples
    _say(
        f"{streams:4d} streams: ours {ours['tokens_per_s']:8.0f} tok/s,"
        f" vLLM {vllm['tokens_per_s']:8.0f} tok/s, ratio {figures['tokens_per_s_ratio']:.3f};"
        f" CPU a token {figures['cpu_s_per_token_ratio']:.2f}x"
    )
    return figures


def _say(text: str) -> None:
    print(text, flush=True)


def main() -> None:
    """Runs both parts and writes the result."""
    parser = argparse.ArgumentParser(prog="python -m bench.split", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each load (default 5)")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 32, 128], help="concurrent streams")
    parser.add_argument("--period-only", action="store_true", help="measure only the step period")
    parser.add_argument("--out", type=Path, default=RESULT, help="result file")
    parser.add_argument("--core", choices=CHOICES, default=AUTO, help="the scheduler's core (default: auto)")
    options = parser.parse_args()
    core = choose(options.core)
    machine.warn()
    result: dict[str, Any] = machine.describe(core)
    if not options.period_only:
        _say(f"throughput: tiny model, {options.rounds} rounds, sides alternate")
        by_streams = throughput(options.rounds, options.streams, core)
        result["tokens_per_s_ratio"] = {count: row["tokens_per_s_ratio"] for count, row in by_streams.items()}
        result["throughput"] = by_streams
        result["engine"] = {**ENGINE, **SHARED_ENV}
    _say("step period: simulated executor, 10 ms steps, 256 calls")
    result["period"] = period.measure(core=core)
    result["period_inflation"] = result["period"]["inflation"]
    _say(f"period inflation {result['period_inflation'] * 100:.2f} %")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    _say(f"written: {options.out}")


if __name__ == "__main__":
    main()
