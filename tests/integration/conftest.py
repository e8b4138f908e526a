"""Fixtures of the integration tests."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random 2-layer Llama in float32, made on the spot."""
    from demo.models import make_tiny

    path = tmp_path_factory.mktemp("models") / "tiny"
    make_tiny(path)
    return path
