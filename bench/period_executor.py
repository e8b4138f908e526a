"""A simulated executor that notes when its steps start, then steps the same plans from memory.

`python -m bench.period_executor RESULT.json`, with the settings of `executor_svc` in the environment; see
`bench.period`.
"""

import gc
import json
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from executor_svc.runner import AnnouncedCall, Pending, Runner, RunnerInfo, StepPlan
from executor_svc.runners import make_runner
from executor_svc.server import serve
from executor_svc.settings import ExecutorSettings
from svc_runtime.lifecycle import run_service
from svc_runtime.log import configure_logging

SKIPPED_STEPS = 20
"""Steps left out after the batch is complete: caches warm up."""


class NotingRunner:
    """A runner that keeps everything it was given, with the time at which each step started."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.history: list[AnnouncedCall | StepPlan] = []
        self.starts_s: list[float] = []

    @property
    def info(self) -> RunnerInfo:
        """The wrapped runner's."""
        return self._runner.info

    def announce(self, call: AnnouncedCall) -> None:
        """Notes and passes on."""
        self.history.append(call)
        self._runner.announce(call)

    def prepare(self, handle: int) -> str:
        """Passes on."""
        return self._runner.prepare(handle)

    def execute(self, plan: StepPlan) -> Pending:
        """Notes and passes on."""
        self.history.append(plan)
        self.starts_s.append(time.perf_counter())
        return self._runner.execute(plan)

    def reset(self) -> None:
        """Passes on; what was noted is kept."""
        self._runner.reset()

    def close(self) -> None:
        """Passes on."""
        self._runner.close()


def periods_ms(runner: NotingRunner, rows: int) -> list[float]:
    """Milliseconds between starts of consecutive full, purely decoding steps, the first ones left out."""
    plans = [entry for entry in runner.history if isinstance(entry, StepPlan)]
    steady = [len(plan.handles) == rows and not plan.chunks and not plan.joined for plan in plans]
    gaps = zip(runner.starts_s, runner.starts_s[1:], steady, steady[1:], strict=False)
    return [(after - before) * 1e3 for before, after, now, then in gaps if now and then][SKIPPED_STEPS:]


def replay(settings: ExecutorSettings, history: list[AnnouncedCall | StepPlan]) -> NotingRunner:
    """Steps the noted plans on a new runner, as fast as it allows."""
    runner = NotingRunner(make_runner(settings))
    for entry in history:
        if isinstance(entry, StepPlan):
            runner.execute(entry).result()
        else:
            runner.announce(entry)
    return runner


def figures(driven: NotingRunner, settings: ExecutorSettings) -> dict[str, Any]:
    """Both periods and their ratio."""
    gc.collect()
    local = replay(settings, driven.history)
    rows = max(len(entry.handles) for entry in driven.history if isinstance(entry, StepPlan))
    driven_ms, local_ms = periods_ms(driven, rows), periods_ms(local, rows)
    return {
        "rows": rows,
        "steps": len(driven_ms),
        "driven_ms": statistics.median(driven_ms),
        "local_ms": statistics.median(local_ms),
        "driven_mean_ms": statistics.fmean(driven_ms),
        "local_mean_ms": statistics.fmean(local_ms),
        "driven_p99_ms": statistics.quantiles(driven_ms, n=100)[98],
        "inflation": statistics.median(driven_ms) / statistics.median(local_ms) - 1,
        "inflation_mean": statistics.fmean(driven_ms) / statistics.fmean(local_ms) - 1,
    }


def main() -> int:
    """Serves until stopped, then replays and writes the figures."""
    settings = ExecutorSettings()
    configure_logging("executor", level=settings.log_level)
    runners: list[NotingRunner] = []

    def noting() -> Runner:
        runners.append(NotingRunner(make_runner(settings)))
        return runners[0]

    code = run_service("executor", partial(serve, settings, runner_factory=noting))
    if code == 0:
        Path(sys.argv[1]).write_text(json.dumps(figures(runners[0], settings)))
    return code


if __name__ == "__main__":
    sys.exit(main())
