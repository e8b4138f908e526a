"""When an executor is idle, so that a full garbage collection delays no step."""

from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from threading import Thread

import pytest

from executor_svc.metrics import ExecutorMetrics
from executor_svc.runner import StepPlan, StepResult
from executor_svc.runner_messages import Answer, Command, decode_answer, encode
from executor_svc.runner_server import RunnerServer
from tests.unit.executor_svc.fake_runner import FakeRunner
from tests.unit.executor_svc.plan_writer import call, plan


def test_plans_are_in_flight_until_their_step_or_their_stream_ends() -> None:
    metrics = ExecutorMetrics()
    metrics.planned(3)
    metrics.planned(3)
    assert metrics.plans_in_flight == 2
    metrics.stepped(StepResult(step=1, handles=[], tokens=[], step_s=0.1))
    assert metrics.plans_in_flight == 1
    metrics.detached()
    assert metrics.plans_in_flight == 0


def answers(connection: Connection, wanted: Answer) -> None:
    """Reads until this answer."""
    while True:
        assert connection.poll(10), f"no {wanted}"
        if decode_answer(connection.recv_bytes())[0] is wanted:
            return


@pytest.mark.parametrize(
    "spoil",
    [lambda runner: None, lambda runner: setattr(runner, "result_error", RuntimeError("broken"))],
    ids=["a step that ends", "a step that fails"],
)
def test_a_runner_s_process_is_idle_when_every_plan_is_answered(spoil: Callable[[FakeRunner], None]) -> None:
    ours, theirs = Pipe()
    runner = FakeRunner()
    spoil(runner)
    server = RunnerServer(theirs, runner)
    serving = Thread(target=server.run)
    serving.start()
    try:
        assert server.idle
        runner.steps_may_end.clear()
        ours.send_bytes(encode(Command.ANNOUNCE, call(1, [1, 2])))
        ours.send_bytes(encode(Command.EXECUTE, first_plan()))
        ours.send_bytes(encode(Command.PREPARE, 1))
        answers(ours, Answer.PREPARED)  # commands before it have been obeyed
        assert not server.idle
        runner.steps_may_end.set()
        answers(ours, Answer.FAILED if runner.result_error else Answer.RESULT)
    finally:
        ours.send_bytes(encode(Command.CLOSE))
        serving.join(10)
    server.close()
    assert server.idle


def first_plan() -> StepPlan:
    """Call 1, from its beginning."""
    return plan(1, [1], chunks={0: 2}, joined={0: 0}, blocks={0: [1]})
