"""A runner process with surprises, for the tests of `RunnerProcess`: a simulated runner, except that

- model "missing" cannot be loaded, model "dies" ends the process while it is loaded;
- preparing handle 2 fails with a reason, preparing handle 3 raises;
- executing step 3 raises, executing step 4 ends the process, the result of step 5 cannot be sent.
"""

import os
import sys
from multiprocessing.connection import Connection

from executor_svc import runner_server
from executor_svc.runner import Pending, Runner, StepPlan, StepResult
from executor_svc.runners import make_simulated
from executor_svc.settings import ExecutorSettings
from executor_svc.simulated_runner import FinishedStep, SimulatedRunner
from svc_runtime.lifecycle import ExitCode, StartupError


class OddRunner(SimulatedRunner):
    """See the module."""

    def prepare(self, handle: int) -> str:
        """Handle 2 fails, handle 3 raises."""
        if handle == 3:
            raise RuntimeError("no such grammar")
        return "bad grammar" if handle == 2 else ""

    def execute(self, plan: StepPlan) -> Pending:
        """Step 3 raises, step 4 ends the process, step 5 cannot be told."""
        if plan.step == 3:
            raise RuntimeError("the device is on fire")
        if plan.step == 4:
            os._exit(9)
        if plan.step == 5:
            return FinishedStep(StepResult(step=5, handles=[], tokens=[object()], step_s=0.0))  # type: ignore[list-item]
        return super().execute(plan)


def make_odd(settings: ExecutorSettings) -> Runner:
    """Stands in for `make_runner`."""
    if settings.model == "missing":
        raise StartupError("there is no such model", ExitCode.MODEL_MISSING)
    if settings.model == "dies":
        os._exit(7)
    simulated = make_simulated(settings)
    simulated.__class__ = OddRunner
    return simulated


if __name__ == "__main__":
    runner_server.make_runner = make_odd
    runner_server.serve(Connection(int(sys.argv[1])))
