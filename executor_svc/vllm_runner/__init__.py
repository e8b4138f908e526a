"""The runner that executes plans on vLLM: the only place that imports vLLM's worker side.

Theory of operation: `calls` checks a plan against what is known of each call, `translate` says it in vLLM's
words for the model runner at hand, `runner` drives vLLM's Executor, `results` reads what it sampled.
`admission` keeps bad calls out, `grammars` follows structured output, `worker_extension` reaches into V1's
worker where a plan asks for what vLLM's scheduler never does, `startup` loads the model.

Importing this package does not import vllm; `make_runner` does, after it has set the environment.
"""

from executor_svc.runner import Runner
from executor_svc.vllm_runner.config import (
    ModelMissing,
    UnsupportedModel,
    VllmRunnerConfig,
    apply_environment,
)

__all__ = ["ModelMissing", "UnsupportedModel", "VllmRunnerConfig", "make_runner"]


def make_runner(config: VllmRunnerConfig) -> Runner:
    """Loads the model and returns its runner; takes seconds to minutes. Mutates the process environment.

    Raises:
        ModelMissing: the model directory does not exist.
        UnsupportedModel: model or settings need what plans cannot express.
    """
    apply_environment(config)
    from executor_svc.vllm_runner.runner import VllmRunner
    from executor_svc.vllm_runner.startup import describe, start_engine

    engine = start_engine(config)
    return VllmRunner(engine, describe(engine, config))
