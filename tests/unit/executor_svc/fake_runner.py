"""A runner that notes what it is asked and does what a test tells it to."""

import threading
from collections.abc import Callable

from executor_svc.runner import AnnouncedCall, PlanViolation, RunnerInfo, StepPlan, StepResult
from tests.unit.executor_svc.test_wire import INFO


class FakePending:
    """A step that ends when the test says so."""

    def __init__(self, runner: "FakeRunner", plan: StepPlan) -> None:
        self._runner = runner
        self._plan = plan

    def result(self) -> StepResult:
        """Token 7 for each row."""
        assert self._runner.steps_may_end.wait(10)
        if self._runner.result_error is not None:
            raise self._runner.result_error
        handles = list(self._plan.handles)
        return StepResult(step=self._plan.step, handles=handles, tokens=[7] * len(handles), step_s=0.25)


class FakeRunner:
    """Knows handles, nothing else."""

    def __init__(self) -> None:
        self.steps_may_end = threading.Event()
        self.steps_may_end.set()
        self.execute_error: Exception | None = None
        self.result_error: Exception | None = None
        self.prepare_answer: Callable[[int], str] = lambda handle: ""
        self.log: list[str] = []
        self.threads: set[str] = set()
        self._handles: set[int] = set()

    @property
    def info(self) -> RunnerInfo:
        """A simulated runner's."""
        return INFO

    def announce(self, call: AnnouncedCall) -> None:
        """Notes the handle."""
        self._note(f"announce {call.handle}")
        self._handles.add(call.handle)

    def prepare(self, handle: int) -> str:
        """Answers as told."""
        return self.prepare_answer(handle)

    def execute(self, plan: StepPlan) -> FakePending:
        """Starts a step of known handles."""
        self._note(f"execute {plan.step}")
        if self.execute_error is not None:
            raise self.execute_error
        unknown = set(plan.handles) - self._handles
        if unknown:
            raise PlanViolation(f"handles {unknown} are not known")
        return FakePending(self, plan)

    def reset(self) -> None:
        """Forgets the handles."""
        self._note("reset")
        self._handles.clear()

    def close(self) -> None:
        """Notes it."""
        self._note("close")

    def _note(self, event: str) -> None:
        self.threads.add(threading.current_thread().name)
        self.log.append(event)
