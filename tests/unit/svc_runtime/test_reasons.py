"""Reasons: the table, the documentation and the code name the same ones."""

import ast
import re
from pathlib import Path

from svc_runtime.rpc_errors import HTTP_OF_REASON, STATUS_OF_REASON

ROOT = Path(__file__).parents[3]
ROW = re.compile(r"^\| `([A-Z_]+)` \| ([A-Z_]+) \| (\d+) \|", re.MULTILINE)
REASON = re.compile(r"[A-Z]+(_[A-Z]+)*")
MAKERS = {"refusal", "Refusal", "rich_error", "abort"}


def reasons_in_code() -> dict[str, str]:
    """Every reason given as a constant to what makes typed errors, with a place where that is done."""
    found = {}
    for service in ("frontend_svc", "scheduler_svc", "executor_svc", "svc_runtime"):
        for path in (ROOT / service).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and name_of(node.func) in MAKERS:
                    given = [*node.args, *(k.value for k in node.keywords if k.arg == "reason")]
                    texts = [
                        a.value for a in given if isinstance(a, ast.Constant) and isinstance(a.value, str)
                    ]
                    found |= {t: f"{path.name}:{node.lineno}" for t in texts if REASON.fullmatch(t)}
    return found


def name_of(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def test_every_reason_in_the_code_has_a_status():
    used = reasons_in_code()
    assert len(used) > 10
    assert {reason: place for reason, place in used.items() if reason not in STATUS_OF_REASON} == {}


def test_the_documentation_lists_every_reason_with_its_codes():
    documented = {row[0]: (row[1], int(row[2])) for row in ROW.findall((ROOT / "docs/errors.md").read_text())}
    assert documented == {
        reason: (status.name, int(HTTP_OF_REASON[reason])) for reason, status in STATUS_OF_REASON.items()
    }
