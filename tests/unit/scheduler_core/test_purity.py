"""The core does no I/O, has no clock and no randomness: it cannot, since it imports nothing that could."""

import ast
import sys
from pathlib import Path

import pytest

import scheduler_svc.core

CORE = Path(scheduler_svc.core.__file__).parent
FILES = sorted(CORE.rglob("*.py"))
ALLOWED = {
    "array", "bisect", "collections", "dataclasses", "enum", "functools", "hashlib", "heapq", "itertools",
    "math", "operator", "statistics", "sys", "types", "typing", "numpy",
}  # fmt: skip
SHARED = "svc_runtime.block_hashes"
"""Frontends hash prompts as the core does."""


def imports_of(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            names.add(node.module or "")
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CORE)))
def test_imports_only_what_is_pure(path: Path) -> None:
    foreign = {
        name
        for name in imports_of(path)
        if not name.startswith("scheduler_svc.core")
        and name != SHARED
        and name.partition(".")[0] not in ALLOWED
    }
    assert not foreign


def test_the_check_sees_a_forbidden_import(tmp_path: Path) -> None:
    module = tmp_path / "impure.py"
    module.write_text("def f():\n    from time import monotonic\n")
    assert imports_of(module) == {"time"}
    assert "time" in sys.modules
    assert "time" not in ALLOWED
