"""The host tier takes what it is told, or a default that leaves most of the memory to others."""

from pathlib import Path

import pytest

from executor_svc.host_memory import free_bytes, host_kv_bytes
from executor_svc.runners import vllm_config
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
    with pytest.raises(
        StartupError, match=r"--host-kv-gib .*HOST_KV_GIB\) is 64, 22.5 GiB are free"
    ) as refused:
        host_kv_bytes(64, 45 * GIB // 2)
    assert refused.value.exit_code == ExitCode.USAGE


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
    monkeypatch.setattr("executor_svc.runners.free_bytes", lambda: 8 * GIB)
    assert vllm_config(settings()).host_kv_bytes == 2 * GIB
    assert vllm_config(settings("--host-kv-gib", "0")).host_kv_bytes == 0
    assert vllm_config(settings("--host-kv-gib", "0.25", "--host-blocks", "7")).host_blocks == 7
    monkeypatch.setenv("AUTELLIX_EXECUTOR_HOST_KV_GIB", "3")
    assert vllm_config(settings()).host_kv_bytes == 3 * GIB
