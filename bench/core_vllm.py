"""vLLM's side of the core bench: `Scheduler.schedule` and `update_from_output` under the same load. A worker:
see `bench.core_worker`.

Only those two calls are timed: vLLM's engine encodes and decodes besides, as ours does. The scheduler is
vLLM's own, with prefix caching and with the same limits, block size and prompts; results are put together
outside of the times.
"""

import gc
import os
import tempfile
from collections.abc import Callable
from time import perf_counter_ns
from typing import Any

from bench.core_load import (
    BLOCK_SIZE,
    MAX_MODEL_LEN,
    TOKENS_PER_STEP_MAX,
    Load,
    prompt,
)
from bench.core_worker import Samples, serve

WARM_UP_STEPS = 60
SAMPLED_TOKEN = 7
LAYERS = 32


class Side:
    """vLLM's scheduler under one load."""

    def __init__(self, load: Load, scheduler: Any, make_request: Callable[[int, int], Any]) -> None:
        """
        Args:
            make_request: (number, max_tokens) -> vLLM's request.
        """
        self._load = load
        self._scheduler = scheduler
        self._make_request = make_request
        self._max_tokens = load.max_tokens()
        self._submitted = 0
        for _ in range(load.rows + load.waiting):
            self._submit()

    def _submit(self) -> None:
        self._scheduler.add_request(self._make_request(self._submitted, next(self._max_tokens)))
        self._submitted += 1

    def measure(self, steps: int) -> Samples:
        """Microseconds of both calls at each of `steps` steps."""
        schedule, update = [], []
        for _ in range(steps):
            started = perf_counter_ns()
            planned = self._scheduler.schedule()
            scheduled = perf_counter_ns()
            output = self._execute(planned)
            updating = perf_counter_ns()
            outputs = self._scheduler.update_from_output(planned, output)
            updated = perf_counter_ns()
            schedule.append((scheduled - started) / 1e3)
            update.append((updated - updating) / 1e3)
            ended = sum(row.finish_reason is not None for part in outputs.values() for row in part.outputs)
            for _ in range(ended):
                self._submit()
        total = [first + second for first, second in zip(schedule, update, strict=True)]
        return {"schedule": schedule, "update": update, "total": total}

    def _execute(self, planned: Any) -> Any:
        from vllm.v1.outputs import ModelRunnerOutput

        ids = list(planned.num_scheduled_tokens)
        assert len(ids) >= self._load.rows - self._load.churn_rows, "the batch is not full"
        requests = self._scheduler.requests
        tokens = [
            [SAMPLED_TOKEN] if requests[name].num_computed_tokens >= requests[name].num_tokens else []
            for name in ids
        ]
        return ModelRunnerOutput(ids, {name: row for row, name in enumerate(ids)}, tokens)


def _configuration(load: Load, model: str) -> Any:
    from vllm.engine.arg_utils import EngineArgs

    arguments = EngineArgs(
        model=model,
        max_model_len=MAX_MODEL_LEN,
        max_num_seqs=load.rows,
        max_num_batched_tokens=TOKENS_PER_STEP_MAX,
        block_size=BLOCK_SIZE,
        enforce_eager=True,
        dtype="float32",
        disable_log_stats=True,
    )
    config = arguments.create_engine_config()
    config.cache_config.num_gpu_blocks = load.blocks
    config.cache_config.block_size = BLOCK_SIZE
    return config


def _scheduler(config: Any, blocks: int) -> Any:
    import torch
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
    from vllm.v1.structured_output import StructuredOutputManager

    attention = FullAttentionSpec(block_size=BLOCK_SIZE, num_kv_heads=8, head_size=128, dtype=torch.bfloat16)
    layers = [f"layer-{index}" for index in range(LAYERS)]
    kv_cache = KVCacheConfig(
        num_blocks=blocks,
        kv_cache_tensors=[],
        kv_cache_groups=[KVCacheGroupSpec(layers, attention)],
    )
    return Scheduler(
        vllm_config=config,
        kv_cache_config=kv_cache,
        structured_output_manager=StructuredOutputManager(config),
        block_size=BLOCK_SIZE,
        hash_block_size=BLOCK_SIZE,
        log_stats=False,
    )


def _request_maker(config: Any) -> Callable[[int, int], Any]:
    from vllm.sampling_params import SamplingParams
    from vllm.utils.hashing import get_hash_fn_by_name
    from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
    from vllm.v1.request import Request

    hash_function = get_hash_fn_by_name(config.cache_config.prefix_caching_hash_algo)
    init_none_hash(hash_function)
    hasher = get_request_block_hasher(BLOCK_SIZE, hash_function)

    def make(number: int, max_tokens: int) -> Request:
        sampling = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)
        return Request(f"call-{number}", prompt(number), sampling, None, block_hasher=hasher)

    return make


def set_up(load: Load) -> Callable[[int], Samples]:
    """Makes the scheduler, fills the batch and warms up; the garbage collector as vLLM's engine sets it."""
    os.environ |= {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    from demo.models import make_tiny

    with tempfile.TemporaryDirectory() as directory:
        config = _configuration(load, str(make_tiny(f"{directory}/tiny")))
        side = Side(load, _scheduler(config, load.blocks), _request_maker(config))
        side.measure(WARM_UP_STEPS)
    gc.collect()
    gc.freeze()
    return side.measure


if __name__ == "__main__":
    serve(set_up)
