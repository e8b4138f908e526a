"""The comparison at the end: every program's response time under both policies, losses as well as gains."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from rich.console import Console
from rich.table import Table

from demo.experiment import Outcome
from demo.workload import CHAT, TREE_SEARCH


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two runs of the same programs, in the same order."""

    before_policy: str
    after_policy: str
    before: Sequence[Outcome]
    after: Sequence[Outcome]

    def __post_init__(self) -> None:
        work = [[(outcome.name, outcome.calls, outcome.tokens) for outcome in run] for run in self.runs]
        if work[0] != work[1]:
            raise ValueError(f"the two runs did not do the same work: {work[0]} and {work[1]}")

    @property
    def runs(self) -> tuple[Sequence[Outcome], Sequence[Outcome]]:
        """(before, after)"""
        return self.before, self.after

    def response_s(self, class_name: str) -> tuple[list[float], list[float]]:
        """Response times of a class's programs: (before, after)."""
        before, after = (
            [outcome.response_s for outcome in run if outcome.class_name == class_name] for run in self.runs
        )
        return before, after


def p95(values: Sequence[float]) -> float:
    """The smallest value that at least 95 % of the values do not exceed (nearest rank)."""
    return sorted(values)[math.ceil(0.95 * len(values)) - 1]


def change(before_s: float, after_s: float) -> str:
    """Difference in seconds and per cent; negative is faster."""
    return f"{after_s - before_s:+.1f} s ({100 * (after_s / before_s - 1):+.0f} %)"


def summary(comparison: Comparison) -> list[tuple[str, float, float]]:
    """(what, seconds before, seconds after) for the short programs together and for the tree search."""
    chats_before, chats_after = comparison.response_s(CHAT)
    measures: list[tuple[str, Callable[[Sequence[float]], float]]] = [
        ("mean", fmean),
        ("median", median),
        ("p95", p95),
    ]
    rows = [
        (f"{len(chats_before)} chats, {name}", measure(chats_before), measure(chats_after))
        for name, measure in measures
    ]
    trees_before, trees_after = comparison.response_s(TREE_SEARCH)
    return [*rows, ("tree search", fmean(trees_before), fmean(trees_after))]


def print_report(console: Console, comparison: Comparison) -> None:
    """Prints the tables."""
    console.print(_program_table(comparison))
    console.print(_summary_table(comparison))
    console.print(
        "Response time: from a program's arrival to its end, less the time its person was reading. "
        "One run a policy: whatever else this machine was doing shows in the figures.",
        soft_wrap=True,
        highlight=False,
    )


def _table(title: str, *labels: str, comparison: Comparison) -> Table:
    table = Table(title=title, title_justify="left", min_width=88)
    for label in labels:
        table.add_column(label, justify="left" if label == labels[0] else "right")
    for policy in (comparison.before_policy, comparison.after_policy):
        table.add_column(policy, justify="right")
    table.add_column("difference", justify="right")
    return table


def _program_table(comparison: Comparison) -> Table:
    title = "Response time of each program, seconds"
    table = _table(title, "program", "calls", "tokens", comparison=comparison)
    for before, after in zip(comparison.before, comparison.after, strict=True):
        work = (before.name, str(before.calls), str(before.tokens))
        table.add_row(*work, *_times(before.response_s, after.response_s))
    return table


def _summary_table(comparison: Comparison) -> Table:
    table = _table("Together", "programs", comparison=comparison)
    for what, before_s, after_s in summary(comparison):
        table.add_row(what, *_times(before_s, after_s))
    return table


def _times(before_s: float, after_s: float) -> tuple[str, str, str]:
    colour = "green" if after_s <= before_s else "red"
    return f"{before_s:.1f}", f"{after_s:.1f}", f"[{colour}]{change(before_s, after_s)}[/{colour}]"
