"""Fingerprints of a model directory: do two processes hold the same model?

Executors of one model must agree on weights, tokenizer and configuration; a frontend, which has no weights,
must agree on tokenizer and configuration. Both compare short strings computed here, from file names and
content alone: no clock, no path, no order of the directory enters.

Weights up to `FULL_HASH_LIMIT_BYTES` are hashed whole (about 0.3 s per 100 MB). Beyond that, reading
everything would delay each start by minutes, so of each weights file only the name, the size, the safetensors
header (names, shapes, types and offsets of all tensors) or else the first bytes, and the last bytes are
hashed. The string says which it was: `sha256:...` or `sha256-sampled:...`. A sampled fingerprint tells models
apart, not two fine-tunings that differ only in the middle of a file.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

FULL_HASH_LIMIT_BYTES = 2 * 1024**3
SAMPLE_BYTES = 1024**2
CHUNK_BYTES = 4 * 1024**2

TOKENIZER_AND_CONFIG_FILES = frozenset(
    {
        "added_tokens.json",
        "chat_template.jinja",
        "chat_template.json",
        "config.json",
        "generation_config.json",
        "merges.txt",
        "special_tokens_map.json",
        "spiece.model",
        "tekken.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "vocab.json",
        "vocab.txt",
    }
)
WEIGHTS_SUFFIXES = frozenset({".safetensors", ".bin", ".pt", ".pth", ".gguf"})


def tokenizer_fingerprint(directory: str | Path) -> str:
    """Hash over tokenizer and configuration files.

    Args:
        directory: a model directory in the Hugging Face layout; weights may be absent.

    Raises:
        FileNotFoundError: when none of the known files is there.
    """
    files = sorted(f for f in Path(directory).iterdir() if f.name in TOKENIZER_AND_CONFIG_FILES)
    if not files:
        raise FileNotFoundError(f"no tokenizer or configuration file in {directory}")
    return f"sha256:{_digest(files, sampled=False)}"


def model_fingerprint(directory: str | Path) -> str:
    """Hash over weights, tokenizer and configuration files; see the module for what "sampled" means.

    Raises:
        FileNotFoundError: when the directory holds no tokenizer or configuration file.
    """
    weights = sorted(f for f in Path(directory).iterdir() if f.suffix in WEIGHTS_SUFFIXES)
    sampled = sum(f.stat().st_size for f in weights) > FULL_HASH_LIMIT_BYTES
    outer = hashlib.sha256()
    outer.update(tokenizer_fingerprint(directory).encode())
    outer.update(_digest(weights, sampled=sampled).encode())
    return f"{'sha256-sampled' if sampled else 'sha256'}:{outer.hexdigest()}"


def _digest(files: Iterable[Path], *, sampled: bool) -> str:
    total = hashlib.sha256()
    for file in files:
        total.update(f"{file.name}\0{file.stat().st_size}\0".encode())
        total.update(_sample(file) if sampled else _content(file))
    return total.hexdigest()


def _content(file: Path) -> bytes:
    content = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            content.update(chunk)
    return content.digest()


def _sample(file: Path) -> bytes:
    """Digest of the head (a safetensors header in full) and of the tail."""
    size_bytes = file.stat().st_size
    with file.open("rb") as stream:
        head = stream.read(8)
        header_bytes = int.from_bytes(head, "little")
        whole_header = file.suffix == ".safetensors" and header_bytes < size_bytes
        head += stream.read(header_bytes if whole_header else SAMPLE_BYTES)
        stream.seek(max(0, size_bytes - SAMPLE_BYTES))
        return hashlib.sha256(head + stream.read()).digest()
