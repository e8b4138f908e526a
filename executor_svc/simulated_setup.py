"""Settings -> a simulated runner; a model directory lends what the settings leave open."""

import hashlib
import json
from pathlib import Path
from typing import Any

import structlog

from executor_svc.cost_model import step_cost
from executor_svc.settings import ExecutorSettings
from executor_svc.simulated_runner import SimulatedConfig, SimulatedRunner
from executor_svc.simulated_tokens import TokenRule
from svc_runtime.fingerprint import model_fingerprint, tokenizer_fingerprint
from svc_runtime.lifecycle import ExitCode, StartupError

log = structlog.get_logger("autellix.simulated_setup")

BLOCK_SIZE = 16
NUM_BLOCKS = 24576
"""48 GiB of LLaMA-3.1-8B KV: about what an 80 GB GPU has left beside the weights."""
MAX_MODEL_LEN = 131072
MAX_NUM_SEQS = 256
MAX_NUM_BATCHED_TOKENS = 2048
VOCAB_SIZE = 32000


def make_simulated(settings: ExecutorSettings) -> SimulatedRunner:
    """A runner without a model."""
    config = simulated_config(settings)
    log.warning("SIMULATED", detail="no model runs here: tokens are made up", cost=config.cost_name)
    return SimulatedRunner(config)


def simulated_config(settings: ExecutorSettings) -> SimulatedConfig:
    """What the settings say of a simulated device. A model directory lends what they leave open.

    Raises: StartupError when tokens cannot be made up as told.
    """
    directory = Path(settings.model)
    known = directory.is_dir()
    name_hash = hashlib.sha256(settings.model.encode()).hexdigest()
    model = _model_config(directory)
    return SimulatedConfig(
        model=settings.served_model_name or settings.model,
        model_fingerprint=model_fingerprint(directory) if known else f"simulated:{name_hash}",
        tokenizer_fingerprint=tokenizer_fingerprint(directory) if known else f"simulated:{name_hash}",
        cost_name=settings.simulated_cost,
        cost=step_cost(settings.simulated_cost, overhead_s=settings.simulated_overhead_ms / 1e3),
        tokens=_token_rule(settings, model),
        block_size=settings.block_size or BLOCK_SIZE,
        num_blocks=settings.num_gpu_blocks_override or NUM_BLOCKS,
        host_blocks=settings.host_blocks,
        max_num_seqs=settings.max_num_seqs or MAX_NUM_SEQS,
        max_num_batched_tokens=settings.max_num_batched_tokens or MAX_NUM_BATCHED_TOKENS,
        max_model_len=settings.max_model_len or model.get("max_position_embeddings", MAX_MODEL_LEN),
        max_plans_in_flight=settings.max_plans_in_flight,
        structured_output_backend=settings.structured_output_backend,
        reasoning_parser=settings.reasoning_parser,
    )


def _model_config(directory: Path) -> dict[str, Any]:
    """The model's config.json; empty when there is none."""
    file = directory / "config.json"
    config: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    return config


def _token_rule(settings: ExecutorSettings, model: dict[str, Any]) -> TokenRule:
    eos = model.get("eos_token_id")
    lent = eos[0] if isinstance(eos, list) else eos
    asked = settings.simulated_eos_token_id
    try:
        return TokenRule(
            vocab_size=settings.simulated_vocab_size or model.get("vocab_size", VOCAB_SIZE),
            first_token=settings.simulated_first_token,
            eos_token_id=lent if asked is None else asked,
            eos_every=settings.simulated_eos_every,
        )
    except ValueError as error:
        raise StartupError(f"simulated tokens: {error}", ExitCode.USAGE) from error
