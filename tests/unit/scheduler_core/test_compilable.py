"""What the ahead-of-time compiler asks of the core's sources (docs/adr/0009-compiled-core.md).

It takes generator expressions for lists: what is lazy, a walk over all waiting calls of which only the first
few are read, must be a generator function.

A compiled dataclass looks up the class that a field is annotated with while its module is loaded. One that
is imported for type checkers only is not there then, and the process crashes: without a message, and
depending on which module is loaded first. Inside a union or a container a name in quotes does no harm.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import scheduler_svc.core

CORE = Path(scheduler_svc.core.__file__).parent
SOURCES = sorted(CORE.rglob("*.py"))
NAMES = [str(path.relative_to(CORE)) for path in SOURCES]

UNSAFE = """
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from somewhere import Call, Seat

@dataclass(slots=True)
class Row:
    call: "Call"
    seat: "Seat | None"
    rows: list["Call"]
    count: int

class Plain:
    call: "Call"
"""

CONSUMED_LAZILY = {"merge", "zip", "map", "filter", "iter", "islice", "enumerate"}
EAGER = """
def rows(self):
    first = next(row for row in self.rows if row.count)
    total = sum(row.count for row in self.rows)
    (last,) = (*(row for row in self.rows),)
    return (row for row in self.rows)

def walk(self):
    some = (row for row in self.rows)
    return merge(some, (row for row in self.others))
"""


def only_for_type_checkers(tree: ast.Module) -> set[str]:
    blocks = (
        node for node in tree.body if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
    )
    imports = (node for block in blocks for node in block.body if isinstance(node, ast.ImportFrom))
    return {alias.asname or alias.name for node in imports for alias in node.names}


def dataclasses_of(tree: ast.Module) -> Iterator[ast.ClassDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and any("dataclass" in ast.dump(by) for by in node.decorator_list):
            yield node


def unsafe_fields(source: str) -> Iterator[str]:
    tree = ast.parse(source)
    absent = only_for_type_checkers(tree)
    for dataclass in dataclasses_of(tree):
        for field in dataclass.body:
            if isinstance(field, ast.AnnAssign) and ast.unparse(field.annotation).strip("'\"") in absent:
                yield f"{dataclass.name}.{ast.unparse(field.target)}"


def test_the_rule_finds_what_it_is_about() -> None:
    assert list(unsafe_fields(UNSAFE)) == ["Row.call"]


@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_dataclasses_name_no_class_that_is_there_for_type_checkers_only(path: Path) -> None:
    assert list(unsafe_fields(path.read_text())) == []


def unsafe_generators(source: str) -> Iterator[int]:
    """Lines of generator expressions that somebody may want to read only the beginning of."""
    tree = ast.parse(source)
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    for node in parents:
        if isinstance(node, ast.GeneratorExp):
            user = parents[node]
            called = ast.unparse(user.func) if isinstance(user, ast.Call) else ""
            if called in CONSUMED_LAZILY or not isinstance(user, ast.Call | ast.Starred):
                yield node.lineno


def test_the_rule_finds_generators_that_are_read_in_part() -> None:
    assert sorted(unsafe_generators(EAGER)) == [6, 9, 10]


@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_what_is_lazy_is_a_generator_function(path: Path) -> None:
    assert list(unsafe_generators(path.read_text())) == []
