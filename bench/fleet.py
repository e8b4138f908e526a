"""One scheduler and many executors, live: `python -m bench.fleet`, JSON to bench/results/fleet.json.

Theory of operation: three processes on this machine, joined by real gRPC over loopback.

* the scheduler, `python -m scheduler_svc`, as it is;
* `bench.fleet_executors`: simulated executors that share a process and its event loop, each with a session,
  a connection and a runner of its own; every step takes a fixed time of the device (10 ms);
* this process: the frontend's stream, see `bench.fleet_client`.

All calls are submitted at once and decode together. When every batch is full, and after a while of settling,
a window of time is measured: from step start to step start on each device (the period), and the CPU seconds
of the three processes. A device starts a step at the end of the one before, if its plan is there by then: the
period exceeds the step's time by what the device waited for its plan. Scheduler, load generator and a busy
machine all make plans late, and the period does not tell them apart: read it together with `result_late_ms`
(how late results left the load generator) and `cpu_share` (a process near 1.0 is what limits the fleet; the
executors are one process too). Lateness that one plan in advance hides does not show in the period at all:
that is `plan_ahead_ms`. At the end every token that came is checked.
"""

import argparse
import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import psutil
import uvloop

from bench import machine
from bench.cluster import Cluster
from bench.fleet_client import PROMPT_TOKENS, FleetClient
from executor_svc.simulated_tokens import TokenRule
from protos.autellix.scheduler.v1 import scheduler_pb2 as pb
from protos.autellix.scheduler.v1 import scheduler_pb2_grpc as rpc
from scripts.compiled_core import AUTO, CHOICES, SOURCES, CoreBuild, choose
from svc_runtime.grpc_aio import open_channel

RESULT = Path(__file__).parent / "results" / "fleet.json"
FULL_S_MAX = 120.0
LINE_BYTES_MAX = 1 << 22
FULL = True
"""What the executors' process says when all batches are full; rows by executor before that."""
BLOCK_SIZE = 16
VOCAB_SIZE = 32_000


@dataclass(frozen=True, kw_only=True)
class Load:
    """What is run."""

    executors: int
    calls_each: int
    step_ms: float
    settle_s: float
    window_s: float
    policy: str
    max_tokens: int = 8000

    @property
    def calls(self) -> int:
        """Calls in all."""
        return self.executors * self.calls_each


def measure(load: Load, core: CoreBuild = SOURCES) -> dict[str, Any]:
    """Runs one measurement.

    Raises: RuntimeError when a call, an executor or a token was lost, or calls ended within the window.
    """
    with tempfile.TemporaryDirectory() as name:
        cluster = Cluster(
            Path(name),
            model="simulated",
            scheduler={"policy": load.policy, "frontend_calls_max": load.calls, "live_calls_max": load.calls},
            executors=0,
            with_frontend=False,
            core=core,
        )
        with cluster, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_measure(load, cluster))


async def _measure(load: Load, cluster: Cluster) -> dict[str, Any]:
    async with (
        _executors(cluster, load) as executors,
        open_channel(cluster.scheduler_target, peer_token=cluster.peer_token) as channel,
    ):
        await _all_registered(channel, load.executors)
        client = FleetClient(channel, load.calls, load.executors, load.max_tokens)
        measuring = asyncio.create_task(_window(load, cluster, executors, client))
        receiving = asyncio.create_task(client.run())
        try:
            done, _ = await asyncio.wait({measuring, receiving}, return_when=asyncio.FIRST_COMPLETED)
            if receiving in done:
                receiving.result()
                raise RuntimeError("the scheduler ended the stream")
            return measuring.result()
        finally:
            measuring.cancel()
            receiving.cancel()
            await asyncio.gather(measuring, receiving, return_exceptions=True)


async def _window(load: Load, cluster: Cluster, executors: Process, client: FleetClient) -> dict[str, Any]:
    """Waits until all batches are full, measures, and checks what came."""
    assert executors.stdin is not None
    processes = {
        "scheduler": psutil.Process(cluster.services["scheduler"].process.pid),
        "executors": psutil.Process(executors.pid),
        "client": psutil.Process(),
    }
    started_s = time.monotonic()
    await _full(executors)
    full_after_s = time.monotonic() - started_s
    await asyncio.sleep(load.settle_s)
    begin_s, cpu_before_s, tokens = time.monotonic(), _cpu_s(processes), client.tokens
    await asyncio.sleep(load.window_s)
    end_s, cpu_after_s, tokens = time.monotonic(), _cpu_s(processes), client.tokens - tokens
    executors.stdin.write(f"{begin_s} {end_s}\n".encode())
    each = json.loads(await _line(executors))
    cpu_s = {name: cpu_after_s[name] - cpu_before_s[name] for name in processes}
    _check(client, each, load)
    return {
        "full_after_s": full_after_s,
        "tokens_per_s": tokens / (end_s - begin_s),
        **_figures(load, each, cpu_s, end_s - begin_s),
    }


@asynccontextmanager
async def _executors(cluster: Cluster, load: Load) -> AsyncIterator[Process]:
    """The process with all the executors, for as long as the block runs."""
    settings = {
        "SCHEDULER": cluster.scheduler_target,
        "PEER_TOKEN": cluster.peer_token,
        "RUNNER": "simulated",
        "MODEL": "simulated",
        "SIMULATED_COST": f"fixed:{load.step_ms:g}ms",
        "SIMULATED_VOCAB_SIZE": VOCAB_SIZE,
        "MAX_NUM_SEQS": load.calls_each,
        "MAX_MODEL_LEN": load.max_tokens + PROMPT_TOKENS,
        "BLOCK_SIZE": BLOCK_SIZE,
        "NUM_GPU_BLOCKS_OVERRIDE": load.calls_each * ((load.max_tokens + PROMPT_TOKENS) // BLOCK_SIZE + 2),
        "LOG_LEVEL": "warning",
    }
    env = os.environ | {f"AUTELLIX_EXECUTOR_{key}": str(value) for key, value in settings.items()}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "bench.fleet_executors",
        env=env | {"FLEET_EXECUTORS": str(load.executors)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        limit=LINE_BYTES_MAX,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _all_registered(channel: grpc.aio.Channel, count: int) -> None:
    stub, ask = rpc.SchedulerServiceStub(channel), pb.ListExecutorsRequest()
    async with asyncio.timeout(FULL_S_MAX):
        while len((await stub.ListExecutors(ask, timeout=30)).executors) < count:  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def _full(executors: Process) -> None:
    """Returns when all batches are full.

    Raises: TimeoutError telling how many rows each executor had at last.
    """
    rows: Any = None
    try:
        async with asyncio.timeout(FULL_S_MAX):
            while (rows := json.loads(await _line(executors))) is not FULL:
                pass
    except TimeoutError:
        raise TimeoutError(f"batches not full after {FULL_S_MAX:.0f} s; rows by executor: {rows}") from None


async def _line(executors: Process) -> bytes:
    """The next line that the executors' process says."""
    assert executors.stdout is not None
    line = await executors.stdout.readline()
    if not line:
        raise RuntimeError(f"the executors' process ended with code {await executors.wait()}")
    return line


def _cpu_s(processes: dict[str, psutil.Process]) -> dict[str, float]:
    times = {name: process.cpu_times() for name, process in processes.items()}
    return {name: each.user + each.system for name, each in times.items()}


def _check(client: FleetClient, each: list[dict[str, Any]], load: Load) -> None:
    if client.finished:
        raise RuntimeError(f"{client.finished} calls ended before the window did: raise max_tokens")
    if any(figures["resets"] for figures in each):
        raise RuntimeError("executors had to register again; see their log lines above")
    if any(figures["rows_min"] < load.calls_each for figures in each):
        raise RuntimeError("a batch was not full all the time")
    if not client.check(TokenRule(vocab_size=VOCAB_SIZE)):
        raise RuntimeError("a call got no token")


def _figures(
    load: Load, each: list[dict[str, Any]], cpu_s: dict[str, float], wall_s: float
) -> dict[str, Any]:
    """The fleet's figures from those of its executors."""
    steps = sum(figures["steps"] for figures in each)
    medians = [figures["period_ms"] / load.step_ms - 1 for figures in each]
    p99s = [figures["period_p99_ms"] / load.step_ms - 1 for figures in each]
    means = [figures["period_mean_ms"] / load.step_ms - 1 for figures in each]
    return {
        "inflation": statistics.median(medians),
        "inflation_worst": max(medians),
        "inflation_mean": statistics.fmean(means),
        "inflation_p99": statistics.median(p99s),
        "inflation_p99_worst": max(p99s),
        "steps_per_s": steps / wall_s,
        "cpu_us_per_step": {name: seconds / steps * 1e6 for name, seconds in cpu_s.items()},
        "cpu_share": {name: seconds / wall_s for name, seconds in cpu_s.items()},
        "executors": each,
    }


def _say(result: dict[str, Any]) -> None:
    cpu = ", ".join(f"{name} {us:.0f} us" for name, us in result["cpu_us_per_step"].items())
    print(
        f"step period inflation: median {result['inflation']:.2%}, worst executor"
        f" {result['inflation_worst']:.2%}, p99 {result['inflation_p99']:.2%}\n"
        f"{result['steps_per_s']:.0f} steps/s, {result['tokens_per_s']:.0f} tokens/s;"
        f" CPU a step: {cpu}; cores used: {sum(result['cpu_share'].values()):.2f}",
        flush=True,
    )


def main() -> None:
    """Measures and writes the result."""
    parser = argparse.ArgumentParser(prog="python -m bench.fleet", description=__doc__.splitlines()[0])
    parser.add_argument("--executors", type=int, default=32, help="simulated executors (default 32)")
    parser.add_argument("--calls", type=int, default=256, help="calls of each executor (default 256)")
    parser.add_argument("--step-ms", type=float, default=10.0, help="time of a step (default 10)")
    parser.add_argument("--settle-s", type=float, default=3.0, help="pause before the window (default 3)")
    parser.add_argument("--window-s", type=float, default=15.0, help="length of the window (default 15)")
    parser.add_argument("--policy", default="fcfs", help="scheduling policy (default fcfs)")
    parser.add_argument("--core", choices=CHOICES, default=AUTO, help="the scheduler's core (default: auto)")
    parser.add_argument("--out", type=Path, default=RESULT, help="result file")
    options = parser.parse_args()
    load = Load(
        executors=options.executors,
        calls_each=options.calls,
        step_ms=options.step_ms,
        settle_s=options.settle_s,
        window_s=options.window_s,
        policy=options.policy,
    )
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM)
    )  # processes are stopped on the way
    core = choose(options.core)
    machine.warn()
    result = {**machine.describe(core), "load": vars(load), **measure(load, core)}
    _say(result)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written: {options.out}")


if __name__ == "__main__":
    main()
