"""Makes the runner that the settings ask for; vllm is imported only when vLLM's is made.

Runs on the step lane: GPUs are claimed and the environment is set before anything imports torch.
"""

import os
import weakref
from collections.abc import Callable
from pathlib import Path

import structlog
from pydantic import ValidationError

from executor_svc.device_claim import Device, DeviceClaim, claim_devices, visible_devices
from executor_svc.host_memory import free_bytes, require_host_memory
from executor_svc.runner import Runner
from executor_svc.settings import ExecutorSettings
from executor_svc.simulated_setup import make_simulated
from executor_svc.vllm_runner import ModelMissing, UnsupportedModel, VllmRunnerConfig
from executor_svc.vllm_runner import make_runner as load_vllm
from svc_runtime.lifecycle import ExitCode, StartupError

log = structlog.get_logger("autellix.runners")

CONFIG_FILES = ("config.json", "params.json")
"""A model directory has one of them."""


def make_runner(settings: ExecutorSettings) -> Runner:
    """The runner of `settings.runner`.

    Raises: StartupError when the model is missing or unsupported, or no GPU is free.
    """
    if settings.runner == "simulated":
        return make_simulated(settings)
    return make_vllm(settings)


def make_vllm(settings: ExecutorSettings, devices: Callable[[], list[Device]] = visible_devices) -> Runner:
    """vLLM's model runner on claimed GPUs, or on the CPU where there is none.

    Raises: StartupError.
    """
    _require_model(settings.model)
    require_host_memory(settings.host_kv_gib, free_bytes())
    config = vllm_config(settings)
    claim = claim_gpus(settings, devices())
    os.environ.setdefault("VLLM_CONFIGURE_LOGGING", "0")  # its log lines take the way of ours
    try:
        runner = load_vllm(config)
    except ModelMissing as error:
        raise _model_missing(str(error)) from error
    except OSError as error:  # transformers and the hub's client: no such id, no network, files missing
        raise _model_missing(f"model {settings.model} cannot be read: {_first_line(error)}") from error
    except ValueError as error:
        log.debug("vllm_refused", exc_info=True)
        raise StartupError(f"vLLM refuses these settings: {_problems(error)}", ExitCode.USAGE) from error
    except UnsupportedModel as error:
        raise StartupError(f"this model cannot be served: {error}", ExitCode.REFUSED) from error
    if claim is not None:
        weakref.finalize(runner, claim.release)  # keeps the locks for as long as the runner lives
    return runner


def _require_model(model: str) -> None:
    """Finds out before vllm is imported, which takes a while, that a local model is not there."""
    directory = Path(model).expanduser()
    if directory.is_dir():
        if not any((directory / name).is_file() for name in CONFIG_FILES):
            raise _model_missing(f"model directory {model} has no {' or '.join(CONFIG_FILES)}")
    elif model.startswith(("/", "./", "../", "~")):
        raise _model_missing(f"model directory {model} does not exist")


def _problems(error: ValueError) -> str:
    if isinstance(error, ValidationError):
        return "; ".join(item["msg"].removeprefix("Value error, ") for item in error.errors())
    return str(error)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _model_missing(problem: str) -> StartupError:
    return StartupError(
        f"{problem}: pass --model a directory in the Hugging Face layout, or an id that can be downloaded",
        ExitCode.MODEL_MISSING,
    )


def claim_gpus(settings: ExecutorSettings, devices: list[Device]) -> DeviceClaim | None:
    """Takes GPUs for this process and hides the others from it. None where there are no GPUs.

    Mutates os.environ. Raises: StartupError when too few are free.
    """
    if not devices:
        return None
    claim = claim_devices(
        devices,
        count=settings.tensor_parallel_size,
        share=settings.gpu_share,
        directory=settings.device_lock_dir,
        holder=settings.executor_id,
    )
    os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    os.environ["CUDA_VISIBLE_DEVICES"] = claim.visible_devices
    log.info("gpus_claimed", devices=claim.visible_devices, share=claim.share)
    return claim


def vllm_config(settings: ExecutorSettings) -> VllmRunnerConfig:
    """The runner's part of the settings."""
    return VllmRunnerConfig(
        model=settings.model,
        served_model_name=settings.served_model_name,
        dtype=settings.dtype,
        max_model_len=settings.max_model_len,
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=settings.max_num_batched_tokens,
        block_size=settings.block_size,
        num_gpu_blocks_override=settings.num_gpu_blocks_override,
        kv_cache_gib=settings.kv_cache_gib,
        gpu_memory_utilization=settings.gpu_memory_utilization or settings.gpu_share,
        tensor_parallel_size=settings.tensor_parallel_size,
        enforce_eager=settings.enforce_eager,
        load_format=settings.load_format,
        structured_output_backend=settings.structured_output_backend,
        reasoning_parser=settings.reasoning_parser,
        seed=settings.seed,
        host_kv_gib=settings.host_kv_gib,
        host_blocks=settings.host_blocks,
        max_plans_in_flight=settings.max_plans_in_flight,
    )
