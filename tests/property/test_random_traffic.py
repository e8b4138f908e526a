"""Long seeded runs: heavy traffic on small executors, so that seats, blocks and tokens all run out.

The state machine beside this file finds short stories; this finds what only crowds do. A failure prints its
seed: `pytest tests/property/test_random_traffic.py -k "[7]"` repeats seed 7. `--hypothesis-profile=long` runs
many more of them.
"""

from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from hypothesis import settings

from scheduler_svc.core.config import KvPreempted
from scheduler_svc.core.events import CancelReason, FrontendLost, ProgramCancelled, ProgramEnded
from tests.property.core_options import (
    CALL,
    CORE,
    EXECUTOR,
    EXECUTORS,
    FRONTENDS,
    POLICY_CHANGES,
    PROGRAMS,
    SYSTEM_PROMPT,
    TENANTS,
    Options,
)
from tests.property.core_world import CoreWorld

SEEDS = range(settings().max_examples // 4)


class Traffic:
    """Random events from one seed.

    Args:
        always: Values of options that are not left to chance.
        executors_stay: Nobody is lost, drained or joins late.
    """

    def __init__(self, seed: int, *, executors_stay: bool = False, **always: Any) -> None:
        self.random = Random(seed)
        self.always = always
        self.executors_stay = executors_stay
        self.options = self.draw(CORE) | {"executor_losses_max": 10**6}
        self.world = CoreWorld(self.options, look_every=self.random.choice([1, 1, 10, 10**6]))
        self.rules = self._rules()
        for executor_id in EXECUTORS if executors_stay else EXECUTORS[:1]:
            self.join(executor_id)

    def _rules(self) -> dict[Callable[[], None], float]:
        rules: dict[Callable[[], None], float] = {
            self.submit: 30,
            self.open_program: 8,
            self.end_program: 1,
            self.cancel: 3,
            self.acknowledge: 2,
            self.fail: 1,
            self.prepare: 3,
            self.change_policy: 1,
            self.pass_time: 6,
            self.world.plan: 10,
            self.turn: 40,
        }
        churn: dict[Callable[[], None], float] = {
            self.lose: 1,
            self.join_another: 2,
            self.drain: 0.5,
            self.lose_frontend: 0.2,
        }
        return rules if self.executors_stay else rules | churn

    def draw(self, options: Options) -> dict[str, Any]:
        drawn = {name: self.random.choice(values) for name, values in options.items()}
        return drawn | {name: value for name, value in self.always.items() if name in options}

    def run(self, events: int) -> None:
        """Whatever happens, then peace: everything must end."""
        for tenant in TENANTS:
            for number in range(PROGRAMS):
                self.world.open_program(tenant, f"program-{number}")
        rules, weights = list(self.rules), list(self.rules.values())
        for _ in range(events):
            self.random.choices(rules, weights)[0]()
        if not self.executors_stay:
            self.join("executor-1")
        self.turns = self.world.finish()
        self.world.check_outputs()

    # ── programs and calls ──────────────────────────────────────────────────────────────────────────

    def any_program(self) -> str:
        return f"program-{self.random.randrange(PROGRAMS)}"

    def open_program(self) -> None:
        single_call = self.random.random() < 0.5
        self.world.open_program(self.random.choice(TENANTS), self.any_program(), single_call=single_call)

    def end_program(self) -> None:
        how = self.random.choice([ProgramEnded, ProgramEnded, ProgramCancelled])
        self.world.end_program(self.random.choice(TENANTS), self.any_program(), how)

    def submit(self) -> None:
        length = self.random.randint(1, 40)
        prompt = SYSTEM_PROMPT[:length] if self.random.random() < 0.5 else length
        parents = self.random.choice([[], [], [1], [1, 2], [3], [9, 10], [0]])
        self.world.submit_drawn(self.any_program(), prompt, self.draw(CALL), parents)

    def cancel(self) -> None:
        if self.world.specs:
            reason = self.random.choice([CancelReason.CLIENT, CancelReason.STOP_STRING])
            self.world.cancel(self.random.choice(list(self.world.specs)[-20:]), reason)

    def acknowledge(self) -> None:
        if self.world.finished:
            self.world.acknowledge(self.random.choice(list(self.world.finished)))

    def fail(self) -> None:
        if self.world.specs:
            self.world.fail_soon(self.random.choice(list(self.world.specs)[-20:]))

    def lose_frontend(self) -> None:
        self.world.feed(FrontendLost(frontend_id=FRONTENDS[1]))

    # ── executors, policy, time ─────────────────────────────────────────────────────────────────────

    def join(self, executor_id: str) -> None:
        self.world.join_drawn(executor_id, self.draw(EXECUTOR), self.random.choice([0.01, 1.0, 1.0]))

    def join_another(self) -> None:
        self.join(self.random.choice(EXECUTORS))

    def lose(self) -> None:
        if self.world.executors:
            self.world.lose(self.random.choice(list(self.world.executors)))

    def drain(self) -> None:
        if self.world.executors:
            self.world.drain(self.random.choice(list(self.world.executors)))

    def prepare(self) -> None:
        if self.world.to_prepare:
            self.world.prepare_one(error=self.random.choice(["", "", "broken on purpose"]))

    def change_policy(self) -> None:
        changes = self.draw(POLICY_CHANGES)
        some = {name: value for name, value in changes.items() if self.random.random() < 0.5}
        self.world.change_policy(some)

    def pass_time(self) -> None:
        self.world.pass_time(self.random.choice([0.1, 0.1, 1.0, 3.0, 31.0]))

    def turn(self) -> None:
        self.world.turn()


@pytest.mark.parametrize("seed", SEEDS)
def test_every_call_generates_what_it_would_generate_alone(seed: int) -> None:
    """Under whatever options, with cancels, failures, losses, drains and changes of policy; and all ends."""
    traffic = Traffic(seed)
    traffic.run(events=150)
    statistics = traffic.world.core.statistics()
    ended = statistics.calls_finished + statistics.calls_cancelled + statistics.calls_failed
    assert (statistics.live_calls, statistics.calls_submitted) == (0, ended)


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in CORE.items() for value in dict.fromkeys(values)]
)
def test_everything_ends_with_every_option(name: str, value: object) -> None:
    for seed in range(2):
        Traffic(1000 + seed, **{name: value}).run(events=80)


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_is_computed_again_while_the_host_has_room(seed: int) -> None:
    """Forced swaps, whatever they cost, and everybody stays where it is."""
    swaps = {"kv_preempted": KvPreempted.SWAP, "host_blocks": 500, "block_bytes": (seed % 2) << 40}
    traffic = Traffic(seed, executors_stay=True, skip_reading_prefix_cache=False, **swaps)
    traffic.run(events=150)
    assert traffic.world.core.statistics().recomputed_tokens == 0


def test_the_traffic_is_heavy_enough_to_mean_something() -> None:
    traffics = [Traffic(seed) for seed in range(12)]
    for traffic in traffics:
        traffic.run(events=150)
    seen: Counter[str] = Counter()
    for traffic in traffics:
        seen.update({name: getattr(traffic.world.core.statistics(), name) for name in HEAVY})
    assert {name: count for name, count in seen.items() if count < HEAVY[name]} == {}


HEAVY = {
    "preemptions": 100,
    "promotions": 10,
    "demotions": 50,
    "recomputed_tokens": 300,
    "cached_tokens": 300,
    "swapped_out_blocks": 50,
    "swapped_in_blocks": 20,
    "evicted_blocks": 50,
    "calls_cancelled": 20,
    "calls_failed": 20,
    "calls_finished": 200,
}
"""The least that twelve runs must bring."""


def test_the_same_seed_gives_the_same_plans() -> None:
    traces = []
    for _ in range(2):
        traffic = Traffic(seed=3)
        traffic.run(events=100)
        traces.append([executor.plans for executor in traffic.world.executors.values()])
    assert traces[0] == traces[1]
