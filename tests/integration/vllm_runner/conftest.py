"""One small runner for all tests here: vLLM cannot be brought up twice in a process."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from executor_svc.runner import Runner
from executor_svc.vllm_runner import VllmRunnerConfig, make_runner
from tests.integration.vllm_runner.toy_planner import BLOCK_SIZE, HOST_BLOCKS

# These run in this process and have warnings of their own; ours stay errors.
OTHERS = ("torch", "vllm", "xgrammar")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in Path(item.path).parents:
            for module in OTHERS:
                item.add_marker(pytest.mark.filterwarnings(f"ignore:::{module}"))


@pytest.fixture(scope="session")
def loaded_runner(tiny_model: Path) -> Iterator[Runner]:
    """A runner with the tiny float32 model."""
    # Spinning OpenMP threads starve each other where tests share the cores.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    runner = make_runner(
        VllmRunnerConfig(
            model=str(tiny_model),
            served_model_name="tiny",
            dtype="float32",
            max_model_len=1024,
            max_num_seqs=64,
            max_num_batched_tokens=2048,
            block_size=BLOCK_SIZE,
            num_gpu_blocks_override=512,
            kv_cache_gib=0.5,
            host_blocks=HOST_BLOCKS,
            enforce_eager=True,
        )
    )
    yield runner
    runner.close()


@pytest.fixture
def runner(loaded_runner: Runner) -> Runner:
    """The runner, empty."""
    loaded_runner.reset()
    return loaded_runner
