"""The host tier takes what it is told, or a default that leaves most of the memory to others."""

from pathlib import Path

import pytest

from executor_svc.host_memory import free_bytes, host_kv_bytes, require_host_memory
from executor_svc.runners import make_vllm, vllm_config
from executor_svc.settings import ExecutorSettings
from svc_runtime.lifecycle import ExitCode, StartupError
from svc_runtime.settings import load_settings

GIB = 1 << 30
MEMINFO = "MemTotal:  24000000 kB\nMemFree:  1000000 kB\nMemAvailable:  20000000 kB\nHugePages_Total:  0\n"


@pytest.mark.parametrize(
    ("gib", "free", "chosen"),
    [(None, 64 * GIB, 4 * GIB), (None, 6 * GIB, 1.5 * GIB), (0, GIB, 0), (0.5, GIB, GIB / 2), (1, GIB, GIB)],
)
def test_chosen_bytes(gib: float | None, free: int, chosen: float) -> None:
    assert host_kv_bytes(gib, free) == chosen


def test_more_than_is_free_is_refused_by_name() -> None:
    said = r"--host-kv-gib .*HOST_KV_GIB\) is 64, 22.5 GiB are free: ask for less, or for 0"
    with pytest.raises(StartupError, match=said) as refused:
        host_kv_bytes(64, 45 * GIB // 2)
    assert refused.value.exit_code == ExitCode.USAGE


def test_it_is_refused_before_a_model_is_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr("executor_svc.runners.free_bytes", lambda: GIB)
    monkeypatch.setattr("executor_svc.runners.load_vllm", lambda _: pytest.fail("loaded"))
    with pytest.raises(StartupError, match=r"is 2, 1\.0 GiB are free"):
        make_vllm(settings("--model", str(tmp_path), "--host-kv-gib", "2"), devices=list)


@pytest.mark.parametrize("gib", [None, 0, 1])
def test_what_is_there_may_be_asked_for(gib: float | None) -> None:
    require_host_memory(gib, GIB)


def machine(tmp_path: Path, **control_group: str) -> tuple[Path, Path]:
    (tmp_path / "meminfo").write_text(MEMINFO)
    for name, text in control_group.items():
        (tmp_path / name.replace("_", ".")).write_text(text)
    return tmp_path / "meminfo", tmp_path


@pytest.mark.parametrize("control_group", [{}, {"memory_max": "max\n"}])
def test_free_memory_of_a_machine(tmp_path: Path, control_group: dict[str, str]) -> None:
    assert free_bytes(*machine(tmp_path, **control_group)) == 20_000_000 * 1024


@pytest.mark.parametrize(
    ("limit", "free"), [(8 * GIB, 5 * GIB + 4096), (GIB, 0), (99 * GIB, 20_000_000 * 1024)]
)
def test_free_memory_of_a_container(tmp_path: Path, limit: int, free: int) -> None:
    """What its page cache holds can be taken."""
    stat = "anon 99\ninactive_file 4096\nactive_file 7\n"
    files = machine(tmp_path, memory_max=f"{limit}\n", memory_current=f"{3 * GIB}\n", memory_stat=stat)
    assert free_bytes(*files) == free


def test_this_machine_has_memory() -> None:
    assert free_bytes() > 0


def settings(*flags: str) -> ExecutorSettings:
    return load_settings(ExecutorSettings, ["--model", "m", *flags])


def test_settings_reach_the_runner(monkeypatch: pytest.MonkeyPatch) -> None:
    assert vllm_config(settings()).host_kv_gib is None
    assert vllm_config(settings("--host-kv-gib", "0")).host_kv_gib == 0
    assert vllm_config(settings("--host-kv-gib", "0.25", "--host-blocks", "7")).host_blocks == 7
    monkeypatch.setenv("AUTELLIX_EXECUTOR_HOST_KV_GIB", "3")
    assert vllm_config(settings()).host_kv_gib == 3
