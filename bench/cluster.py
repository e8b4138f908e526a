"""The three services as real processes on loopback TCP, for integration tests and benches.

A `Cluster` owns its processes: `with Cluster(...) as cluster:` starts scheduler, executors and (unless told
otherwise) a frontend, waits for each to be ready by its gRPC health service, and stops them all at the end.
Logs go to files under `directory`; when a service dies early the end of its log is part of the error.
"""

import itertools
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from scripts.compiled_core import SOURCES, CoreBuild

ROOT = Path(__file__).resolve().parents[1]
READY_S_MAX = 120.0
ONE_THREAD = {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
"""One computing thread an executor: several on one machine otherwise spin against each other."""


PORTS = range(12_000, 32_000)
"""Below the numbers that the system gives to outgoing connections, and apart from our default ports."""
_PORTS_A_PROCESS = 40
_first_port = os.getpid() * _PORTS_A_PROCESS % len(PORTS)
_candidates = itertools.cycle((*PORTS[_first_port:], *PORTS[:_first_port]))


def free_port() -> int:
    """A TCP port that is free and that nobody will take: not given before, not by the system, and not by
    processes that start at the same time, whose numbers begin elsewhere.

    Raises: RuntimeError when all are taken.
    """
    for port in itertools.islice(_candidates, len(PORTS)):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError(f"no port of {PORTS} is free")


def wait_until(what: str, condition: Callable[[], bool], *, limit_s: float = READY_S_MAX) -> None:
    """Polls `condition` until it holds; raises TimeoutError naming `what` after `limit_s` seconds."""
    deadline_s = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"{what}: not within {limit_s:.0f} s")
        time.sleep(0.02)


class Service:
    """One service process with its log file."""

    def __init__(self, name: str, argv: list[str], env: Mapping[str, str], log: Path) -> None:
        self.name = name
        self.log = log
        self._argv = argv
        self._env = dict(env)
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(
                self._argv,
                cwd=ROOT,
                env=os.environ | self._env,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def restart(self) -> None:
        """Starts the process again with the same settings."""
        assert self.process.poll() is not None, f"{self.name} still runs"
        self.process = self._start()

    def kill(self) -> None:
        """SIGKILL to the process group: no goodbye."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        self.process.wait(10)

    def stop(self, limit_s: float = 20.0) -> int:
        """SIGTERM, then SIGKILL after `limit_s`; returns the exit code."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(limit_s)
            except subprocess.TimeoutExpired:
                self.kill()
        return int(self.process.returncode)

    def tail(self, lines: int = 25) -> str:
        """The end of the log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def check_alive(self) -> None:
        """Raises with the end of the log if the process has ended."""
        if (code := self.process.poll()) is not None:
            raise RuntimeError(f"{self.name} ended with code {code}:\n{self.tail()}")


def is_serving(target: str) -> bool:
    """True when the gRPC health service at `target` says SERVING."""
    with grpc.insecure_channel(target) as channel:
        try:
            reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=1)
        except grpc.RpcError:
            return False
        return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)


class Cluster:
    """Scheduler, executors and frontend as processes.

    `scheduler`, `executor` and `frontend` are settings without their environment prefix, e.g.
    ``executor={"max_num_seqs": 8}`` becomes ``AUTELLIX_EXECUTOR_MAX_NUM_SEQS=8``.
    `core` is which core the scheduler runs; interpreted unless told otherwise, for tests that change it.
    `scheduler_module` and `executor_module` are what `python -m` runs: tests that break something on purpose
    name a module of their own here.
    """

    def __init__(
        self,
        directory: Path,
        *,
        model: Path | str,
        scheduler: Mapping[str, object] | None = None,
        executor: Mapping[str, object] | None = None,
        frontend: Mapping[str, object] | None = None,
        executors: int = 1,
        with_frontend: bool = True,
        scheduler_module: str = "scheduler_svc",
        executor_module: str = "executor_svc",
        env: Mapping[str, str] = ONE_THREAD,
        core: CoreBuild = SOURCES,
    ) -> None:
        self.directory = directory
        self.peer_token = secrets.token_hex(16)
        self.scheduler_port = free_port()
        self.http_port = free_port()
        self.grpc_port = free_port()
        self._model = str(model)
        self._settings = {
            "SCHEDULER": dict(scheduler or {}),
            "EXECUTOR": dict(executor or {}),
            "FRONTEND": dict(frontend or {}),
        }
        self._modules = {
            "SCHEDULER": scheduler_module,
            "EXECUTOR": executor_module,
            "FRONTEND": "frontend_svc",
        }
        self._executor_count = executors
        self._env = dict(env)
        self._core = core
        self._with_frontend = with_frontend
        self._executor_health: list[int] = []
        self.services: dict[str, Service] = {}

    @property
    def scheduler_target(self) -> str:
        """host:port of the scheduler."""
        return f"127.0.0.1:{self.scheduler_port}"

    @property
    def ports(self) -> list[int]:
        """All ports of all services."""
        return [self.scheduler_port, self.http_port, self.grpc_port, *self._executor_health]

    @property
    def base_url(self) -> str:
        """Base URL of the OpenAI API."""
        return f"http://127.0.0.1:{self.http_port}/v1"

    @property
    def grpc_target(self) -> str:
        """host:port of the public gRPC API."""
        return f"127.0.0.1:{self.grpc_port}"

    def __enter__(self) -> Self:
        self.directory.mkdir(parents=True, exist_ok=True)
        try:
            self._start_all()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stops every process, frontends first."""
        for name in sorted(self.services, key=_stop_rank):
            self.services[name].stop()

    def _start_all(self) -> None:
        self.start_scheduler()
        for index in range(self._executor_count):
            self.start_executor(index)
        if self._with_frontend:
            self.start_frontend()
        self.wait_ready()

    def _spawn(self, name: str, kind: str, settings: Mapping[str, object]) -> Service:
        merged = {"log_format": "json", "metrics_port": 0, "peer_token": self.peer_token, **settings}
        merged |= self._settings[kind]
        env = self._env | (dict(self._core.environment) if kind == "SCHEDULER" else {})
        env |= {f"AUTELLIX_{kind}_{key.upper()}": str(value) for key, value in merged.items()}
        argv = [sys.executable, "-m", self._modules[kind]]
        service = Service(name, argv, env, self.directory / f"{name}.log")
        self.services[name] = service
        return service

    def start_scheduler(self) -> Service:
        """Starts the scheduler; returns at once."""
        return self._spawn("scheduler", "SCHEDULER", {"port": self.scheduler_port})

    def restart_scheduler(self, **settings: object) -> None:
        """Stops the scheduler and starts it with other settings besides its own; waits until all are back."""
        self.services["scheduler"].stop()
        own = self._settings["SCHEDULER"]
        self._settings["SCHEDULER"] = own | settings
        self.start_scheduler()
        self._settings["SCHEDULER"] = own
        self.wait_ready()

    def start_executor(self, index: int) -> Service:
        """Starts executor number `index`; returns at once."""
        health_port = free_port()
        self._executor_health.append(health_port)
        settings = {
            "scheduler": self.scheduler_target,
            "model": self._model,
            "served_model_name": "test",
            "executor_id": f"executor-{index}",
            "health_port": health_port,
        }
        return self._spawn(f"executor-{index}", "EXECUTOR", settings)

    def start_frontend(self) -> Service:
        """Starts the frontend; returns at once."""
        settings = {
            "scheduler": self.scheduler_target,
            "model": self._model,
            "served_model_name": "test",
            "port": self.http_port,
            "grpc_port": self.grpc_port,
        }
        return self._spawn("frontend", "FRONTEND", settings)

    def wait_ready(self) -> None:
        """Waits until every service says SERVING."""
        targets = {"scheduler": self.scheduler_target}
        for index in range(self._executor_count):
            targets[f"executor-{index}"] = f"127.0.0.1:{self._executor_health[index]}"
        if self._with_frontend:
            targets["frontend"] = self.grpc_target
        for name, target in targets.items():
            wait_until(f"{name} ready", partial(self._ready, name, target))

    def _ready(self, name: str, target: str) -> bool:
        self.services[name].check_alive()
        return is_serving(target)


def _stop_rank(name: str) -> int:
    return ("frontend", "executor", "scheduler").index(name.split("-")[0])
