"""Brings up vLLM's Executor without vLLM's engine core and its scheduler.

The order is that of vLLM's engine core (vllm/v1/engine/core.py, `_initialize_kv_caches`): workers and
weights, KV specs, layout, available memory, KV configuration, KV tensors, warm-up. What a plan cannot express
is refused here, before the memory is taken. The host tier is taken last, in blocks like the device's.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
import vllm
from vllm.config import StructuredOutputsConfig, VllmConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.platforms import current_platform
from vllm.v1.attention.backends.utils import resolve_kv_cache_layout
from vllm.v1.core.kv_cache_utils import (
    generate_scheduler_kv_cache_config,
    get_kv_cache_configs,
    resolve_cache_hit_alignment_tokens,
    resolve_kv_cache_block_sizes,
    update_kv_cache_capacity,
)
from vllm.v1.core.single_type_kv_cache_manager import register_all_kvcache_specs
from vllm.v1.executor import Executor
from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheSpec

from executor_svc.host_memory import free_bytes, host_kv_bytes
from executor_svc.params_codec import PARAMS_FORMAT
from executor_svc.runner import RunnerInfo
from executor_svc.vllm_runner.config import ModelMissing, UnsupportedModel, VllmRunnerConfig, to_engine_args
from svc_runtime.fingerprint import model_fingerprint, tokenizer_fingerprint

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """A loaded model ready for steps."""

    executor: Executor
    vllm_config: VllmConfig
    kv_cache_config: KVCacheConfig
    block_size: int
    block_bytes: int
    """Of one block over all layers and ranks."""
    host_blocks: int

    @property
    def num_blocks(self) -> int:
        """Device blocks, the null block included."""
        return self.kv_cache_config.num_blocks

    @property
    def uses_v2(self) -> bool:
        """Whether vLLM chose model runner V2."""
        return self.vllm_config.use_v2_model_runner


def start_engine(config: VllmRunnerConfig) -> Engine:
    """Loads the model and allocates its KV cache.

    Raises:
        ModelMissing: the model directory does not exist.
        UnsupportedModel: model or settings need what plans cannot express.
        StartupError: the host tier does not fit into the memory that is left.
    """
    _require_directory(config.model)
    vllm_config = load_vllm_config(config)
    _refuse_config(vllm_config)
    executor = Executor.get_class(vllm_config)(vllm_config)
    try:
        return _with_kv_cache(executor, vllm_config, config)
    except BaseException:
        executor.shutdown()
        raise


def describe(engine: Engine, config: VllmRunnerConfig) -> RunnerInfo:
    """What registration tells the scheduler, as vLLM resolved it on this machine."""
    model = engine.vllm_config.model_config
    scheduler = engine.vllm_config.scheduler_config
    version = "V2" if engine.uses_v2 else "V1"
    directory = _model_directory(model.model, model.revision)
    return RunnerInfo(
        model=config.served_model_name or config.model,
        model_fingerprint=model_fingerprint(directory),
        tokenizer_fingerprint=tokenizer_fingerprint(directory),
        runner=f"vllm {vllm.__version__} model runner {version} ({current_platform.device_type})",
        simulated=False,
        block_size=engine.block_size,
        num_blocks=engine.num_blocks,
        host_blocks=engine.host_blocks,
        block_bytes=engine.block_bytes,
        max_num_seqs=scheduler.max_num_seqs,
        max_num_batched_tokens=scheduler.max_num_batched_tokens,
        max_model_len=model.max_model_len,
        vocab_size=model.get_vocab_size(),
        max_plans_in_flight=config.max_plans_in_flight,
        params_formats=(PARAMS_FORMAT,),
        structured_output_backend=engine.vllm_config.structured_outputs_config.backend,
        reasoning_parser=engine.vllm_config.structured_outputs_config.reasoning_parser,
        world_size=engine.vllm_config.parallel_config.world_size,
        device=current_platform.get_device_name() or current_platform.device_type,
        prefix_caching=bool(engine.vllm_config.cache_config.enable_prefix_caching),
        dtype=str(model.dtype).removeprefix("torch."),
    )


def load_vllm_config(config: VllmRunnerConfig) -> VllmConfig:
    """Settles all that vLLM settles before it loads anything.

    Raises: ValueError when vLLM refuses the settings.
    """
    args = to_engine_args(config)
    vllm_config = _create_config(args)
    if vllm_config.scheduler_config.async_scheduling and not vllm_config.use_v2_model_runner:
        # V1 under async scheduling keeps the tokens of the batch before by row, also across a plan without
        # rows: it is driven synchronously. V2 has no such state.
        vllm_config = _create_config(args | {"async_scheduling": False})
    return vllm_config


def _create_config(args: dict[str, Any]) -> VllmConfig:
    # EngineArgs takes this one as a map, and then fails to add the reasoning parser to it.
    structured = StructuredOutputsConfig(**args["structured_outputs_config"])
    return EngineArgs(**args | {"structured_outputs_config": structured}).create_engine_config()


def _refuse_config(vllm_config: VllmConfig) -> None:
    model = vllm_config.model_config
    refusals = {
        "multimodal models are not served: plans carry tokens only": model.is_multimodal_model,
        "pooling models are not served: they generate no tokens": model.runner_type == "pooling",
        "encoder-decoder models are not served": model.is_encoder_decoder,
        "diffusion language models are not served": model.is_diffusion,
        "models with M-RoPE positions are not served": model.uses_mrope,
        "speculative decoding is not served: a plan row samples one token": (
            vllm_config.speculative_config is not None
        ),
        "pipeline parallelism is not served: plans do not stagger decode steps": (
            vllm_config.parallel_config.pipeline_parallel_size > 1
        ),
        "structured_output_backend must name one backend, not 'auto'": (
            vllm_config.structured_outputs_config.backend == "auto"
        ),
    }
    _raise_first(refusals)


def _refuse_kv_cache(kv_cache_config: KVCacheConfig, specs: list[dict[str, KVCacheSpec]]) -> None:
    groups = len(kv_cache_config.kv_cache_groups)
    layers = [spec for rank in specs for spec in rank.values()]
    refusals = {
        f"the model needs {groups} KV cache groups, plans carry 1": groups != 1,
        "the model needs its KV blocks zeroed before use": kv_cache_config.needs_kv_cache_zeroing,
        "the model attends to later tokens: its prefill cannot be cut": any(
            getattr(spec, "non_causal", False) for spec in layers
        ),
    }
    _raise_first(refusals)


def _raise_first(refusals: dict[str, bool]) -> None:
    for reason, refused in refusals.items():
        if refused:
            raise UnsupportedModel(reason)


def _with_kv_cache(executor: Executor, vllm_config: VllmConfig, config: VllmRunnerConfig) -> Engine:
    register_all_kvcache_specs(vllm_config)
    specs = executor.get_kv_cache_specs()
    layers = [spec for rank in specs for spec in rank.values()]
    layout = resolve_kv_cache_layout(vllm_config, executor.get_supported_kv_cache_layouts(), layers)
    executor.set_kv_cache_layout(layout.name)
    rank_configs, kv_cache_config = _kv_cache_configs(executor, vllm_config, specs)
    _refuse_kv_cache(kv_cache_config, specs)
    block_size = _publish_block_sizes(vllm_config, rank_configs, kv_cache_config)
    executor.initialize_from_config(rank_configs)
    executor.compile_or_warm_up_model()
    block_bytes = sum(spec.page_size_bytes for spec in layers)
    return Engine(
        executor=executor,
        vllm_config=vllm_config,
        kv_cache_config=kv_cache_config,
        block_size=block_size,
        block_bytes=block_bytes,
        host_blocks=_open_host_tier(executor, config, block_bytes),
    )


def _open_host_tier(executor: Executor, config: VllmRunnerConfig, block_bytes: int) -> int:
    """Has every rank take memory for host blocks; returns their number.

    Raises: StartupError when less is free than was asked for; UnsupportedModel when it is not to be had.
    """
    host_blocks = config.host_blocks or host_kv_bytes(config.host_kv_gib, free_bytes()) // block_bytes
    gib = round(host_blocks * block_bytes / 2**30, 3)
    if host_blocks:
        try:
            executor.collective_rpc("autellix_open_host_pool", args=(host_blocks,))
        except (MemoryError, RuntimeError, ValueError) as error:
            raise UnsupportedModel(
                f"there can be no host tier of {gib} GiB ({error}); --host-kv-gib 0 serves without"
            ) from error
    log.info("host_tier", host_blocks=host_blocks, gib=gib, block_bytes=block_bytes)
    return host_blocks


def _kv_cache_configs(
    executor: Executor, vllm_config: VllmConfig, specs: list[dict[str, KVCacheSpec]]
) -> tuple[list[KVCacheConfig], KVCacheConfig]:
    """One configuration a rank, and the one that block ids are counted in."""
    max_model_len = vllm_config.model_config.max_model_len
    rank_configs = get_kv_cache_configs(vllm_config, specs, executor.determine_available_memory())
    for rank_config in rank_configs:
        rank_config.kv_cache_layout = vllm_config.cache_config.kv_cache_layout
    if vllm_config.model_config.max_model_len != max_model_len:
        executor.collective_rpc("update_max_model_len", args=(vllm_config.model_config.max_model_len,))
    return rank_configs, generate_scheduler_kv_cache_config(rank_configs)


def _publish_block_sizes(
    vllm_config: VllmConfig, rank_configs: list[KVCacheConfig], kv_cache_config: KVCacheConfig
) -> int:
    """Writes the resolved sizes where vLLM's workers look for them; returns tokens in a block."""
    cache = vllm_config.cache_config
    cache.num_gpu_blocks = kv_cache_config.num_blocks
    cache.block_size = kv_cache_config.kv_cache_groups[0].kv_cache_spec.block_size
    update_kv_cache_capacity(vllm_config, kv_cache_config)
    vllm_config.validate_block_size()
    block_size, hash_block_size = resolve_kv_cache_block_sizes(kv_cache_config, vllm_config)
    alignment = resolve_cache_hit_alignment_tokens(kv_cache_config, vllm_config, block_size, hash_block_size)
    for each in (*rank_configs, kv_cache_config):
        each.hash_block_size = hash_block_size
        each.cache_hit_alignment_tokens = alignment
    return block_size


def _require_directory(model: str) -> None:
    looks_local = model.startswith(("/", "./", "../", "~"))
    if looks_local and not Path(model).expanduser().is_dir():
        raise ModelMissing(f"model directory {model} does not exist")


def _model_directory(model: str, revision: str | None) -> Path:
    """Where the files of a loaded model lie: the directory itself or its snapshot in the hub's cache."""
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(model, revision=revision, local_files_only=True))
