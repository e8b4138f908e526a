"""The figures at the end, and what is shown while a run goes on."""

import io

import pytest
from rich.console import Console

from demo.experiment import Outcome
from demo.live_table import plain_lines, program_table
from demo.report import Comparison, change, p95, print_report, summary


def outcome(name: str, response_s: float, class_name: str = "chat", tokens: int = 64) -> Outcome:
    return Outcome(name=name, class_name=class_name, response_s=response_s, calls=2, tokens=tokens)


def comparison() -> Comparison:
    before = [outcome("tree-search", 20.0, "tree-search"), outcome("chat-1", 10.0), outcome("chat-2", 6.0)]
    after = [outcome("tree-search", 25.0, "tree-search"), outcome("chat-1", 4.0), outcome("chat-2", 9.0)]
    return Comparison(before_policy="fcfs", after_policy="plas", before=before, after=after)


def text_of(*renderables: object) -> str:
    console = Console(file=io.StringIO(), width=100, force_terminal=False)
    for renderable in renderables:
        console.print(renderable)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_summary_covers_the_chats_and_the_search() -> None:
    assert summary(comparison()) == [
        ("2 chats, mean", 8.0, 6.5),
        ("2 chats, median", 8.0, 6.5),
        ("2 chats, p95", 10.0, 9.0),
        ("tree search", 20.0, 25.0),
    ]


def test_losses_are_shown_as_well_as_gains() -> None:
    console = Console(file=io.StringIO(), width=100, force_terminal=False)
    print_report(console, comparison())
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "+3.0 s (+50 %)" in text
    assert "-6.0 s (-60 %)" in text
    assert "+5.0 s (+25 %)" in text


def test_runs_of_different_work_are_not_compared() -> None:
    good = comparison()
    fewer = [*good.after[:2], outcome("chat-2", 9.0, tokens=63)]
    with pytest.raises(ValueError, match="same work"):
        Comparison(before_policy="a", after_policy="b", before=good.before, after=fewer)


@pytest.mark.parametrize(("count", "expected"), [(1, 1), (8, 8), (20, 19), (100, 95)])
def test_p95_is_the_nearest_rank(count: int, expected: int) -> None:
    assert p95(list(range(count, 0, -1))) == expected


def test_a_change_is_negative_when_it_is_faster() -> None:
    assert change(10.0, 8.0) == "-2.0 s (-20 %)"


ROWS = [
    {
        "program_id": "p", "session": "plas/chat-1", "class": "chat", "state": "running", "live_calls": 1,
        "finished_calls": 2, "tokens": 64, "attained_service_s": 1.25, "waiting_s": 0.5, "level": 3,
    },
    {"session": "plas/tree-search", "state": "ended", "live_calls": 0},
]  # fmt: skip


def test_the_table_has_a_row_for_each_program() -> None:
    text = text_of(program_table("Programs", "plas/", ROWS))
    assert [word for word in text.split() if word in ("chat-1", "tree-search")] == ["chat-1", "tree-search"]
    assert "1.2" in text


def test_plain_lines_tell_of_the_programs_with_live_calls() -> None:
    lines = plain_lines(15.0, "plas/", ROWS)
    assert lines[0] == "  15 s  2 programs seen, 1 with live calls"
    assert "chat-1 (chat, running): 2 calls done, 1 live, 64 tokens" in lines[1]
    assert len(lines) == 2
