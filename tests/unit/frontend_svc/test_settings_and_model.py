"""Settings, and the check that the executors serve the model whose tokenizer is here."""

import asyncio
from pathlib import Path

import pytest

from frontend_svc.model_check import check_model, wait_for_model
from frontend_svc.scheduler_link import SchedulerLink
from frontend_svc.settings import FrontendSettings, is_loopback
from protos.autellix.scheduler.v1 import scheduler_pb2 as pb
from svc_runtime.fingerprint import tokenizer_fingerprint
from svc_runtime.lifecycle import ExitCode, StartupError
from svc_runtime.settings import load_settings

FORMAT = "vllm-0.32.0/msgpack"


def settings(*flags: str) -> FrontendSettings:
    return load_settings(FrontendSettings, ["--model", "m", *flags])


def test_without_keys_only_loopback_is_listened_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert settings().host == "127.0.0.1"
    with pytest.raises(SystemExit) as caught:
        settings("--host", "0.0.0.0")
    assert caught.value.code == ExitCode.USAGE
    assert "--api-keys" in capsys.readouterr().err
    assert settings("--host", "0.0.0.0", "--api-keys", "ann:k").keys().required


def test_keys_come_from_both_settings_and_are_never_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "keys"
    file.write_text("bob:k2\n")
    both = settings("--api-keys", "ann:k1", "--api-keys-file", str(file))
    assert [both.keys().tenant_of(key) for key in ("k1", "k2")] == ["ann", "bob"]
    assert "k1" not in repr(both)
    with pytest.raises(SystemExit):
        settings("--api-keys", "sesame")
    assert "sesame" not in capsys.readouterr().err


def test_a_missing_key_file_is_said_at_the_start(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        settings("--api-keys-file", "/nowhere/keys")
    assert "--api-keys-file cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("localhost", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("10.0.0.1", False),
        ("h", False),
    ],
)
def test_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


@pytest.mark.parametrize(
    ("theirs", "flags", "named"),
    [
        (
            {"structured_output_backend": "xgrammar"},
            ["--structured-output-backend", "guidance"],
            "structured_output",
        ),
        ({"reasoning_parser": "qwen3"}, ["--reasoning-parser", "deepseek_r1"], "reasoning_parser"),
        ({"params_formats": ["vllm-9/msgpack"]}, [], "params_format"),
    ],
)
def test_a_difference_to_the_executors_is_refused_by_name(
    theirs: dict[str, object], flags: list[str], named: str
) -> None:
    with pytest.raises(StartupError, match=named) as caught:
        check_model(pb.ModelInfo(model="m", **theirs), settings(*flags), params_format=FORMAT)
    assert caught.value.exit_code == ExitCode.REFUSED


def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    ours = settings("--model", str(tmp_path))
    same = pb.ModelInfo(
        model="m", tokenizer_fingerprint=tokenizer_fingerprint(tmp_path), params_formats=[FORMAT]
    )
    check_model(same, ours, params_format=FORMAT)
    with pytest.raises(StartupError, match="tokenizer_fingerprint differs"):
        check_model(pb.ModelInfo(model="m", tokenizer_fingerprint="sha256:other"), ours, params_format=FORMAT)


def test_a_simulated_executor_has_no_tokenizer_to_differ(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    simulated = pb.ModelInfo(model="m", tokenizer_fingerprint="simulated:1234", simulated=True)
    check_model(simulated, settings("--model", str(tmp_path)), params_format=FORMAT)


def link() -> SchedulerLink:
    return SchedulerLink("127.0.0.1:1", listener=None, frontend_id="f")  # type: ignore[arg-type]


async def test_a_model_that_nobody_serves_is_said_after_the_time_limit() -> None:
    with pytest.raises(StartupError, match="no executor serves 'm'") as caught:
        await wait_for_model(link(), "m", timeout_s=0.0, stop=asyncio.Event())
    assert caught.value.exit_code == ExitCode.MODEL_MISSING


async def test_waiting_for_a_model_ends_when_told_to_stop() -> None:
    stop = asyncio.Event()
    stop.set()
    assert await wait_for_model(link(), "m", timeout_s=60, stop=stop) is None


async def test_a_model_that_appears_is_found() -> None:
    it = link()
    waiting = asyncio.create_task(wait_for_model(it, "m", timeout_s=60, stop=asyncio.Event()))
    await asyncio.sleep(0)
    await it._models_changed(pb.ModelsChanged(models=[pb.ModelInfo(model="m", block_size=32)]))
    async with asyncio.timeout(10):
        found = await waiting
    assert found is not None
    assert found.block_size == 32
