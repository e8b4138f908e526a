"""Settings of the vLLM runner: what becomes of them, without vllm."""

import os

import pytest

from executor_svc.vllm_runner.config import VllmRunnerConfig, apply_environment, to_engine_args

CONFIG = VllmRunnerConfig(model="some/model")


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    for name in ("VLLM_CPU_KVCACHE_SPACE", "OMP_NUM_THREADS", "HF_HUB_OFFLINE"):
        os.environ.pop(name, None)


def test_uni_executor_stays_in_the_process() -> None:
    apply_environment(CONFIG)
    assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert to_engine_args(CONFIG)["distributed_executor_backend"] == "uni"
    assert "distributed_executor_backend" not in to_engine_args(
        VllmRunnerConfig(model="m", tensor_parallel_size=2)
    )


def test_kv_memory_is_always_bounded_on_cpu() -> None:
    apply_environment(CONFIG)
    assert os.environ["VLLM_CPU_KVCACHE_SPACE"] == "4"
    half = VllmRunnerConfig(model="m", kv_cache_gib=0.5)
    apply_environment(half)
    assert "VLLM_CPU_KVCACHE_SPACE" not in os.environ, "it would win over the fraction"
    assert to_engine_args(half)["kv_cache_memory_bytes"] == 2**29


def test_what_is_not_chosen_is_left_to_vllm() -> None:
    assert not {"max_model_len", "max_num_seqs", "block_size", "kv_cache_memory_bytes"} & set(
        to_engine_args(CONFIG)
    )


def test_further_engine_args_win() -> None:
    config = VllmRunnerConfig(model="m", seed=1, engine_args={"seed": 2, "swap_space": 0})
    assert to_engine_args(config)["seed"] == 2
    assert to_engine_args(config)["swap_space"] == 0


def test_local_models_need_no_hub(tmp_path: os.PathLike[str]) -> None:
    apply_environment(CONFIG)
    assert "HF_HUB_OFFLINE" not in os.environ
    apply_environment(VllmRunnerConfig(model=str(tmp_path)))
    assert os.environ["HF_HUB_OFFLINE"] == "1"


def test_threads_are_the_users_choice_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("executor_svc.vllm_runner.config.version", lambda name: "0.32.0+cpu")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    apply_environment(CONFIG)
    assert os.environ["OMP_NUM_THREADS"] == "7"
    os.environ["OMP_NUM_THREADS"] = "3"
    apply_environment(CONFIG)
    assert os.environ["OMP_NUM_THREADS"] == "3"
    apply_environment(VllmRunnerConfig(model="m", cpu_threads=5))
    assert os.environ["OMP_NUM_THREADS"] == "5"


def test_gpu_builds_keep_vllms_choice_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("executor_svc.vllm_runner.config.version", lambda name: "0.32.0")
    apply_environment(CONFIG)
    assert "OMP_NUM_THREADS" not in os.environ
