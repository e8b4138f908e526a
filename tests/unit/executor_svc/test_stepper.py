"""The threads around a runner: order, outcomes, and what follows a violation."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from executor_svc.stepper import Outcome, Prepared, Stepped, Stepper, Violated
from tests.unit.executor_svc.fake_runner import FakeRunner
from tests.unit.executor_svc.plan_writer import call, plan
from tests.unit.executor_svc.waiting import until


@dataclass
class Driven:
    """A stepper, its runner and what came out."""

    stepper: Stepper
    runner: FakeRunner
    outcomes: list[Outcome] = field(default_factory=list)


@pytest.fixture
async def driven() -> AsyncIterator[Driven]:
    """A started stepper."""
    runner = FakeRunner()
    each = Driven(Stepper(lambda: runner), runner)
    each.stepper.deliver_to(each.outcomes.append)
    await each.stepper.start()
    yield each
    runner.steps_may_end.set()
    await each.stepper.close()
    assert runner.log[-1] == "close"


async def test_outcomes_carry_their_epoch(driven: Driven) -> None:
    driven.stepper.announce(7, [call(1, prepare=True)])
    driven.stepper.execute(7, plan(1, [1]))
    await until(lambda: len(driven.outcomes) == 2)
    assert {type(outcome) for outcome in driven.outcomes} == {Prepared, Stepped}
    assert {outcome.epoch for outcome in driven.outcomes} == {7}


async def test_after_a_violation_the_rest_of_the_epoch_is_skipped(driven: Driven) -> None:
    driven.stepper.execute(1, plan(1, [9]))
    driven.stepper.announce(1, [call(2)])
    driven.stepper.execute(1, plan(2))
    await driven.stepper.reset()
    assert driven.runner.log == ["execute 1", "reset"]
    assert [type(outcome) for outcome in driven.outcomes] == [Violated]
    driven.stepper.execute(2, plan(1))
    await until(lambda: len(driven.outcomes) == 2)
    assert driven.outcomes[-1].epoch == 2


async def test_reset_waits_for_preparations_and_drops_those_not_begun(driven: Driven) -> None:
    begun: list[int] = []
    loop = asyncio.get_running_loop()
    entered = asyncio.Event()

    def slow(handle: int) -> str:
        begun.append(handle)
        loop.call_soon_threadsafe(entered.set)
        assert driven.runner.steps_may_end.wait(10)
        return ""

    driven.runner.steps_may_end.clear()
    driven.runner.prepare_answer = slow
    driven.stepper.announce(1, [call(handle, prepare=True) for handle in range(1, 9)])
    await entered.wait()
    resetting = asyncio.create_task(driven.stepper.reset())
    await until(lambda: "announce 8" in driven.runner.log)
    assert "reset" not in driven.runner.log
    driven.runner.steps_may_end.set()
    await resetting
    assert driven.runner.log[-1] == "reset"
    prepared = [outcome.handle for outcome in driven.outcomes if isinstance(outcome, Prepared)]
    assert sorted(prepared) == sorted(begun)


async def test_an_error_while_making_the_runner_reaches_the_caller() -> None:
    def make() -> FakeRunner:
        raise ValueError("no device")

    with pytest.raises(ValueError, match="no device"):
        await Stepper(make).start()
