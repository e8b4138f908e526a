"""What a scheduling step costs: `python -m bench.core`, JSON to bench/results/core.json.

One step is everything between the bytes of a result and the bytes that go out: decode the result, take it in,
plan, encode the plan, encode the frontend's outputs (see `bench.core_ours`). Measured with 64, 256 and 1024
rows, steady and with 2 % of the rows finishing and as many calls starting at each step, alone, behind 1k and
100k waiting calls, and among 100k open programs. vLLM's own `Scheduler.schedule` + `update_from_output` are
measured in the same run under the same load (see `bench.core_vllm`). Each scenario has a process of its own;
rounds alternate, and a figure is the median over the rounds of the medians over a round's steps. Our core is
the compiled one if it is up to date (`make compile`).
"""

import argparse
import json
import statistics
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import machine
from bench.core_load import BLOCK_SIZE, CHURN, PROMPT_TOKENS, Load
from bench.core_worker import Worker
from scripts.compiled_core import AUTO, CHOICES, CoreBuild, choose

RESULT = Path(__file__).parent / "results" / "core.json"
VLLM = "vllm"
ALONE = "waiting_0"
TARGET_ROWS = 256
TARGETS_US = {"steady": 60.0, "churn": 250.0}
FLATNESS_MAX = 0.15
VLLM_RATIO_MIN = 20.0

Figures = dict[str, dict[str, float]]
"""scenario -> piece -> microseconds."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to measure, and under how much."""

    rounds: int
    steps: int
    waiting: tuple[int, ...]
    programs: int

    def scenarios(self, rows: int, churn: bool) -> dict[str, Load]:
        """Our scenarios of one group, by name."""
        loads = {f"waiting_{count}": Load(rows=rows, churn=churn, waiting=count) for count in self.waiting}
        name = f"programs_{self.programs}"
        return loads | {name: Load(rows=rows, churn=churn, programs=self.programs)}


FULL = Effort(rounds=15, steps=100, waiting=(0, 1_000, 100_000), programs=100_000)
QUICK = Effort(rounds=3, steps=60, waiting=(0, 1_000), programs=1_000)


def measure(rows: int, churn: bool, effort: Effort, core: CoreBuild, *, with_vllm: bool) -> Figures:
    """One group of scenarios, vLLM among them, in alternating rounds."""
    ours = effort.scenarios(rows, churn).items()
    with ExitStack() as stack:
        enter = stack.enter_context
        workers = {name: enter(Worker("bench.core_ours", load, core.environment)) for name, load in ours}
        if with_vllm:
            workers[VLLM] = enter(Worker("bench.core_vllm", Load(rows=rows, churn=churn)))
        for worker in workers.values():
            worker.wait_ready()
        return _alternate(workers, effort)


def _alternate(workers: Mapping[str, Worker], effort: Effort) -> Figures:
    medians: dict[str, dict[str, list[float]]] = {name: {} for name in workers}
    for number in range(effort.rounds):
        order = list(workers)[:: 1 if number % 2 == 0 else -1]
        for name in order:
            for piece, values in workers[name].measure(effort.steps).items():
                medians[name].setdefault(piece, []).append(statistics.median(values))
    return {
        name: {piece: round(statistics.median(values), 2) for piece, values in pieces.items()}
        for name, pieces in medians.items()
    }


class Report:
    """What was measured so far, in the form of the result file."""

    def __init__(self, effort: Effort, core: CoreBuild) -> None:
        self.total_us: dict[str, dict[str, dict[str, float]]] = {}
        """rows -> steady or churn -> scenario."""
        self.vllm_us: dict[str, dict[str, float]] = {}
        self.ratio: dict[str, dict[str, float]] = {}
        """vLLM's microseconds over ours, alone."""
        self.pieces_us: dict[str, dict[str, Figures]] = {}
        self._effort = effort
        self._core = core

    def add(self, rows: int, kind: str, figures: Figures) -> None:
        """Takes a group in, and prints its line."""
        totals = {name: pieces["total"] for name, pieces in figures.items() if name != VLLM}
        self.total_us.setdefault(str(rows), {})[kind] = totals
        self.pieces_us.setdefault(str(rows), {})[kind] = figures
        line = f"{rows:5d} rows, {kind:6s}: " + ", ".join(f"{name} {us:.0f}" for name, us in totals.items())
        if VLLM in figures:
            self.vllm_us.setdefault(str(rows), {})[kind] = figures[VLLM]["total"]
            ratio = round(figures[VLLM]["total"] / totals[ALONE], 2)
            self.ratio.setdefault(str(rows), {})[kind] = ratio
            line += f" us; vLLM {figures[VLLM]['total']:.0f} us, {ratio:.1f}x ours"
        _say(line)

    def targets(self) -> list[dict[str, Any]]:
        """The targets whose figures were measured, and whether they are met."""
        return list(self._targets())

    def _targets(self) -> Iterator[dict[str, Any]]:
        groups = self.total_us.get(str(TARGET_ROWS), {})
        for kind, totals in groups.items():
            limit_us = TARGETS_US[kind]
            yield _target(f"{kind} step, us", totals[ALONE], limit_us, totals[ALONE] <= limit_us)
            growth = round(max(totals.values()) / totals[ALONE] - 1, 3)
            name = f"{kind} step, growth with waiting calls and programs"
            yield _target(name, growth, FLATNESS_MAX, growth <= FLATNESS_MAX)
        ratio = self.ratio.get(str(TARGET_ROWS), {}).get("steady")
        if ratio is not None:
            yield _target("vLLM's steady step over ours", ratio, VLLM_RATIO_MIN, ratio >= VLLM_RATIO_MIN)

    def as_json(self) -> dict[str, Any]:
        """The result file."""
        return machine.describe(self._core) | {
            "total_us": self.total_us,
            "vllm_us": self.vllm_us,
            "vllm_over_ours": self.ratio,
            "targets": {"rows": TARGET_ROWS, "checked": self.targets()},
            "pieces_us": self.pieces_us,
            "load": {
                "rounds": self._effort.rounds,
                "steps_per_round": self._effort.steps,
                "block_size": BLOCK_SIZE,
                "prompt_tokens": [PROMPT_TOKENS, PROMPT_TOKENS + BLOCK_SIZE - 1],
                "churn": CHURN,
                "plans_in_flight": 2,
                "frontends": 1,
            },
        }


def _target(name: str, value: float, limit: float, met: bool) -> dict[str, Any]:
    return {"what": name, "value": value, "limit": limit, "met": met}


def _say(text: str) -> None:
    print(text, flush=True)


def main() -> None:
    """Measures all groups and writes the result."""
    parser = argparse.ArgumentParser(prog="python -m bench.core", description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[64, 256, 1024], help="rows of the batch")
    parser.add_argument("--quick", action="store_true", help="few rounds, few waiting calls and programs")
    parser.add_argument("--without-vllm", action="store_true", help="measure only our side")
    parser.add_argument(
        "--out", type=Path, default=None, help="result file (default: results/core.json, not if quick)"
    )
    parser.add_argument("--core", choices=CHOICES, default=AUTO, help="which core of ours (default: auto)")
    options = parser.parse_args()
    effort, core = QUICK if options.quick else FULL, choose(options.core)
    report = Report(effort, core)
    machine.warn()
    _say(f"core: {core.kind}")
    _say(f"microseconds a step; {effort.rounds} rounds of {effort.steps} steps, sides alternate")
    for rows in options.rows:
        for churn in (False, True):
            figures = measure(rows, churn, effort, core, with_vllm=not options.without_vllm)
            report.add(rows, "churn" if churn else "steady", figures)
    for target in report.targets():
        verdict = "met" if target["met"] else "MISSED"
        _say(f"{verdict:6s} {target['what']}: {target['value']} (limit {target['limit']})")
    out = options.out or (None if options.quick else RESULT)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(report.as_json(), indent=1) + "\n")
        _say(f"written: {out}")


if __name__ == "__main__":
    main()
