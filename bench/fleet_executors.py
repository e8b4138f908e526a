"""The executors of `bench.fleet`: many simulated ones in one process, each with its own connection.

`python -m bench.fleet_executors`, settings of `executor_svc` in the environment plus FLEET_EXECUTORS (how
many). This is a load generator, not how executors are run: it is made of the product's session, wire and
simulated runner, on one event loop (see `bench.fleet_stepper`) and on connections that cost little (see
`bench.lean_http2`). On stdout it says, in lines of JSON, how many
rows each executor has, then `true` once every executor decodes a full batch. Each line "FROM TO" on stdin
(seconds of the monotonic clock) it answers with the figures of that window. It ends when stdin does.
"""

import asyncio
import gc
import json
import os
import statistics
import sys
from bisect import bisect_left
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any, cast

import grpc

from bench.fleet_stepper import Beat, LoopStepper
from bench.lean_http2 import LeanChannel
from executor_svc.metrics import ExecutorMetrics
from executor_svc.runner import RunnerInfo
from executor_svc.session import Session, SessionConfig
from executor_svc.settings import ExecutorSettings
from executor_svc.simulated_runner import SimulatedRunner
from executor_svc.simulated_setup import simulated_config
from svc_runtime.grpc_aio import PEER_TOKEN_KEY
from svc_runtime.lifecycle import run_service
from svc_runtime.log import configure_logging

POLL_S = 0.2


class NoWaiting:
    """Steps are timed by the loop: the runner returns at once."""

    def now_s(self) -> float:
        """No time passes in the runner."""
        return 0.0

    def wait_until(self, deadline_s: float) -> None:
        """Returns at once."""


async def run_executor(
    settings: ExecutorSettings, index: int, stepper: LoopStepper, info: RunnerInfo, stop: asyncio.Event
) -> None:
    """Registers with the scheduler and obeys until stopped."""
    metadata = [(PEER_TOKEN_KEY, settings.peer_token.get_secret_value())] if settings.peer_token else []
    session = Session(
        SessionConfig(executor_id=f"fleet-{index:02d}", scheduler=settings.scheduler, drain_s=1.0),
        stepper,
        ExecutorMetrics(),
        open_channel=lambda: cast(grpc.aio.Channel, LeanChannel(settings.scheduler, metadata=metadata)),
        on_registered=lambda registered: None,
    )
    await session.run(info, stop)


async def serve(settings: ExecutorSettings, count: int, stop: asyncio.Event) -> None:
    """Runs all of them until stdin ends."""
    runners = [SimulatedRunner(simulated_config(settings), clock=NoWaiting()) for _ in range(count)]
    steppers = [LoopStepper(runner) for runner in runners]
    async with asyncio.TaskGroup() as group:
        for index, (runner, stepper) in enumerate(zip(runners, steppers, strict=True)):
            group.create_task(run_executor(settings, index, stepper, runner.info, stop))
        await answer(steppers, runners[0].info.max_num_seqs)
        stop.set()


async def answer(steppers: Sequence[LoopStepper], seats: int) -> None:
    """Says when all batches are full, then tells of each window that is asked for, until stdin ends."""
    saying = asyncio.create_task(say_when_full(steppers, seats))
    while line := await asyncio.to_thread(sys.stdin.readline):
        begin_s, end_s = map(float, line.split())
        print(json.dumps([window(stepper.beat, begin_s, end_s) for stepper in steppers]), flush=True)
    saying.cancel()


async def say_when_full(steppers: Sequence[LoopStepper], seats: int) -> None:
    """Tells the parent process the rows of each executor now and then, and at last `true`: all are full."""
    while set(rows := [sum(stepper.beat.rows[-1:]) for stepper in steppers]) != {seats}:
        print(json.dumps(rows), flush=True)
        await asyncio.sleep(POLL_S)
    gc.collect()
    gc.freeze()
    print("true", flush=True)


def window(beat: Beat, begin_s: float, end_s: float) -> dict[str, Any]:
    """Figures of the steps that began in a window of time."""
    steps = slice(bisect_left(beat.starts_s, begin_s), bisect_left(beat.starts_s, end_s))
    starts_s = beat.starts_s[steps]
    periods_ms = [(after - before) * 1e3 for before, after in pairwise(starts_s)]
    waited_ms = [waited_s * 1e3 for waited_s in beat.waited_s[steps]]
    late_ms = [late_s * 1e3 for late_s in beat.late_s[steps]]
    return {
        "steps": len(periods_ms),
        "resets": beat.resets,
        "rows_min": min(beat.rows[steps], default=0),
        "period_ms": statistics.median(periods_ms),
        "period_mean_ms": statistics.fmean(periods_ms),
        "period_p99_ms": statistics.quantiles(periods_ms, n=100)[98],
        "plan_ahead_ms": statistics.median(waited_ms),
        "plan_ahead_p1_ms": statistics.quantiles(waited_ms, n=100)[0],
        "result_late_ms": statistics.median(late_ms),
        "result_late_p99_ms": statistics.quantiles(late_ms, n=100)[98],
    }


def main() -> int:
    """Serves until stdin ends."""
    settings = ExecutorSettings()
    configure_logging("executor", level=settings.log_level)
    return run_service("fleet", partial(serve, settings, int(os.environ["FLEET_EXECUTORS"])))


if __name__ == "__main__":
    sys.exit(main())
