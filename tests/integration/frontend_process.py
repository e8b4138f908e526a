"""One frontend process before a fake scheduler: tests see both of its sides."""

import asyncio
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from bench.cluster import ROOT, free_port
from protos.autellix.scheduler.v1 import scheduler_pb2 as pb
from svc_runtime.fingerprint import tokenizer_fingerprint
from tests.fake_scheduler import FakeScheduler, server

READY_S = 90.0


@dataclass
class FrontendProcess:
    """A running frontend and the scheduler it talks to."""

    fake: FakeScheduler
    process: asyncio.subprocess.Process
    port: int
    grpc_port: int
    client: httpx.AsyncClient
    log: Path

    async def post(self, path: str, body: object = None, **options: object) -> httpx.Response:
        return await self.client.post(path, json=body, **options)

    async def until_health(self, status: int) -> None:
        """Wait until /health answers so."""
        async with asyncio.timeout(READY_S):
            while await self._health() != status:
                if self.process.returncode is not None:
                    raise RuntimeError(f"the frontend ended:\n{self.log.read_text()[-3000:]}")
                await asyncio.sleep(0.05)

    async def _health(self) -> int | None:
        try:
            return (await self.client.get("/health")).status_code
        except httpx.TransportError:
            return None


def without_weights(model: Path, directory: Path) -> Path:
    """The model's tokenizer and configuration only: all that a frontend may need."""
    directory.mkdir(parents=True, exist_ok=True)
    for file in model.iterdir():
        if file.suffix in (".json", ".jinja"):
            shutil.copy(file, directory)
    assert not list(directory.glob("*.safetensors"))
    return directory


def served(model: Path) -> pb.ModelInfo:
    """What a scheduler would say of the model."""
    return pb.ModelInfo(
        model="tiny",
        tokenizer_fingerprint=tokenizer_fingerprint(model),
        max_model_len=512,
        block_size=32,
        num_blocks=100,
        executors=1,
        structured_output_backend="xgrammar",
        params_formats=["vllm-0.32.0/msgpack"],
        max_call_tokens=512,
    )


async def start(arguments: list[str], log: Path) -> asyncio.subprocess.Process:
    """Start `python -m frontend_svc` with these flags."""
    with log.open("ab") as output:
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "frontend_svc", *arguments, cwd=ROOT, stdout=output, stderr=output
        )


@asynccontextmanager
async def running(model: Path, directory: Path, *flags: str) -> AsyncIterator[FrontendProcess]:
    """A frontend that is ready; stopped at the end."""
    fake = FakeScheduler(served(model))
    grpc_server = server(fake)
    scheduler_port, port, grpc_port = await grpc_server.start(), free_port(), free_port()
    log = directory / "frontend.log"
    process = await start(
        [
            *("--scheduler", f"127.0.0.1:{scheduler_port}"),
            *("--model", str(model), "--served-model-name", "tiny"),
            *("--port", str(port), "--grpc-port", str(grpc_port), "--metrics-port", "0", *flags),
        ],
        log,
    )
    client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30)
    frontend = FrontendProcess(fake, process, port, grpc_port, client, log)
    try:
        await frontend.until_health(200)
        yield frontend
    finally:
        await client.aclose()
        if process.returncode is None:
            process.terminate()
            await asyncio.wait_for(process.wait(), 20)
        await grpc_server.stop(0)
