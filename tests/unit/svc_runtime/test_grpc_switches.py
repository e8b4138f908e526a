"""gRPC takes the switches that `svc_runtime` sets, and they do what they are for."""

import json
import os
import subprocess
import sys

import pytest

ROUNDS = 300
ECHO = f"""
import asyncio, json, sys
from pathlib import Path
import {{package}}
import grpc

def switches():
    tasks = Path("/proc/self/task").iterdir()
    texts = [(task / "status").read_text() for task in tasks]
    lines = [line for text in texts if "event_engine" in text for line in text.splitlines() if "ctxt" in line]
    return sum(int(line.split()[-1]) for line in lines)

async def echo(requests, context):
    async for request in requests:
        await context.write(request)

async def main():
    server = grpc.aio.server()
    handlers = {{{{"Echo": grpc.stream_stream_rpc_method_handler(echo)}}}}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("probe", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{{{{port}}}}") as channel:
        call = channel.stream_stream("/probe/Echo")()
        for _ in range({ROUNDS}):
            await call.write(b"x")
            assert await call.read() == b"x"
        json.dump(switches(), sys.stdout)
        await call.done_writing()
        await call.read()
    await server.stop(0)

asyncio.run(main())
"""


def event_engine_wakeups(package: str) -> tuple[int, str]:
    """How often gRPC's event engine ran while messages were exchanged; what gRPC complained of."""
    env = {key: value for key, value in os.environ.items() if key != "GRPC_EXPERIMENTS"}
    done = subprocess.run(
        [sys.executable, "-c", ECHO.format(package=package)],
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    return int(json.loads(done.stdout)), done.stderr


@pytest.mark.parametrize(
    "package", ["scheduler_svc", "executor_svc", "frontend_svc", "bench", "demo", "tests"]
)
def test_no_message_passes_through_the_event_engine(package: str) -> None:
    wakeups, complaints = event_engine_wakeups(package)
    assert wakeups < ROUNDS / 2
    assert "experiment" not in complaints


def test_without_the_switches_every_message_does() -> None:
    wakeups, _ = event_engine_wakeups("json")
    assert wakeups > ROUNDS
