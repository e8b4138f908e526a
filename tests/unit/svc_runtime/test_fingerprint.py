"""Fingerprints follow content and names, and nothing else."""

from pathlib import Path

import pytest

from svc_runtime import fingerprint
from svc_runtime.fingerprint import model_fingerprint, tokenizer_fingerprint


def make_model(directory: Path, **files: bytes) -> Path:
    directory.mkdir()
    content = {"config_json": b"{}", "tokenizer_json": b"{1}", "model_safetensors": header(b"h") + b"weights"}
    for name, data in (content | files).items():
        (directory / name.replace("_", ".")).write_bytes(data)
    return directory


def header(text: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text


def test_the_same_model_elsewhere_has_the_same_fingerprints(tmp_path: Path) -> None:
    a, b = make_model(tmp_path / "a"), make_model(tmp_path / "b", README_md=b"not part of the model")
    assert model_fingerprint(a) == model_fingerprint(b)
    assert tokenizer_fingerprint(a) == tokenizer_fingerprint(b)
    assert model_fingerprint(a).startswith("sha256:")


@pytest.mark.parametrize("changed", ["config_json", "tokenizer_json"])
def test_configuration_and_tokenizer_count_in_both(tmp_path: Path, changed: str) -> None:
    a, b = make_model(tmp_path / "a"), make_model(tmp_path / "b", **{changed: b"other"})
    assert tokenizer_fingerprint(a) != tokenizer_fingerprint(b)
    assert model_fingerprint(a) != model_fingerprint(b)


def test_weights_count_in_the_model_only(tmp_path: Path) -> None:
    a = make_model(tmp_path / "a")
    b = make_model(tmp_path / "b", model_safetensors=header(b"h") + b"Weights")
    assert tokenizer_fingerprint(a) == tokenizer_fingerprint(b)
    assert model_fingerprint(a) != model_fingerprint(b)


def test_large_weights_are_sampled_and_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprint, "FULL_HASH_LIMIT_BYTES", 100)
    monkeypatch.setattr(fingerprint, "SAMPLE_BYTES", 4)
    middle, tensors = b"." * 200, b"." * 200
    a = make_model(tmp_path / "a", model_safetensors=header(b"shapes") + middle + b"tail")
    b = make_model(tmp_path / "b", model_safetensors=header(b"SHAPES") + tensors + b"tail")
    c = make_model(tmp_path / "c", model_safetensors=header(b"shapes") + middle + b"TAIL")
    prints = {model_fingerprint(model) for model in (a, b, c)}
    assert len(prints) == 3
    assert all(each.startswith("sha256-sampled:") for each in prints)


def test_a_directory_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no tokenizer"):
        model_fingerprint(tmp_path)
