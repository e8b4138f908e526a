"""A simulated device that lives on an event loop: many of them share one process.

Theory of operation: `executor_svc.stepper` gives a runner threads of its own and lets it wait for the end of
each step; thirty-two of those on two cores would measure thread switches. Here a step is bookkeeping, done at
once by the product's simulated runner, and a timer. Time is the device's: a step begins when the one before
ends, provided that its plan is there by then, else when its plan comes; it ends its cost after it began. The
result leaves when the loop's timer fires, which is never before the step's end and up to a few milliseconds
after it. Such lateness takes from the time in which the scheduler may answer; while the next plan is here all
the same, the device's own beat does not move, just as a GPU does not wait for the process that reads its
results. A load generator that is too busy does delay plans and results, and then periods grow because of it.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from executor_svc.runner import AnnouncedCall, PlanViolation, Runner, StepPlan, StepResult
from executor_svc.stepper import Outcome, Prepared, RunnerFailed, Stepped, Violated


@dataclass(slots=True)
class Beat:
    """When steps began, and how they were reached. One entry a step; seconds of the monotonic clock."""

    starts_s: list[float] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    waited_s: list[float] = field(default_factory=list)
    """How long the plan had been here when the step began; 0 where the device waited for it."""
    late_s: list[float] = field(default_factory=list)
    """How long after the step's end its result left."""
    resets: int = 0
    """Registrations after the first: something went wrong."""


class LoopStepper:
    """`executor_svc.stepper.Steps` without threads.

    Args:
        runner: must not wait for the end of its steps.
    """

    def __init__(self, runner: Runner, *, now_s: Callable[[], float] = time.monotonic) -> None:
        self._runner = runner
        self._now_s = now_s
        self._deliver: Callable[[Outcome], None] | None = None
        self._plans: deque[tuple[int, StepPlan, float]] = deque()
        """Plans that wait for the device, with their epoch and the time they came."""
        self._timer: asyncio.TimerHandle | None = None
        """Set while a step runs."""
        self._free_s = 0.0
        """When the last step ended."""
        self._broken = False
        self.beat = Beat()

    def deliver_to(self, take: Callable[[Outcome], None]) -> None:
        """See Steps."""
        self._deliver = take

    def announce(self, epoch: int, calls: Sequence[AnnouncedCall]) -> None:
        """See Steps."""
        for call in calls:
            self._guarded(epoch, partial(self._runner.announce, call))
            if call.needs_preparation:
                self._post(Prepared(epoch, call.handle, self._runner.prepare(call.handle)))

    def execute(self, epoch: int, plan: StepPlan) -> None:
        """See Steps."""
        self._plans.append((epoch, plan, self._now_s()))
        if self._timer is None:
            self._begin()

    async def reset(self) -> None:
        """See Steps. A running step is cut short: there is no device to wait for."""
        self.beat.resets += 1
        self.close()
        self._broken = False
        self._runner.reset()

    def close(self) -> None:
        """Drops what runs and what waits."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self.beat.late_s.append(0.0)
        self._plans.clear()

    def _begin(self) -> None:
        """Takes the next plan, if there is one, and lets its time pass."""
        while self._plans and self._timer is None:
            epoch, plan, came_s = self._plans.popleft()
            start_s = max(self._free_s, came_s)
            self._guarded(epoch, partial(self._run, epoch, plan, start_s))
            if self._timer is not None:
                self.beat.starts_s.append(start_s)
                self.beat.rows.append(len(plan.handles))
                self.beat.waited_s.append(start_s - came_s)

    def _run(self, epoch: int, plan: StepPlan, start_s: float) -> None:
        result = self._runner.execute(plan).result()
        self._free_s = start_s + result.step_s + result.swap_s
        self._wait(epoch, result)

    def _wait(self, epoch: int, result: StepResult) -> None:
        """Loops count in whole milliseconds, and round: an early timer would fire again and again."""
        delay_ms = max(0, math.ceil((self._free_s - self._now_s()) * 1e3))
        self._timer = asyncio.get_running_loop().call_later(delay_ms / 1e3, self._end, epoch, result)

    def _end(self, epoch: int, result: StepResult) -> None:
        late_s = self._now_s() - self._free_s
        if late_s < 0:  # the loop looked at its clock a while before
            self._wait(epoch, result)
            return
        self._timer = None
        self.beat.late_s.append(late_s)
        self._post(Stepped(epoch, result))
        self._begin()

    def _guarded(self, epoch: int, work: Callable[[], None]) -> None:
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
        if self._deliver is not None:
            self._deliver(outcome)
