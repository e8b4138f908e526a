"""The threads that drive a runner, seen from the event loop.

Theory of operation: two lanes, each a thread that runs what it is given in order. The step lane makes the
runner and is the only one that announces, executes and resets; the result lane waits for started steps, in
order, so that the step lane can start the next one. Grammars and the like are prepared on a small pool.
Nothing here blocks the loop: commands are put into queues, outcomes come back by `call_soon_threadsafe`,
each with the epoch it belongs to, so that late ones can be told from current ones.

After a `PlanViolation` or a failed runner the rest of the epoch's commands are skipped until `reset`.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Protocol, TypeVar

import structlog

from executor_svc.runner import (
    AnnouncedCall,
    Pending,
    PlanViolation,
    Runner,
    RunnerInfo,
    StepPlan,
    StepResult,
)

log = structlog.get_logger("autellix.stepper")

T = TypeVar("T")

PREPARE_THREADS = 2


@dataclass(frozen=True, slots=True)
class Stepped:
    """A step ended."""

    epoch: int
    result: StepResult


@dataclass(frozen=True, slots=True)
class Prepared:
    """A call was prepared, or cannot run (`error` is not empty)."""

    epoch: int
    handle: int
    error: str


@dataclass(frozen=True, slots=True)
class Violated:
    """A plan or announcement contradicted the runner's state."""

    epoch: int
    violation: PlanViolation


@dataclass(frozen=True, slots=True)
class RunnerFailed:
    """The runner raised what it must not: it cannot be trusted any more."""

    epoch: int
    error: Exception


Outcome = Stepped | Prepared | Violated | RunnerFailed


class Steps(Protocol):
    """What a session needs of whatever drives its runner."""

    def deliver_to(self, take: Callable[[Outcome], None]) -> None:
        """From now on `take` is called on the event loop with each outcome."""
        ...

    def announce(self, epoch: int, calls: Sequence[AnnouncedCall]) -> None:
        """Takes calls in, after all that was asked for before."""
        ...

    def execute(self, epoch: int, plan: StepPlan) -> None:
        """Executes a plan after all that was asked for before."""
        ...

    async def reset(self) -> None:
        """Makes the runner forget everything once its running steps have ended."""
        ...


class Lane:
    """A thread that runs what it is given, in order."""

    def __init__(self, name: str) -> None:
        self._work: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def put(self, work: Callable[[], object]) -> None:
        """Runs `work` after all that was put before. `work` must not raise."""
        self._work.put(work)

    def flush(self) -> None:
        """Blocks until all that was put before has run."""
        reached = threading.Event()
        self._work.put(reached.set)
        reached.wait()

    def close(self) -> None:
        """Blocks until all that was put before has run and the thread has ended."""
        self._work.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            work()


class Stepper:
    """Drives one runner.

    Args:
        make_runner: called on the step lane: devices and threads are bound where the steps will run.
    """

    def __init__(self, make_runner: Callable[[], Runner]) -> None:
        self._make_runner = make_runner
        self._deliver: Callable[[Outcome], None] | None = None
        self._steps = Lane("autellix-steps")
        self._results = Lane("autellix-results")
        self._prepares = self._new_pool()
        self._runner: Runner | None = None
        self._broken = False
        """True from a violation or failure until `reset`; step lane only, the result lane may set it."""

    async def start(self) -> RunnerInfo:
        """Makes the runner, which may take minutes.

        Raises: whatever making it raises.
        """
        self._loop = asyncio.get_running_loop()
        self._steps.start()
        self._results.start()
        return await self._on_step_lane(self._make)

    def deliver_to(self, take: Callable[[Outcome], None]) -> None:
        """From now on `take` is called on the event loop with each outcome; without a taker none is."""
        self._deliver = take

    def announce(self, epoch: int, calls: Sequence[AnnouncedCall]) -> None:
        """Takes calls in; those that need it are prepared right after."""
        self._steps.put(partial(self._guarded, epoch, partial(self._announce, epoch, calls)))

    def execute(self, epoch: int, plan: StepPlan) -> None:
        """Executes a plan after all that was asked for before."""
        self._steps.put(partial(self._guarded, epoch, partial(self._execute, epoch, plan)))

    async def reset(self) -> None:
        """Waits until running steps and preparations have ended, then makes the runner forget everything."""
        await self._on_step_lane(self._reset)

    async def close(self) -> None:
        """Waits for what runs, frees the runner, ends the threads."""
        await self._on_step_lane(self._close)
        await asyncio.to_thread(self._steps.close)

    # ── on the step lane ────────────────────────────────────────────────────────────────────────────

    def _make(self) -> RunnerInfo:
        self._runner = self._make_runner()
        return self._runner.info

    def _announce(self, epoch: int, calls: Sequence[AnnouncedCall]) -> None:
        assert self._runner is not None
        for call in calls:
            self._runner.announce(call)
            if call.needs_preparation:
                self._prepares.submit(self._prepare, self._runner, epoch, call.handle)

    def _execute(self, epoch: int, plan: StepPlan) -> None:
        assert self._runner is not None
        pending = self._runner.execute(plan)
        self._results.put(partial(self._guarded, epoch, partial(self._resolve, epoch, pending)))

    def _reset(self) -> None:
        self._quiesce()
        self._prepares = self._new_pool()
        self._broken = False
        if self._runner is not None:
            self._runner.reset()

    def _close(self) -> None:
        self._quiesce()
        self._results.close()
        if self._runner is not None:
            self._runner.close()

    def _quiesce(self) -> None:
        self._results.flush()
        self._prepares.shutdown(wait=True, cancel_futures=True)

    # ── on the other threads ────────────────────────────────────────────────────────────────────────

    def _resolve(self, epoch: int, pending: Pending) -> None:
        self._post(Stepped(epoch, pending.result()))

    def _prepare(self, runner: Runner, epoch: int, handle: int) -> None:
        """One call's preparation must not harm the others: whatever it raises fails that call alone."""
        try:
            error = runner.prepare(handle)
        except Exception:
            log.exception("preparation_failed", handle=handle)
            error = "the call could not be prepared"
        self._post(Prepared(epoch, handle, error))

    # ── plumbing ────────────────────────────────────────────────────────────────────────────────────

    def _guarded(self, epoch: int, work: Callable[[], None]) -> None:
        """Runs a piece of an epoch's work unless the epoch is already broken; reports what breaks it."""
        if self._broken:
            return
        try:
            work()
        except PlanViolation as violation:
            self._broken = True
            self._post(Violated(epoch, violation))
        except Exception as error:  # noqa: BLE001 - handed on: the session raises it
            self._broken = True
            self._post(RunnerFailed(epoch, error))

    def _post(self, outcome: Outcome) -> None:
        if self._deliver is None:
            return
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to hear of it
            self._loop.call_soon_threadsafe(self._deliver, outcome)

    async def _on_step_lane(self, work: Callable[[], T]) -> T:
        """Runs `work` on the step lane after all that was put before; returns what it returns or raises."""
        done: Future[T] = Future()
        self._steps.put(partial(_settle, done, work))
        return await asyncio.wrap_future(done)

    @staticmethod
    def _new_pool() -> ThreadPoolExecutor:
        return ThreadPoolExecutor(PREPARE_THREADS, thread_name_prefix="autellix-prepare")


def _settle(done: "Future[T]", work: Callable[[], T]) -> None:
    if not done.set_running_or_notify_cancel():
        return
    try:
        done.set_result(work())
    except BaseException as error:  # noqa: BLE001 - handed on to the waiting coroutine
        done.set_exception(error)
