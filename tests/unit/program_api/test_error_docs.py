"""docs/errors.md says of every reason what the code does with it, and leaves none out."""

import ast
import re
from pathlib import Path

import pytest

from svc_runtime.rpc_errors import HTTP_OF_REASON, STATUS_OF_REASON

ROOT = Path(__file__).parents[3]
ROW = re.compile(r"^\| `([A-Z_]+)` \| ([A-Z_]+) \| (\d{3}) \| (.+) \| (.+) \|$", re.MULTILINE)
REASON = re.compile(r"[A-Z]+(_[A-Z]+)+|INTERNAL|UNAUTHENTICATED")
SOURCES = [path for part in ("frontend_svc", "scheduler_svc") for path in (ROOT / part).rglob("*.py")]


def documented() -> dict[str, tuple[str, int]]:
    text = (ROOT / "docs/errors.md").read_text()
    return {reason: (code, int(status)) for reason, code, status, *_ in ROW.findall(text)}


def raised(source: Path) -> set[str]:
    """Reasons that a module names: `reason="..."`, or an argument of `refusal`, `_refused`, `abort`, ..."""
    found = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if not isinstance(node, ast.Call):
            continue
        called = getattr(node.func, "id", getattr(node.func, "attr", ""))
        named = [keyword.value for keyword in node.keywords if keyword.arg == "reason"]
        if re.search("refus|abort", called, re.IGNORECASE):
            named += node.args[:3]
        found |= {arg.value for arg in named if isinstance(arg, ast.Constant) and isinstance(arg.value, str)}
    return {reason for reason in found if REASON.fullmatch(reason)}


def test_the_document_is_the_table_of_the_code() -> None:
    table = {reason: (code.name, HTTP_OF_REASON[reason].value) for reason, code in STATUS_OF_REASON.items()}
    assert documented() == table


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_reason_that_is_raised_is_documented(source: Path) -> None:
    assert raised(source) <= documented().keys()


def test_the_search_for_reasons_finds_them() -> None:
    found = set().union(*(raised(source) for source in SOURCES))
    assert {"PROGRAM_UNKNOWN", "PROMPT_TOO_LONG", "QUEUE_FULL", "INTERNAL", "UNAUTHENTICATED"} <= found
