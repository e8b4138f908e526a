"""`pytest tests/scenarios --rewrite` writes what the core says into the scripts; read the diff."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rewrite", action="store_true", help="write what the core says into the scripts")
