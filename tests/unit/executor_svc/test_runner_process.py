"""A runner in a process of its own: the same answers, violations by `Pending`, and no hang when it dies."""

import os
import select
import signal
import subprocess
import sys
from array import array
from collections.abc import Iterator

import numpy as np
import pytest

from executor_svc.runner import PlanViolation, StepPlan, StepResult
from executor_svc.runner_messages import Answer, decode_answer, encode
from executor_svc.runner_process import RunnerLost, RunnerProcess
from executor_svc.runners import make_runner
from executor_svc.settings import ExecutorSettings
from svc_runtime.lifecycle import ExitCode, StartupError
from tests.unit.executor_svc.plan_writer import call, plan

SETTINGS = ExecutorSettings(
    runner="simulated",
    model="m",
    simulated_cost="zero",
    block_size=4,
    num_gpu_blocks_override=20,
    host_blocks=3,
)
SESSION = """
import time
from executor_svc.runner_process import RunnerProcess
from executor_svc.settings import ExecutorSettings
print(RunnerProcess(ExecutorSettings(runner="simulated", model="m")).pid, flush=True)
time.sleep(60)
"""
ODD = "tests.unit.executor_svc.odd_runner_server"
PLANS = [
    plan(1, [1, 2], chunks={0: 3, 1: 3}, joined={0: 0, 1: 0}, blocks={0: [1], 1: [2]}),
    plan(2, [1, 2]),
]


@pytest.fixture
def runner() -> Iterator[RunnerProcess]:
    process = RunnerProcess(SETTINGS)
    yield process
    process.close()


@pytest.fixture
def odd() -> Iterator[RunnerProcess]:
    process = RunnerProcess(SETTINGS, module=ODD)
    yield process
    process.close()


def arrived(result: StepResult) -> StepResult:
    """A result as the session gets it: columns are lists."""
    return decode_answer(encode(Answer.RESULT, result))[1]


def announce_two(runner: RunnerProcess) -> None:
    runner.announce(call(1, [1, 2, 3]))
    runner.announce(call(2, [4, 5, 6]))


def test_it_answers_like_the_runner_in_this_process(runner: RunnerProcess) -> None:
    here = make_runner(SETTINGS)
    for each in (runner, here):
        each.announce(call(1, [1, 2, 3]))
        each.announce(call(2, [4, 5, 6]))
    there = [runner.execute(each) for each in PLANS]
    assert [pending.result() for pending in there] == [arrived(here.execute(each).result()) for each in PLANS]
    assert runner.info == here.info
    assert len(there[1].result().tokens) == 2


def test_swaps_and_what_they_cost_pass_through(runner: RunnerProcess) -> None:
    announce_two(runner)
    plans = [
        PLANS[0],
        plan(2, [2], swap_out=[(1, 0)]),
        plan(3, [1], joined={0: 3}, blocks={0: [5]}, swap_in=[(0, 5)]),
    ]
    results = [pending.result() for pending in [runner.execute(each) for each in plans]]
    block = runner.info.block_bytes
    assert [result.swap_bytes for result in results] == [0, block, block]
    assert results[2].handles == [1]
    assert runner.info.host_blocks == 3


def test_a_violation_comes_with_the_plan_and_fails_those_after_it(runner: RunnerProcess) -> None:
    announce_two(runner)
    wrong = runner.execute(plan(1, [5], joined={0: 0}, blocks={0: [1]}))
    after = runner.execute(PLANS[0])
    for pending in (wrong, after):
        with pytest.raises(PlanViolation, match="handle 5 is not known"):
            pending.result()


def test_a_violating_announcement_comes_with_the_next_plan(runner: RunnerProcess) -> None:
    announce_two(runner)
    runner.announce(call(1, [9]))
    with pytest.raises(PlanViolation, match="announced twice"):
        runner.execute(PLANS[0]).result()


def test_a_reset_empties_it_and_lets_it_begin_anew(runner: RunnerProcess) -> None:
    runner.execute(plan(1, [5], joined={0: 0}, blocks={0: [1]}))
    runner.reset()
    announce_two(runner)
    assert runner.execute(PLANS[0]).result().handles == [1, 2]


def test_preparations_are_answered_one_by_one(odd: RunnerProcess) -> None:
    assert odd.prepare(1) == ""
    assert odd.prepare(2) == "bad grammar"
    assert odd.prepare(3) == "the call could not be prepared"


def test_what_the_runner_raises_is_told_with_its_plan(odd: RunnerProcess) -> None:
    announce_two(odd)
    assert [odd.execute(each).result().step for each in PLANS] == [1, 2]
    with pytest.raises(RunnerLost, match="RuntimeError: the device is on fire"):
        odd.execute(plan(3, [1, 2])).result()


def test_a_result_that_cannot_be_sent_is_a_failure_and_no_hang(odd: RunnerProcess) -> None:
    with pytest.raises(RunnerLost, match="a object cannot be sent"):
        odd.execute(plan(5)).result()


def test_columns_may_be_arrays() -> None:
    tokens = array("i", [5, 6])
    result = StepResult(step=1, handles=np.array([1, 2], dtype="<i4"), tokens=tokens, step_s=0.0)  # type: ignore[arg-type]
    assert arrived(result) == StepResult(step=1, handles=[1, 2], tokens=[5, 6], step_s=0.0)


def test_a_process_that_dies_in_a_step_fails_all_that_wait(odd: RunnerProcess) -> None:
    waiting = [odd.execute(StepPlan(step=4, handles=[], chunks={}, joined={}, blocks={}, released=[]))]
    waiting.append(odd.execute(plan(5)))
    for pending in waiting:
        with pytest.raises(RunnerLost, match="ended with code 9"):
            pending.result()
    with pytest.raises(RunnerLost):
        odd.execute(plan(6))
    with pytest.raises(RunnerLost):
        odd.prepare(1)


def test_a_killed_process_is_reported_by_the_next_plan(runner: RunnerProcess) -> None:
    os.kill(runner.pid, signal.SIGKILL)
    with pytest.raises(RunnerLost, match="ended with code -9"):
        runner.execute(PLANS[0]).result()


def test_what_cannot_start_keeps_its_message_and_exit_code() -> None:
    settings = SETTINGS.model_copy(update={"model": "missing"})
    with pytest.raises(StartupError, match="there is no such model") as failure:
        RunnerProcess(settings, module=ODD)
    assert failure.value.exit_code == ExitCode.MODEL_MISSING


def test_a_process_that_dies_while_loading_is_no_hang() -> None:
    settings = SETTINGS.model_copy(update={"model": "dies"})
    with pytest.raises(RunnerLost, match="ended with code 7"):
        RunnerProcess(settings, module=ODD)


def test_the_process_ends_when_its_session_is_killed() -> None:
    session = subprocess.Popen([sys.executable, "-c", SESSION], stdout=subprocess.PIPE)
    assert session.stdout is not None
    with session.stdout:
        process = os.pidfd_open(int(session.stdout.readline()))
    session.kill()
    session.wait()
    ended, _, _ = select.select([process], [], [], 20)
    os.close(process)
    assert ended
