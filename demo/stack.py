"""The three services as one local stack: what to start, and when it is ready.

Each service gets its settings as flags, so `ps` shows what runs; the peer token goes through the environment:
that of AUTELLIX_PEER_TOKEN, for those who want to call the scheduler, else a random one at every start.
Settings that are not set here can be given by the services' own environment variables, e.g.
`AUTELLIX_EXECUTOR_MAX_NUM_SEQS=64 make up`. The scheduler runs the core that `make compile` made, if that is
up to date (`scripts.compiled_core`).
"""

import asyncio
import os
import secrets
import shutil
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc

from demo.models import LocalModel
from demo.process_runner import ProcessRunner, ProcessSpec
from demo.readiness import PROBE_S, Condition, executors_attached, grpc_serving, http_healthy
from protos.autellix.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc
from scripts import compiled_core
from svc_runtime.grpc_aio import open_channel

HOST = "127.0.0.1"
SCHEDULER, FRONTEND = "scheduler", "frontend"
POLL_S = 0.25
TELL_EVERY_S = 5.0

Say = Callable[[str], None]


class StackFailed(Exception):
    """A service ended, or did not become ready; the message carries its last log lines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StackPorts:
    """Where the stack listens, on the loopback interface."""

    http: int = 8000
    grpc: int = 50050
    scheduler: int = 50051
    metrics: int | None = 9050
    """Prometheus endpoint of the frontend; the scheduler's is the next port. None: no endpoints."""

    def by_variable(self) -> dict[str, int]:
        """The ports under the names of the Make variables that choose them."""
        ports = {"PORT": self.http, "GRPC_PORT": self.grpc, "SCHEDULER_PORT": self.scheduler}
        if self.metrics is not None:
            ports |= {"METRICS_PORT": self.metrics}
        return ports

    def metrics_flags(self, offset: int) -> dict[str, object]:
        """Flags of the service that has the metrics port plus `offset`."""
        return {"metrics-port": 0 if self.metrics is None else self.metrics + offset}


@dataclass(frozen=True, slots=True, kw_only=True)
class StackOptions:
    """What to run."""

    model: LocalModel
    policy: str = "plas"
    executors: int = 1
    ports: StackPorts = StackPorts()
    max_num_seqs: int | None = None
    """Rows of a batch; None: the executor's default."""
    block_size: int | None = None
    """Tokens in a KV block; None: the executor's default."""
    kv_cache_gib: float | None = None
    """Memory for keys and values; None: the executor's default."""
    eager: bool = False
    """Skip torch.compile: ready half a minute earlier, each step some per cent slower."""
    drain_s: int = 20
    """Seconds that running calls get when the stack stops."""
    ready_s_max: float = 600.0
    """Seconds that loading the model may take, a download included."""


class Stack:
    """The processes of one stack. The constructor starts nothing."""

    def __init__(self, options: StackOptions, home: Path, say: Say) -> None:
        self.options = options
        self.runner = ProcessRunner(home)
        self._say = say
        self._token = os.environ.get("AUTELLIX_PEER_TOKEN") or secrets.token_urlsafe(32)
        self._pids: dict[str, int | None] = {}

    @property
    def url(self) -> str:
        """Base URL of the HTTP API, without `/v1`."""
        return f"http://{HOST}:{self.options.ports.http}"

    async def start(self) -> None:
        """Starts all services and waits until they serve. Raises: StackFailed, RunnerFailed."""
        tokens = {
            f"AUTELLIX_{name}_PEER_TOKEN": self._token for name in ("SCHEDULER", "EXECUTOR", "FRONTEND")
        }
        self.runner.start(service_specs(self.options), tokens)
        await self._started()

    async def change_policy(self, policy: str) -> None:
        """Restarts the scheduler under another policy; executors and frontend connect again by themselves."""
        self.options = replace(self.options, policy=policy)
        await asyncio.to_thread(self.runner.replace, service_specs(self.options), SCHEDULER)
        await self._started()

    async def statistics(self) -> scheduler_pb2.GetStatisticsResponse:
        """The scheduler's counters since its start. Raises: StackFailed."""
        request = scheduler_pb2.GetStatisticsRequest()
        return await self._ask_scheduler(lambda stub: stub.GetStatistics(request, timeout=PROBE_S))

    async def _simulated(self) -> bool:
        request = scheduler_pb2.ListExecutorsRequest()
        answer = await self._ask_scheduler(lambda stub: stub.ListExecutors(request, timeout=PROBE_S))
        return any(executor.simulated for executor in answer.executors)

    async def _ask_scheduler(self, ask: Callable[[Any], Awaitable[Any]]) -> Any:
        target = f"{HOST}:{self.options.ports.scheduler}"
        async with open_channel(target, peer_token=self._token) as channel:
            try:
                return await ask(scheduler_pb2_grpc.SchedulerServiceStub(channel))
            except grpc.RpcError as error:
                raise StackFailed(f"the scheduler does not answer: {error}") from error

    def stop(self) -> bool:
        """Stops all services, blocking until they have ended. Returns: False when nothing was running."""
        return self.runner.stop()

    async def _started(self) -> None:
        self._pids = {status.name: status.pid for status in self.runner.statuses()}
        await self._ready()

    async def _ready(self) -> None:
        options, ports = self.options, self.options.ports
        scheduler = f"{HOST}:{ports.scheduler}"
        await self._wait("the scheduler", grpc_serving(scheduler))
        loading = f"{options.executors} executor(s), loading {options.model.name}"
        await self._wait(loading, executors_attached(scheduler, self._token, options.executors))
        if await self._simulated():
            self._say("SIMULATED: no model runs here, tokens are made up and steps only take time")
        await self._wait(f"the HTTP API on port {ports.http}", http_healthy(self.url))
        await self._wait(f"the public gRPC API on port {ports.grpc}", grpc_serving(f"{HOST}:{ports.grpc}"))

    async def _wait(self, what: str, condition: Condition) -> None:
        begun = told = time.monotonic()
        while not await condition():
            self.require_alive()
            now = time.monotonic()
            if now - begun > self.options.ready_s_max:
                raise StackFailed(
                    f"{what}: not ready after {now - begun:.0f} s; logs in {self.runner.home}/logs"
                )
            if now - told >= TELL_EVERY_S:
                self._say(f"waiting for {what} ... {now - begun:.0f} s")
                told = now
            await asyncio.sleep(POLL_S)
        self._say(f"ready: {what} ({time.monotonic() - begun:.1f} s)")

    def require_alive(self) -> None:
        """Raises StackFailed with the last log lines when a service has ended, though it may run anew."""
        for status in self.runner.statuses():
            if not status.alive or status.pid != self._pids[status.name]:
                code = "" if status.exit_code is None else f" with exit code {status.exit_code}"
                tail = self.runner.log_tail(status.name)
                raise StackFailed(f"{status.name} ended{code}. Its last lines:\n{tail}")


# ── commands ────────────────────────────────────────────────────────────────────────────────────────


def service_specs(options: StackOptions) -> list[ProcessSpec]:
    """The processes of a stack, in the order of their start."""
    services = [(SCHEDULER, "scheduler_svc", _scheduler_flags(options))]
    for number in range(1, options.executors + 1):
        services.append((f"executor-{number}", "executor_svc", _executor_flags(options, number)))
    services.append((FRONTEND, "frontend_svc", _frontend_flags(options)))
    core = compiled_core.choose()
    return [
        _spec(*service, options.drain_s, core.environment if service[0] == SCHEDULER else {})
        for service in services
    ]


def _spec(
    name: str, module: str, flags: dict[str, object], drain_s: int, environment: Mapping[str, str]
) -> ProcessSpec:
    argv = [sys.executable, "-m", module, "--drain-s", str(drain_s)]
    for flag, value in flags.items():
        argv += [f"--{flag}"] if value is True else [f"--{flag}", str(value)]
    return ProcessSpec(name=name, argv=tuple(argv), environment=environment, stop_wait_s=drain_s + 10)


def _scheduler_flags(options: StackOptions) -> dict[str, object]:
    ports = options.ports
    return {
        "host": HOST,
        "port": ports.scheduler,
        "policy": options.policy,
        **ports.metrics_flags(1),
    }


def _executor_flags(options: StackOptions, number: int) -> dict[str, object]:
    flags: dict[str, object] = {
        "scheduler": f"{HOST}:{options.ports.scheduler}",
        "executor-id": f"executor-{number}",
        "model": options.model.path,
        "served-model-name": options.model.name,
        "dtype": options.model.dtype,
        "health-port": 0,
        "metrics-port": 0,
    }
    if options.eager or not _has_compiler():
        flags["enforce-eager"] = True
    limits = {
        "max-num-seqs": options.max_num_seqs,
        "block-size": options.block_size,
        "kv-cache-gib": options.kv_cache_gib,
    }
    return flags | {flag: limit for flag, limit in limits.items() if limit is not None}


def _has_compiler() -> bool:
    """torch.compile needs a C++ compiler on the CPU."""
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++", "c++"))


def _frontend_flags(options: StackOptions) -> dict[str, object]:
    return {
        "host": HOST,
        "port": options.ports.http,
        "grpc-port": options.ports.grpc,
        "scheduler": f"{HOST}:{options.ports.scheduler}",
        "model": options.model.path,
        "served-model-name": options.model.name,
        **options.ports.metrics_flags(0),
    }
