"""Step period of one simulated executor: driven by a scheduler in another process, and from a local list.

`measure()` starts a scheduler and `bench.period_executor` as processes, submits `calls` calls through the
frontend's stream and lets them decode together. The executor notes when each step starts; when the scheduler
is done with it, it steps the very plans it was sent once more, from memory. Inflation = driven period /
local period - 1, over steps with all calls in the batch.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from bench.cluster import Cluster, wait_until
from protos.autellix.scheduler.v1 import scheduler_pb2 as pb
from protos.autellix.scheduler.v1 import scheduler_pb2_grpc as rpc
from scripts.compiled_core import SOURCES, CoreBuild
from svc_runtime.columns import pack_i32, unpack_i32
from svc_runtime.grpc_aio import open_channel

PROMPT_TOKENS = 32


def measure(
    *, calls: int = 256, steps: int = 800, cost: str = "fixed:10ms", core: CoreBuild = SOURCES
) -> dict[str, Any]:
    """Runs one measurement; returns periods in milliseconds and the inflation."""
    with tempfile.TemporaryDirectory() as name:
        result = Path(name) / "period.json"
        cluster = Cluster(
            Path(name),
            model="simulated",
            scheduler={"policy": "fcfs"},
            executors=0,
            with_frontend=False,
            core=core,
        )
        with cluster:
            executor = _start_executor(cluster, result, calls, cost)
            try:
                asyncio.run(_decode_together(cluster, calls, steps))
                executor.send_signal(signal.SIGTERM)
                if executor.wait(120):
                    raise RuntimeError(f"the executor ended with code {executor.returncode}")
            finally:
                executor.kill()
        return {"calls": calls, "cost": cost, **json.loads(result.read_text())}


def _start_executor(cluster: Cluster, result: Path, calls: int, cost: str) -> subprocess.Popen[bytes]:
    settings = {
        "SCHEDULER": cluster.scheduler_target,
        "PEER_TOKEN": cluster.peer_token,
        "RUNNER": "simulated",
        "MODEL": "simulated",
        "SIMULATED_COST": cost,
        "MAX_NUM_SEQS": calls,
        "NUM_GPU_BLOCKS_OVERRIDE": 65536,
        "HEALTH_PORT": 0,
        "METRICS_PORT": 0,
        "LOG_LEVEL": "warning",
    }
    env = os.environ | {f"AUTELLIX_EXECUTOR_{key}": str(value) for key, value in settings.items()}
    executor = subprocess.Popen([sys.executable, "-m", "bench.period_executor", str(result)], env=env)
    wait_until("the executor registered", lambda: _registered(cluster, executor))
    return executor


def _registered(cluster: Cluster, executor: subprocess.Popen[bytes]) -> bool:
    if executor.poll() is not None:
        raise RuntimeError(f"the executor ended with code {executor.returncode}")
    return asyncio.run(_executors(cluster)) == 1


async def _executors(cluster: Cluster) -> int:
    async with open_channel(cluster.scheduler_target, peer_token=cluster.peer_token) as channel:
        reply = await rpc.SchedulerServiceStub(channel).ListExecutors(pb.ListExecutorsRequest(), timeout=5)
        return len(reply.executors)


async def _decode_together(cluster: Cluster, calls: int, steps: int) -> None:
    """Submits `calls` calls of `steps` tokens each and reads their tokens to the end."""
    async with open_channel(cluster.scheduler_target, peer_token=cluster.peer_token) as channel:
        stub = rpc.SchedulerServiceStub(channel)
        opened = await stub.OpenProgram(
            pb.OpenProgramRequest(tenant="bench", program_id="00000000-0000-7000-8000-000000000001"),
            timeout=10,
        )
        done = asyncio.Event()
        requests = _requests(opened.program.program_id, calls, steps, done)
        tokens = finished = 0
        async for response in stub.Connect(requests):
            if response.HasField("refused"):
                raise RuntimeError(f"refused: {response.refused}")
            tokens += len(unpack_i32(response.outputs.handles))
            finished += len(response.outputs.finished)
            if finished == calls:
                break
        done.set()
        if tokens != calls * steps:
            raise RuntimeError(f"{tokens} tokens instead of {calls * steps}")


async def _requests(
    program: str, calls: int, steps: int, done: asyncio.Event
) -> AsyncIterator[pb.ConnectRequest]:
    yield pb.ConnectRequest(hello=pb.Hello(protocol_version=1, frontend_id="bench"))
    for handle in range(calls):
        prompt = pack_i32((handle * 131 + i * 7) % 30000 for i in range(PROMPT_TOKENS))
        submit = pb.Submit(
            handle=handle,
            call_id=f"bench-{handle}",
            tenant="bench",
            program_id=program,
            model="simulated",
            prompt_token_ids=prompt,
            max_tokens=steps,
            params_format="simulated",
        )
        yield pb.ConnectRequest(submit=submit)
    await done.wait()
