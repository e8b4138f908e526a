"""The scheduler as a process: what it weighs and imports, how it starts, refuses to start, and stops."""

import asyncio
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from protos.autellix.scheduler.v1 import scheduler_pb2 as pb
from scheduler_svc.settings import SchedulerSettings, is_loopback
from scheduler_svc.shell.core_kind import core_kind
from svc_runtime.grpc_aio import open_channel
from svc_runtime.healthcheck import check
from svc_runtime.lifecycle import ExitCode
from svc_runtime.settings import load_settings
from tests.unit.scheduler_shell.conftest import Dial, Start
from tests.unit.scheduler_shell.fake_executor import FakeExecutor
from tests.unit.scheduler_shell.fake_frontend import FakeFrontend
from tests.unit.scheduler_shell.scripted_core import ScriptedCore
from tests.unit.scheduler_shell.waiting import until

ROOT = Path(__file__).parents[3]
LIMIT_S = 20
RSS_MAX_KIB = 80 * 1024
TOO_HEAVY = {"vllm", "torch", "transformers", "executor_svc", "frontend_svc"}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def run(*flags: str) -> subprocess.CompletedProcess[str]:
    """Runs a scheduler that is expected to end by itself."""
    return subprocess.run(
        [sys.executable, "-m", "scheduler_svc", *flags],
        cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S, check=False,
    )  # fmt: skip


def scrape(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        return str(answer.read().decode())


class Process:
    """A scheduler process on free ports."""

    def __init__(self, *flags: str) -> None:
        self.port, self.metrics_port = free_port(), free_port()
        ports = ["--port", str(self.port), "--metrics-port", str(self.metrics_port)]
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "scheduler_svc", *ports, "--log-format", "json", *flags],
            cwd=ROOT, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def stop(self) -> tuple[int, str]:
        """SIGTERM; returns exit code and log."""
        self.popen.send_signal(signal.SIGTERM)
        _, log = self.popen.communicate(timeout=LIMIT_S)
        return self.popen.returncode, log

    def resident_kib(self) -> int:
        status = Path(f"/proc/{self.popen.pid}/status").read_text()
        (line,) = (line for line in status.splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1])

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"


@pytest.fixture
def process() -> Iterator[Process]:
    running = Process()
    yield running
    if running.popen.poll() is None:
        running.popen.kill()
    running.popen.communicate(timeout=LIMIT_S)


async def serving(process: Process) -> None:
    await until(lambda: check(process.target, "autellix.scheduler.v1.SchedulerService") == "SERVING")


def test_it_imports_nothing_heavy() -> None:
    program = (
        "import sys, scheduler_svc.__main__;print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S, check=True
    )
    assert not TOO_HEAVY & set(done.stdout.split())
    assert "scheduler_svc" in done.stdout.split()


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
async def test_it_weighs_little_serves_metrics_and_stops_in_good_order(process: Process) -> None:
    await serving(process)
    assert process.resident_kib() < RSS_MAX_KIB
    assert 'autellix_scheduler_live_calls{level="0"} 0.0' in await asyncio.to_thread(
        scrape, process.metrics_port
    )
    build = f'autellix_scheduler_build_info{{core="{core_kind()}"}} 1.0'
    assert build in scrape(process.metrics_port)
    collected_at_start = 'autellix_scheduler_gc_pauses_total{generation="2"} 1.0'
    await until(lambda: collected_at_start in scrape(process.metrics_port), "the heap is frozen")
    code, log = process.stop()
    assert code == ExitCode.OK
    assert '"event": "scheduler_ready"' in log
    assert f'"core": "{core_kind()}"' in log
    assert '"event": "scheduler_draining"' in log


async def test_sigterm_lets_a_live_call_finish(process: Process) -> None:
    await serving(process)
    async with (
        open_channel(process.target) as one,
        open_channel(process.target) as other,
        FakeExecutor(one, obedient=False) as executor,
        FakeFrontend(other) as frontend,
    ):
        await frontend.open_program()
        await frontend.submit(1, max_tokens=1)
        await until(lambda: executor.plans)
        process.popen.send_signal(signal.SIGTERM)
        await until(lambda: check(process.target) == "NOT_SERVING")
        await frontend.submit(2)
        await until(lambda: 2 in frontend.refused)
        await executor.answer()
        await frontend.finish(1)
        assert await frontend.ended() is grpc.StatusCode.OK
    assert frontend.finished[1].reason == pb.FINISH_REASON_LENGTH
    assert frontend.refused[2].reason == "SHUTTING_DOWN"
    await until(lambda: process.popen.poll() is not None)
    assert process.popen.returncode == ExitCode.OK


def test_a_taken_port_ends_it_with_a_clear_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run("--port", str(port), "--metrics-port", "0")
    assert done.returncode == ExitCode.PORT_TAKEN
    assert f"127.0.0.1:{port}" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_taken_metrics_port_ends_it_too() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = run("--port", "0", "--metrics-port", str(taken.getsockname()[1]))
    assert done.returncode == ExitCode.PORT_TAKEN
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("flags", "environment", "said"),
    [
        (["--port", "70000"], {}, "--port (AUTELLIX_SCHEDULER_PORT)"),
        (["--policy", "magic"], {}, "plas"),
        (["--host", "0.0.0.0"], {}, "peer_token is empty"),
        ([], {"AUTELLIX_SCHEDULER_LEVELS": "0"}, "AUTELLIX_SCHEDULER_LEVELS"),
        ([], {"AUTELLIX_SCHEDULER_NONSENSE": "1"}, "names no setting"),
    ],
)
def test_a_bad_setting_is_named(
    flags: list[str],
    environment: dict[str, str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as exit_:
        load_settings(SchedulerSettings, flags)
    assert exit_.value.code == ExitCode.USAGE
    assert said in capsys.readouterr().err


def test_help_names_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        load_settings(SchedulerSettings, ["--help"])
    assert exit_.value.code == ExitCode.OK
    shown = capsys.readouterr().out
    for name in SchedulerSettings.model_fields:
        assert f"--{name.replace('_', '-')} " in shown


def test_settings_reach_the_core() -> None:
    settings = SchedulerSettings(policy="fcfs", tie="call", levels=3, starvation_beta=0, program_idle_s=5)
    config = settings.core_config()
    assert (config.policy, config.tie.value, config.levels) == ("fcfs", "call", 3)
    assert (config.starvation_beta, config.idle_timeout_s) == (None, 5)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("localhost", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("10.0.0.1", False),
        ("scheduler", False),
    ],
)
def test_loopback_is_recognised(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


async def test_live_calls_are_shown_by_level(start: Start) -> None:
    core = ScriptedCore()
    core.live_calls = 7
    server = await start(metrics_port=free_port(), core=core)
    text = await asyncio.to_thread(scrape, server.metrics_port)
    assert 'autellix_scheduler_live_calls{level="0"} 7.0' in text
    assert 'autellix_scheduler_live_calls{level="1"} 0.0' in text


async def test_metrics_tell_what_happened(start: Start, dial: Dial) -> None:
    server = await start(metrics_port=free_port())
    async with FakeExecutor(dial(server)), FakeFrontend(dial(server)) as frontend:
        await frontend.open_program()
        await frontend.submit(1)
        await frontend.finish(1)
        await frontend.submit(2, max_tokens=0)
        await until(lambda: frontend.refused)
    text = await asyncio.to_thread(scrape, server.metrics_port)
    assert 'autellix_scheduler_calls_ended_total{model="test-model",reason="length"} 1.0' in text
    assert 'autellix_scheduler_calls_refused_total{reason="PARAMETER_OUT_OF_RANGE"} 1.0' in text
    assert 'autellix_scheduler_step_seconds_count{model="test-model"}' in text
    assert "autellix_scheduler_plan_seconds_bucket" in text
    assert "autellix_scheduler_tokens_total" in text
