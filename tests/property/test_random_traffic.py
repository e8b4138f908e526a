"""Long seeded runs: heavy traffic on small executors, so that seats, blocks and tokens all run out.

The state machine beside this file finds short stories; this finds what only crowds do. A failure prints its
seed: `pytest tests/property/test_random_traffic.py -k "[7]"` repeats seed 7.
"""

from random import Random
from typing import Any

import pytest

from scheduler_svc.core.effects import FinishReason
from scheduler_svc.core.ids import CallId
from tests.unit.scheduler_core.obedient_executor import VOCAB_SIZE, expected_output
from tests.unit.scheduler_core.world import World, executor_spec

EXECUTORS = ("executor-1", "executor-2")


class Traffic:
    """Random events from one seed."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.epoch = 0
        self.prefix = [self.random.randrange(VOCAB_SIZE) for _ in range(40)]
        pick = self.random.choice
        self.world = World(
            executors=(),
            policy=pick(["fcfs", "program_fcfs", "mlfq", "plas", "atlas", "gittins"]),
            first_quantum_s=pick([2.0, 10.0]),
            starvation_beta=pick([None, 3.0, 10.0]),
            short_prompt_tokens=pick([0, 8, 2048]),
            executor_losses_max=10**6,
        )
        self.join("executor-1")

    def join(self, executor_id: str) -> None:
        pick = self.random.choice
        self.epoch += 1
        spec = executor_spec(
            executor_id,
            epoch=self.epoch,
            num_blocks=pick([17, 24, 33, 65]),
            max_model_len=64,
            max_num_seqs=pick([1, 2, 4, 8]),
            max_num_batched_tokens=pick([8, 16, 64]),
            max_plans_in_flight=pick([1, 2, 3]),
        )
        self.world.join(spec)

    def submit(self) -> None:
        pick = self.random.choice
        length = self.random.randint(1, 30)
        changes: dict[str, Any] = {
            "prompt": self.prefix[:length] if self.random.random() < 0.6 else length,
            "max_tokens": self.random.randint(1, 30),
            "stop_token_ids": pick([frozenset(), frozenset(), frozenset(range(100, 130))]),
            "needs_preparation": self.random.random() < 0.2,
            "skip_reading_prefix_cache": self.random.random() < 0.1,
        }
        self.world.submit(f"program-{self.random.randrange(self.programs)}", **changes)

    def run(self, events: int) -> None:
        self.programs = 6
        for number in range(self.programs):
            self.world.open(f"program-{number}")
        for _ in range(events):
            self.do_something()
        for executor_id in EXECUTORS:
            if executor_id not in self.world.executors:
                self.join(executor_id)
        self.world.run()

    def do_something(self) -> None:
        world, dice = self.world, self.random.random()
        if dice < 0.35:
            self.submit()
        elif dice < 0.40 and world.specs:
            world.cancel(self.random.choice(list(world.specs)))
        elif dice < 0.41 and world.executors:
            world.lose(self.random.choice(list(world.executors)))
        elif dice < 0.44:
            missing = [name for name in EXECUTORS if name not in world.executors]
            if missing:
                self.join(missing[0])
        elif dice < 0.50:
            world.pass_time(self.random.random() * 3)
        elif dice < 0.60:
            world.plan()
        else:
            world.turn()


def check_output(world: World, call_id: CallId) -> None:
    output, expected = world.outputs[call_id], expected_output(world.specs[call_id])
    if world.finished[call_id].reason is FinishReason.ABORT:
        assert output == expected[: len(output)]
    else:
        assert output == expected


@pytest.mark.parametrize("seed", range(25))
def test_every_call_generates_what_it_would_generate_alone(seed: int) -> None:
    traffic = Traffic(seed)
    traffic.run(events=150)
    for call_id in traffic.world.specs:
        check_output(traffic.world, call_id)
    statistics = traffic.world.core.statistics()
    ended = statistics.calls_finished + statistics.calls_cancelled
    assert (statistics.live_calls, ended) == (0, len(traffic.world.specs))
    assert not traffic.world.closed


def test_the_traffic_is_heavy_enough_to_mean_something() -> None:
    traffics = [Traffic(seed) for seed in range(6)]
    for traffic in traffics:
        traffic.run(events=150)
    seen = [traffic.world.core.statistics() for traffic in traffics]
    assert sum(statistics.preemptions for statistics in seen) > 100
    assert sum(statistics.recomputed_tokens for statistics in seen) > 500
    assert sum(statistics.cached_tokens for statistics in seen) > 500
    assert sum(statistics.demotions for statistics in seen) > 50


def test_the_same_seed_gives_the_same_plans() -> None:
    traces = []
    for _ in range(2):
        traffic = Traffic(seed=3)
        traffic.run(events=100)
        traces.append([executor.plans for executor in traffic.world.executors.values()])
    assert traces[0] == traces[1]
