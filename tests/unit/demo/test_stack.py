"""What the stack starts, and what it says when a service ends."""

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo import stack as stack_module
from demo.models import LocalModel
from demo.process_runner import ProcessSpec
from demo.stack import Stack, StackFailed, StackOptions, StackPorts, service_specs
from executor_svc.settings import ExecutorSettings
from scheduler_svc.settings import SchedulerSettings
from scripts.compiled_core import CoreBuild
from svc_runtime.settings import load_settings

MODEL = LocalModel(path="/models/m", name="m", dtype="float32")
PORTS = StackPorts(http=18000, grpc=18001, scheduler=18002)


def flags(options: StackOptions, name: str) -> list[str]:
    """The flags of one service, without `python -m <module>`."""
    return list(next(spec for spec in service_specs(options) if spec.name == name).argv[3:])


def test_the_scheduler_starts_first_and_the_frontend_last() -> None:
    names = [spec.name for spec in service_specs(StackOptions(model=MODEL, executors=2))]
    assert names == ["scheduler", "executor-1", "executor-2", "frontend"]


def test_only_the_scheduler_is_pointed_at_the_compiled_core(monkeypatch: pytest.MonkeyPatch) -> None:
    build = CoreBuild("compiled", {"PYTHONPATH": "/copy"})
    monkeypatch.setattr(stack_module.compiled_core, "choose", lambda: build)
    environments = {spec.name: spec.environment for spec in service_specs(StackOptions(model=MODEL))}
    assert environments == {"scheduler": {"PYTHONPATH": "/copy"}, "executor-1": {}, "frontend": {}}


def test_the_scheduler_understands_its_flags() -> None:
    options = StackOptions(model=MODEL, policy="fcfs", ports=PORTS)
    settings = load_settings(SchedulerSettings, flags(options, "scheduler"))
    assert (settings.port, settings.policy, settings.drain_s) == (18002, "fcfs", 20)


def test_an_executor_understands_its_flags() -> None:
    options = StackOptions(model=MODEL, ports=PORTS, max_num_seqs=8, kv_cache_gib=1.0, drain_s=3)
    settings = load_settings(ExecutorSettings, flags(options, "executor-1"))
    assert (settings.scheduler, settings.model) == ("127.0.0.1:18002", "/models/m")
    assert settings.served_model_name == "m"
    assert (settings.dtype, settings.max_num_seqs, settings.kv_cache_gib) == ("float32", 8, 1.0)
    assert settings.drain_s == 3


def test_an_executor_does_not_compile_where_that_is_unwanted_or_impossible(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def eager(options: StackOptions) -> bool:
        return bool(load_settings(ExecutorSettings, flags(options, "executor-1")).enforce_eager)

    monkeypatch.setattr(stack_module, "_has_compiler", lambda: True)
    assert eager(StackOptions(model=MODEL)) is False
    assert eager(StackOptions(model=MODEL, eager=True)) is True
    monkeypatch.setattr(stack_module, "_has_compiler", lambda: False)
    assert eager(StackOptions(model=MODEL)) is True


def test_limits_that_were_not_chosen_are_left_to_the_executor() -> None:
    chosen = flags(StackOptions(model=MODEL), "executor-1")
    assert "--max-num-seqs" not in chosen
    assert "--kv-cache-gib" not in chosen


def test_no_secret_is_an_argument(tmp_path: Path) -> None:
    stack = Stack(StackOptions(model=MODEL), tmp_path, lambda line: None)
    arguments = [argument for spec in service_specs(stack.options) for argument in spec.argv]
    assert stack._token not in arguments
    assert "--peer-token" not in arguments


@pytest.mark.parametrize("given", ["", "mine"])
def test_the_peer_token_is_random_or_the_user_s_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    """With a token of their own, users can call the scheduler of `make up`, e.g. SetPolicy."""
    monkeypatch.setenv("AUTELLIX_PEER_TOKEN", given)
    started: list[dict[str, str]] = []
    for _ in range(2):
        stack = Stack(StackOptions(model=MODEL), tmp_path, lambda line: None)
        monkeypatch.setattr(stack.runner, "start", lambda _, environment: started.append(environment))
        monkeypatch.setattr(stack, "_started", lambda: asyncio.sleep(0))
        asyncio.run(stack.start())
    tokens = [environment["AUTELLIX_SCHEDULER_PEER_TOKEN"] for environment in started]
    assert len(set(tokens)) == (1 if given else 2)
    assert tokens[0] == given or len(tokens[0]) >= 32


def test_the_ports_are_named_as_make_names_them() -> None:
    ports = StackPorts(metrics=None).by_variable()
    assert ports == {"PORT": 8000, "GRPC_PORT": 50050, "SCHEDULER_PORT": 50051}


@pytest.fixture
def stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stack]:
    """A stack whose only service fails after a moment."""
    code = "exec('import time\\ntime.sleep(1.3)\\nprint(\\'no such model\\')\\nraise SystemExit(4)')"
    doomed = ProcessSpec(name="executor-1", argv=(sys.executable, "-c", code))
    monkeypatch.setattr(stack_module, "service_specs", lambda options: [doomed])
    stack = Stack(StackOptions(model=MODEL, ports=PORTS), tmp_path / "home", lambda line: None)
    yield stack
    stack.stop()


async def test_a_service_that_ends_while_starting_is_told_with_its_last_lines(stack: Stack) -> None:
    with pytest.raises(StackFailed, match=r"(?s)executor-1 ended with exit code 4.*no such model"):
        await stack.start()
