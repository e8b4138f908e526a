"""Turns a Llama model in a GGUF file into a Hugging Face checkpoint directory.

Theory of operation. A GGUF file holds quantised tensors, the hyper-parameters and the tokenizer in one file.
The checkpoint holds the same three as `model.safetensors`, `config.json` and the `tokenizer*.json` files.
Tensors are converted one at a time (the safetensors header only needs shapes, which are known before any
tensor is read), so the peak of memory is one tensor in float32. llama.cpp stores the rows of the query and
key projections in another order than Hugging Face does (interleaved instead of split rotary halves); that is
undone here.

Only what SmolLM2 and its kin need is supported (architecture "llama", byte-level BPE); anything else raises
`UnsupportedGguf` before a file is written.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, ReaderTensor, dequantize
from numpy.typing import NDArray

BYTES_PER_BF16 = 2
CONTROL_TOKEN = 3
"""`tokenizer.ggml.token_type` of tokens that never come out of text."""

_LAYER_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
_TOP_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


class UnsupportedGguf(Exception):
    """The file is not one that this converter understands."""


@dataclass(frozen=True, slots=True)
class GgufModel:
    """Read access to one GGUF file."""

    reader: GGUFReader

    @classmethod
    def open(cls, path: Path) -> "GgufModel":
        """Maps the file. Raises: UnsupportedGguf for another architecture or kind of tokenizer."""
        model = cls(GGUFReader(path))
        kind = (model.field("general.architecture"), model.field("tokenizer.ggml.model"))
        if kind != ("llama", "gpt2"):
            raise UnsupportedGguf(
                f"{path.name}: expected architecture llama with a gpt2 tokenizer, got {kind}"
            )
        return model

    def field(self, name: str, default: Any = None) -> Any:
        """One metadata value, or the default."""
        entry = self.reader.fields.get(name)
        return default if entry is None else entry.contents()

    def llama(self, name: str) -> Any:
        """One hyper-parameter of the architecture."""
        return self.field(f"llama.{name}")

    @property
    def tensors(self) -> list[ReaderTensor]:
        """Tensors in file order."""
        return list(self.reader.tensors)


def convert_gguf(source: Path, target: Path, *, progress: Callable[[int, int], None] | None = None) -> None:
    """Writes `source` as a bfloat16 checkpoint into the existing directory `target`.

    Args:
        progress: called after each tensor with (tensors done, tensors in all).

    Raises:
        UnsupportedGguf: another architecture, another tokenizer, or a tensor without a counterpart.
    """
    model = GgufModel.open(source)
    _write_weights(model, target / "model.safetensors", progress or (lambda done, total: None))
    _write_json(target / "config.json", _config(model))
    _write_json(target / "generation_config.json", _special_ids(model))
    _write_json(target / "tokenizer.json", _tokenizer(model))
    _write_json(target / "tokenizer_config.json", _tokenizer_config(model))


# ── weights ─────────────────────────────────────────────────────────────────────────────────────────


def _checkpoint_name(name: str) -> str:
    parts = name.split(".")
    try:
        if parts[0] == "blk":
            return f"model.layers.{parts[1]}.{_LAYER_NAMES[parts[2]]}.weight"
        return f"{_TOP_NAMES[parts[0]]}.weight"
    except KeyError:
        raise UnsupportedGguf(f"tensor {name!r} has no counterpart in a Llama checkpoint") from None


def _shape(tensor: ReaderTensor) -> list[int]:
    """Row-major shape; GGUF lists the fastest dimension first."""
    return [int(size) for size in reversed(tensor.shape)]


def _safetensors_header(tensors: list[ReaderTensor]) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        end = offset + int(tensor.n_elements) * BYTES_PER_BF16
        entry = {"dtype": "BF16", "shape": _shape(tensor), "data_offsets": [offset, end]}
        header[_checkpoint_name(tensor.name)] = entry
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write_weights(model: GgufModel, path: Path, progress: Callable[[int, int], None]) -> None:
    tensors = model.tensors
    header = _safetensors_header(tensors)
    with path.open("wb") as file:
        file.write(header)
        for done, weights in enumerate(_converted(model, tensors), start=1):
            file.write(weights.tobytes())
            progress(done, len(tensors))


def _converted(model: GgufModel, tensors: list[ReaderTensor]) -> Iterator[NDArray[np.uint16]]:
    heads = {"attn_q": model.llama("attention.head_count"), "attn_k": model.llama("attention.head_count_kv")}
    for tensor in tensors:
        weights = dequantize(tensor.data, tensor.tensor_type)
        kind = tensor.name.split(".")[-2]
        if kind in heads:
            weights = split_rotary_halves(weights, heads[kind])
        yield to_bfloat16(weights)


def split_rotary_halves(weights: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Undoes llama.cpp's order of rows. Shape: (heads * head_dim, columns), in and out."""
    rows, columns = weights.shape
    return weights.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The bits of finite float32 values as bfloat16, rounded to nearest, ties to even."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


# ── configuration ───────────────────────────────────────────────────────────────────────────────────


def _special_ids(model: GgufModel) -> dict[str, int]:
    names = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
    return {key: model.field(f"tokenizer.ggml.{name}_token_id") for key, name in names.items()}


def _config(model: GgufModel) -> dict[str, Any]:
    tied = all(tensor.name != "output.weight" for tensor in model.tensors)
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(model.field("tokenizer.ggml.tokens")),
        "hidden_size": model.llama("embedding_length"),
        "intermediate_size": model.llama("feed_forward_length"),
        "num_hidden_layers": model.llama("block_count"),
        "num_attention_heads": model.llama("attention.head_count"),
        "num_key_value_heads": model.llama("attention.head_count_kv"),
        "head_dim": model.llama("rope.dimension_count"),
        "hidden_act": "silu",
        "max_position_embeddings": model.llama("context_length"),
        "rms_norm_eps": float(f"{model.llama('attention.layer_norm_rms_epsilon'):.6g}"),
        "rope_theta": model.llama("rope.freq_base"),
        "tie_word_embeddings": tied,
        "attention_bias": False,
        "mlp_bias": False,
        "dtype": "bfloat16",
        **_special_ids(model),
    }


# ── tokenizer ───────────────────────────────────────────────────────────────────────────────────────


def _control_tokens(model: GgufModel) -> dict[int, str]:
    tokens, types = model.field("tokenizer.ggml.tokens"), model.field("tokenizer.ggml.token_type")
    return {
        i: token for i, (token, kind) in enumerate(zip(tokens, types, strict=True)) if kind == CONTROL_TOKEN
    }


def _byte_level(**options: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "trim_offsets": True, "use_regex": True, **options}


def _pre_tokenizer(model: GgufModel) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [_byte_level(add_prefix_space=False)]
    if model.field("tokenizer.ggml.pre") == "smollm":
        steps.insert(0, {"type": "Digits", "individual_digits": True})
    return {"type": "Sequence", "pretokenizers": steps}


def _added_token(token_id: int, content: str) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token_id, "content": content, **flags, "special": True}


def _tokenizer(model: GgufModel) -> dict[str, Any]:
    tokens = model.field("tokenizer.ggml.tokens")
    merges = [pair.split(" ") for pair in model.field("tokenizer.ggml.merges")]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added_token(i, token) for i, token in _control_tokens(model).items()],
        "normalizer": None,
        "pre_tokenizer": _pre_tokenizer(model),
        "post_processor": None,
        "decoder": _byte_level(add_prefix_space=True),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": merges,
        },
    }


def _tokenizer_config(model: GgufModel) -> dict[str, Any]:
    tokens = model.field("tokenizer.ggml.tokens")
    ids = _special_ids(model)
    return {
        "tokenizer_class": "GPT2TokenizerFast",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": model.llama("context_length"),
        **{name.removesuffix("_id"): tokens[token_id] for name, token_id in ids.items()},
        "unk_token": tokens[model.field("tokenizer.ggml.unknown_token_id", 0)],
        "chat_template": model.field("tokenizer.chat_template"),
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
