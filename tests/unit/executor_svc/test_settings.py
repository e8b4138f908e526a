"""Settings become runner configurations; bad ones are refused with the name, the bound and the value."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from executor_svc.device_claim import Device
from executor_svc.runners import claim_gpus, make_runner, make_vllm, vllm_config
from executor_svc.settings import ExecutorSettings
from executor_svc.simulated_setup import simulated_config
from svc_runtime.fingerprint import model_fingerprint, tokenizer_fingerprint
from svc_runtime.lifecycle import ExitCode, StartupError
from svc_runtime.settings import load_settings


def settings(*flags: str) -> ExecutorSettings:
    """Settings of a simulated executor with more flags."""
    return load_settings(ExecutorSettings, ["--runner", "simulated", "--model", "m", *flags])


def test_executor_ids_differ_by_default() -> None:
    assert settings().executor_id != settings().executor_id


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--max-num-seqs", "0"], r"--max-num-seqs .*greater than or equal to 1, got '0'"),
        (["--runner", "magic"], r"--runner .*'vllm' or 'simulated'"),
        (["--simulated-cost", "b200"], r"--simulated-cost .*unknown cost model 'b200'"),
        (["--gpu-share", "1.5"], r"--gpu-share .*less than 1, got '1.5'"),
        (["--executor-id", "a b"], r"--executor-id .*pattern"),
    ],
)
def test_a_bad_value_is_refused(flags: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        settings(*flags)
    assert left.value.code == ExitCode.USAGE
    assert re.search(complaint, capsys.readouterr().err)


def test_a_model_is_required(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load_settings(ExecutorSettings, [])
    assert "--model (AUTELLIX_EXECUTOR_MODEL): required" in capsys.readouterr().err


def test_a_simulated_runner_is_as_large_as_told() -> None:
    told = settings(
        *(
            "--block-size",
            "32",
            "--num-gpu-blocks-override",
            "77",
            "--max-num-seqs",
            "8",
            "--host-blocks",
            "5",
        ),
        *("--max-num-batched-tokens", "512", "--max-model-len", "1024", "--max-plans-in-flight", "1"),
        *("--simulated-cost", "fixed:10ms", "--simulated-vocab-size", "99", "--served-model-name", "name"),
    )
    info = make_runner(told).info
    assert (info.block_size, info.num_blocks, info.max_num_seqs, info.host_blocks) == (32, 77, 8, 5)
    assert (info.max_num_batched_tokens, info.max_model_len, info.max_plans_in_flight) == (512, 1024, 1)
    assert (info.vocab_size, info.model, info.simulated) == (99, "name", True)
    assert "fixed:10ms" in info.runner


def test_a_model_directory_lends_what_is_left_open(tmp_path: Path) -> None:
    facts = {"vocab_size": 2048, "eos_token_id": [7, 8], "max_position_embeddings": 512}
    (tmp_path / "config.json").write_text(json.dumps(facts))
    (tmp_path / "tokenizer.json").write_text("{}")
    argv = ["--runner", "simulated", "--model", str(tmp_path)]
    config = simulated_config(load_settings(ExecutorSettings, argv))
    assert config.tokenizer_fingerprint == tokenizer_fingerprint(tmp_path)
    assert config.model_fingerprint == model_fingerprint(tmp_path)
    assert (config.tokens.vocab_size, config.tokens.eos_token_id, config.max_model_len) == (2048, 7, 512)
    told = simulated_config(load_settings(ExecutorSettings, [*argv, "--simulated-eos-token-id", "0"]))
    assert told.tokens.eos_token_id == 0


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--simulated-first-token", "40000"], "first_token is 40000, must be in 0..vocab_size - 2"),
        (["--simulated-eos-every", "5"], "eos_every is 5, but there is no eos_token_id"),
    ],
)
def test_tokens_that_cannot_be_made_up_are_refused(flags: list[str], complaint: str) -> None:
    with pytest.raises(StartupError, match=complaint) as refused:
        simulated_config(settings(*flags))
    assert refused.value.exit_code == ExitCode.USAGE


def test_simulated_executors_of_one_name_agree_on_fingerprints() -> None:
    assert simulated_config(settings()).model_fingerprint == simulated_config(settings()).model_fingerprint


def test_a_gpu_share_bounds_the_memory() -> None:
    assert vllm_config(settings("--gpu-share", "0.4")).gpu_memory_utilization == 0.4
    both = vllm_config(settings("--gpu-share", "0.4", "--gpu-memory-utilization", "0.3"))
    assert both.gpu_memory_utilization == 0.3
    assert vllm_config(settings()).gpu_memory_utilization is None


def test_claimed_gpus_hide_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    told = settings("--device-lock-dir", str(tmp_path), "--tensor-parallel-size", "2")
    claim = claim_gpus(told, [Device("0", "a"), Device("1", "b"), Device("2", "c")])
    assert claim is not None
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"
    claim.release()
    assert claim_gpus(told, []) is None


@pytest.mark.parametrize("directory", ["missing", "empty"])
def test_a_missing_model_is_found_before_vllm_is_imported(tmp_path: Path, directory: str) -> None:
    (tmp_path / "empty").mkdir()
    told = load_settings(ExecutorSettings, ["--model", str(tmp_path / directory)])
    with pytest.raises(
        StartupError, match=f"{directory} (has no config.json|does not exist).*pass --model"
    ) as missing:
        make_vllm(told, devices=lambda: pytest.fail("GPUs were asked for"))
    assert missing.value.exit_code == ExitCode.MODEL_MISSING


def test_the_process_says_what_it_takes_without_importing_vllm() -> None:
    script = (
        "import sys; from executor_svc import __main__, server;"
        "assert not {'vllm', 'torch'} & set(sys.modules), 'too heavy'"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=30)
