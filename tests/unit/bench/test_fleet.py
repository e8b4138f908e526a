"""The load generator of `bench.fleet`: its devices keep their own time, its client notices a wrong token."""

import asyncio
from collections.abc import Callable
from typing import cast

import grpc
import numpy as np
import pytest

from bench.fleet_client import FleetClient, prompt_of
from bench.fleet_executors import NoWaiting, window
from bench.fleet_stepper import Beat, LoopStepper
from executor_svc.cost_model import step_cost
from executor_svc.simulated_runner import SimulatedConfig, SimulatedRunner
from executor_svc.simulated_tokens import TokenRule
from executor_svc.stepper import Outcome, Prepared, Stepped, Violated
from svc_runtime.columns import pack_i32
from tests.unit.executor_svc.plan_writer import call, plan

RULE = TokenRule(vocab_size=1000)
STEP_S = 0.02
PATIENCE_S = 10.0


class Device:
    """A stepper at 20 ms a step, and what came out of it."""

    def __init__(self) -> None:
        config = SimulatedConfig(
            model="m",
            model_fingerprint="f",
            tokenizer_fingerprint="t",
            cost_name="fixed:20ms",
            cost=step_cost("fixed:20ms"),
            tokens=RULE,
        )
        self.stepper = LoopStepper(SimulatedRunner(config, clock=NoWaiting()))
        self.outcomes: list[tuple[float, Outcome]] = []
        self.stepper.deliver_to(self._take)
        self.stepper.announce(1, [call(1)])

    def start(self) -> None:
        """Plan 1 of epoch 1: the prompt of call 1."""
        self.stepper.execute(1, plan(1, [1], chunks={0: 3}, joined={0: 0}, blocks={0: [1]}))

    async def until(self, condition: Callable[[], bool]) -> None:
        """Waits for outcomes."""
        async with asyncio.timeout(PATIENCE_S):
            while not condition():  # noqa: ASYNC110 - set by timers
                await asyncio.sleep(0.001)

    def _take(self, outcome: Outcome) -> None:
        self.outcomes.append((asyncio.get_running_loop().time(), outcome))


async def test_a_plan_that_is_there_in_time_starts_when_the_step_before_ends() -> None:
    device = Device()
    device.start()
    device.stepper.execute(1, plan(2, [1]))
    await device.until(lambda: len(device.outcomes) == 2)
    first_s, second_s = device.stepper.beat.starts_s
    assert second_s - first_s == pytest.approx(STEP_S, abs=1e-9)
    assert device.stepper.beat.waited_s == [0.0, pytest.approx(STEP_S, abs=5e-3)]
    assert all(late_s >= 0 for late_s in device.stepper.beat.late_s)
    assert device.outcomes[1][0] >= first_s + 2 * STEP_S
    tokens = [
        token for _, each in device.outcomes if isinstance(each, Stepped) for token in each.result.tokens
    ]
    assert tokens == RULE.generate([1, 2, 3], 2)


async def test_a_plan_that_comes_late_starts_when_it_comes() -> None:
    device = Device()
    device.start()
    await device.until(lambda: len(device.outcomes) == 1)
    came_s = asyncio.get_running_loop().time()
    device.stepper.execute(1, plan(2, [1]))
    assert device.stepper.beat.starts_s[1] >= came_s
    assert device.stepper.beat.waited_s[1] == 0.0
    device.stepper.close()


async def test_a_violation_stops_the_epoch_until_reset() -> None:
    device = Device()
    device.stepper.execute(1, plan(1, [9]))
    device.start()
    assert [type(outcome) for _, outcome in device.outcomes] == [Violated]
    await device.stepper.reset()
    device.stepper.announce(2, [call(1, prepare=True)])
    device.stepper.execute(2, plan(1, [1], chunks={0: 3}, joined={0: 0}, blocks={0: [1]}))
    await device.until(lambda: len(device.outcomes) == 3)
    assert [(type(outcome), outcome.epoch) for _, outcome in device.outcomes[1:]] == [
        (Prepared, 2),
        (Stepped, 2),
    ]
    assert device.stepper.beat.resets == 1


def test_a_window_takes_the_steps_that_began_in_it() -> None:
    starts_s = [0.01 * index for index in range(100)] + [1.5]
    beat = Beat(starts_s, [4] * 50 + [8] * 51, [0.002] * 101, [0.001] * 101)
    figures = window(beat, 0.5, 1.0)
    assert figures["steps"] == 49
    assert figures["rows_min"] == 8
    assert figures["period_ms"] == pytest.approx(10)
    assert figures["plan_ahead_ms"] == pytest.approx(2)
    assert window(beat, 0.8, 2.0)["period_p99_ms"] > 400


def received(calls: int, tokens: int) -> tuple[FleetClient, list[tuple[int, int]]]:
    """A client, and what must come for its calls, step after step."""
    client = FleetClient(cast(grpc.aio.Channel, None), calls, programs=1, max_tokens=tokens)
    lines = [RULE.generate(prompt_of(handle), tokens) for handle in range(calls)]
    return client, [(handle, line[index]) for index in range(tokens) for handle, line in enumerate(lines)]


def deliver(client: FleetClient, entries: list[tuple[int, int]]) -> None:
    """As messages of five entries."""
    for start in range(0, len(entries), 5):
        handles, tokens = zip(*entries[start : start + 5], strict=True)
        client.columns.append((pack_i32(handles), pack_i32(tokens)))


def test_right_tokens_pass_the_check() -> None:
    client, entries = received(calls=3, tokens=6)
    deliver(client, entries[:-1])
    assert client.check(RULE) == 5


@pytest.mark.parametrize("damage", ["lost", "twice", "changed", "of another call"])
def test_a_wrong_token_is_found(damage: str) -> None:
    client, entries = received(calls=3, tokens=6)
    handle, token = entries[7]
    if damage == "lost":
        del entries[7]
    elif damage == "twice":
        entries.insert(7, entries[7])
    elif damage == "changed":
        entries[7] = handle, (token + 1) % RULE.vocab_size
    else:
        entries[7] = (handle + 1) % 3, token
    deliver(client, entries)
    with pytest.raises(RuntimeError, match="is not the one that must come"):
        client.check(RULE)


def test_prompts_differ() -> None:
    prompts = np.array([prompt_of(handle) for handle in range(40_000)])
    assert len(np.unique(prompts[:, :2], axis=0)) == 40_000
