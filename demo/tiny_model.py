"""A random Llama of two layers, made on the spot: `MODEL=tiny`.

It says nothing sensible, but it is a complete model in every technical respect: a byte-level BPE of 2,048
tokens trained here on `tiny_corpus.txt`, a chat template with tools, float32 weights. It serves thousands of
tokens per second on a laptop, so tests and first steps need neither a download nor patience.

Made for tests of a serving engine, its weights are random but shaped on purpose:

- attention is peaked (large query and key weights), so a lost or stale KV block changes the output at once;
- logits are far apart (large output weights), so float32 rounding does not decide a greedy token;
- the row of the end-of-sequence token is larger than the others, so sequences do end by themselves.

The same versions of numpy, tokenizers and safetensors give the same bytes.
"""

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

CORPUS = Path(__file__).with_name("tiny_corpus.txt")
SEED = 2502

VOCAB_SIZE = 2048
HIDDEN = 256
INTERMEDIATE = 512
LAYERS = 2
HEADS = 8
KV_HEADS = 4
HEAD_DIM = 32
MAX_POSITIONS = 8192

UNKNOWN, START, END = "<unk>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = (UNKNOWN, START, END, "<tool_call>", "</tool_call>")
END_ID = SPECIAL_TOKENS.index(END)

CHAT_TEMPLATE = """\
{%- set told = tools and messages and messages[0].role == 'system' %} {%- if tools %}<|im_start|>system {{
messages[0].content + '\\n' if told else '' }}Tools, one JSON schema a line: {% for tool in tools %}{{ tool |
tojson }} {% endfor %}To call one, answer <tool_call>{"name": ..., "arguments": {...}}</tool_call>.<|im_end|>
{% endif %} {%- for message in (messages[1:] if told else messages) %}<|im_start|>{{ message.role }} {{
message.content or '' }} {%- for call in message.tool_calls or [] %}<tool_call>{{ call.function | tojson
}}</tool_call>{% endfor %}<|im_end|> {% endfor %} {%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def make_tiny(path: Path | str) -> Path:
    """Makes the model in directory `path` unless it is there already, and returns the path.

    The directory appears complete or not at all, also when several processes make it at once.
    """
    target = Path(path)
    if (target / "config.json").is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
        checkpoint = Path(scratch) / "checkpoint"
        checkpoint.mkdir()
        _write_checkpoint(checkpoint)
        _publish(checkpoint, target)
    return target


def _publish(checkpoint: Path, target: Path) -> None:
    try:
        os.replace(checkpoint, target)
    except OSError:
        if (target / "config.json").is_file():
            return  # another process was faster; its bytes are the same
        # A directory that is there but is no model: an empty one, or a mount.
        shutil.copytree(checkpoint, target, dirs_exist_ok=True)


def _write_checkpoint(path: Path) -> None:
    tokenizer = train_tokenizer()
    tokenizer.save(str(path / "tokenizer.json"), pretty=False)
    weights = path / "model.safetensors"
    save_file(random_weights(), weights, metadata={"format": "pt"})
    weights.chmod(0o644)  # a container may read it as another user
    _write_json(path / "tokenizer_config.json", _tokenizer_config())
    _write_json(path / "generation_config.json", {"eos_token_id": END_ID, "pad_token_id": END_ID})
    _write_json(path / "config.json", _config())


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


# ── tokenizer ───────────────────────────────────────────────────────────────────────────────────────


def train_tokenizer() -> Tokenizer:
    """A byte-level BPE of exactly `VOCAB_SIZE` tokens; any text survives encoding and decoding."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS.read_text(encoding="utf-8").splitlines(), trainer)
    return tokenizer


def _tokenizer_config() -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": MAX_POSITIONS,
        "bos_token": START,
        "eos_token": END,
        "pad_token": END,
        "unk_token": UNKNOWN,
        "chat_template": CHAT_TEMPLATE,
    }


# ── weights ─────────────────────────────────────────────────────────────────────────────────────────


def random_weights() -> dict[str, NDArray[np.float32]]:
    """All tensors by their names in a Hugging Face checkpoint. Shapes: (out, in)."""
    rng = np.random.default_rng(SEED)

    def normal(rows: int, columns: int, scale: float) -> NDArray[np.float32]:
        return (rng.standard_normal((rows, columns)) * scale).astype(np.float32)

    weights = {
        "model.embed_tokens.weight": normal(VOCAB_SIZE, HIDDEN, 0.5),
        "lm_head.weight": normal(VOCAB_SIZE, HIDDEN, 0.3),
        "model.norm.weight": np.ones(HIDDEN, np.float32),
    }
    weights["lm_head.weight"][END_ID] *= 1.6
    for layer in range(LAYERS):
        for name, shape, scale in _LAYER_TENSORS:
            weights[f"model.layers.{layer}.{name}.weight"] = normal(*shape, scale)
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[f"model.layers.{layer}.{name}.weight"] = np.ones(HIDDEN, np.float32)
    return weights


_LAYER_TENSORS = (
    ("self_attn.q_proj", (HEADS * HEAD_DIM, HIDDEN), 0.1),
    ("self_attn.k_proj", (KV_HEADS * HEAD_DIM, HIDDEN), 0.1),
    ("self_attn.v_proj", (KV_HEADS * HEAD_DIM, HIDDEN), 0.06),
    ("self_attn.o_proj", (HIDDEN, HEADS * HEAD_DIM), 0.12),
    ("mlp.gate_proj", (INTERMEDIATE, HIDDEN), 0.06),
    ("mlp.up_proj", (INTERMEDIATE, HIDDEN), 0.06),
    ("mlp.down_proj", (HIDDEN, INTERMEDIATE), 0.06),
)
"""(name, shape, standard deviation)"""


def _config() -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "max_position_embeddings": MAX_POSITIONS,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
        "dtype": "float32",
        "bos_token_id": SPECIAL_TOKENS.index(START),
        "eos_token_id": END_ID,
        "pad_token_id": END_ID,
    }
