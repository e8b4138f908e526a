"""A session with a fake runner, to be put in front of a fake scheduler."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

from executor_svc.backoff import Backoff
from executor_svc.metrics import ExecutorMetrics
from executor_svc.session import Session, SessionConfig
from executor_svc.stepper import Stepper
from svc_runtime.grpc_aio import open_channel
from tests.unit.executor_svc.fake_runner import FakeRunner
from tests.unit.executor_svc.waiting import PATIENCE_S


@dataclass
class Executor:
    """A running session with a fake runner."""

    runner: FakeRunner
    session: Session
    stop: asyncio.Event
    task: "asyncio.Task[None]"
    serving: list[bool]
    metrics: ExecutorMetrics = field(default_factory=ExecutorMetrics)

    async def ended(self) -> None:
        """Waits for the session's end; raises what it raises."""
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.shield(self.task)

    def count(self, name: str) -> float:
        """A metric's value."""
        value = self.metrics.registry.get_sample_value(f"autellix_executor_{name}")
        assert value is not None, name
        return value


@asynccontextmanager
async def running(
    target: str,
    *,
    drain_s: float = PATIENCE_S,
    connect_timeout_s: float | None = None,
    accept_timeout_s: float = PATIENCE_S,
    wall_ms: Callable[[], int] = lambda: 1000,
) -> AsyncIterator[Executor]:
    """A session that dials `target`, pausing a few milliseconds between attempts."""
    runner, stop, serving, metrics = FakeRunner(), asyncio.Event(), [], ExecutorMetrics()
    stepper = Stepper(lambda: runner)
    info = await stepper.start()
    session = Session(
        SessionConfig(
            executor_id="e1",
            scheduler=target,
            drain_s=drain_s,
            connect_timeout_s=connect_timeout_s,
            accept_timeout_s=accept_timeout_s,
        ),
        stepper,
        metrics,
        open_channel=partial(open_channel, target),
        on_registered=serving.append,
        backoff=Backoff(random.Random(1), first_s=0.005, most_s=0.02),
        wall_ms=wall_ms,
    )
    task = asyncio.create_task(session.run(info, stop))
    executor = Executor(runner, session, stop, task, serving, metrics)
    try:
        yield executor
    finally:
        runner.steps_may_end.set()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await stepper.close()
