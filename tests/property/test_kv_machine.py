"""The KV cache does what a naive one would do, and every key that is found holds its content (`kv_world`).

Hypothesis looks for short stories; long seeded runs find what only crowds do. A failure of those names its
seed: `pytest tests/property/test_kv_machine.py -k "[7]"` repeats seed 7.
"""

from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from scheduler_svc.core.kv import ProgramKey, retention
from tests.property.kv_world import BLOCKS_MAX, PROGRAMS, PROMPTS, KvWorld

programs = st.sampled_from(PROGRAMS)
owners = st.sampled_from([*PROGRAMS, None])
prompts = st.text("xy", min_size=1, max_size=BLOCKS_MAX)
which = st.integers(0, 6)
tails = st.integers(0, 2)


class KvMachine(RuleBasedStateMachine):
    """Rules are what may happen to a cache; several small steps a rule, so that blocks run out early."""

    @initialize(device_blocks=st.integers(4, 12), host_blocks=st.integers(0, 8))
    def start(self, device_blocks: int, host_blocks: int) -> None:
        self.world = KvWorld(device_blocks=device_blocks, host_blocks=host_blocks)

    @rule(prompt=prompts, tail=tails, program=owners)
    def run_and_end(self, prompt: str, tail: int, program: ProgramKey | None) -> None:
        self.world.look(prompt, tail, program)
        self.world.admit(-1)
        self.world.plan()
        self.world.end(-1, 0)

    @rule(prompt=prompts, tail=tails, program=owners, plan=st.booleans())
    def run_and_pause(self, prompt: str, tail: int, program: ProgramKey | None, plan: bool) -> None:
        self.world.look(prompt, tail, program)
        self.world.admit(-1)
        if plan:
            self.world.plan()
        self.world.pause(-1, "stay")

    @precondition(lambda self: len(self.world.waiting) < 3)
    @rule(prompt=prompts, tail=tails, program=owners)
    def look(self, prompt: str, tail: int, program: ProgramKey | None) -> None:
        self.world.look(prompt, tail, program)

    @precondition(lambda self: self.world.paused)
    @rule(which=which, admit=st.booleans())
    def look_again(self, which: int, admit: bool) -> None:
        self.world.look_again(which)
        if admit:
            self.world.admit(-1)

    @precondition(lambda self: self.world.waiting)
    @rule(which=which, then=st.sampled_from(["admit", "admit", "give_up"]))
    def decide(self, which: int, then: str) -> None:
        if then == "admit":
            self.world.admit(which)
        else:
            self.world.give_up(which)

    @precondition(lambda self: self.world.running)
    @rule(which=which, block=st.integers(0, BLOCKS_MAX))
    def publish(self, which: int, block: int) -> None:
        self.world.publish(which, block)

    @precondition(lambda self: self.world.running)
    @rule(which=which, fewer=st.integers(0, 1))
    def end(self, which: int, fewer: int) -> None:
        self.world.end(which, fewer)

    @precondition(lambda self: self.world.running)
    @rule(which=which, then=st.sampled_from(["stay", "expel", "drop"]))
    def pause(self, which: int, then: str) -> None:
        self.world.pause(which, then)

    @precondition(lambda self: self.world.paused)
    @rule(which=which)
    def cancel_paused(self, which: int) -> None:
        self.world.cancel_paused(which)

    @rule(program=programs, what=st.sampled_from(["active", "idle", "idle", "ended"]))
    def program(self, program: ProgramKey, what: str) -> None:
        getattr(self.world, what)(program)

    @rule(prompt=prompts, force=st.sampled_from(["drop", "expel"]))
    def force(self, prompt: str, force: str) -> None:
        getattr(self.world, force)(prompt)

    @rule(worth_it=st.booleans())
    def price(self, worth_it: bool) -> None:
        self.world.price(worth_it)

    @rule()
    def plan(self) -> None:
        self.world.plan()

    @invariant()
    def both_agree(self) -> None:
        self.world.check()


KvMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestKvMachine = KvMachine.TestCase


def random_step(world: KvWorld, random: Random) -> None:
    """One of the things that may happen, with weights that keep both tiers full."""
    some, program = random.randrange(100), random.choice(PROGRAMS)
    step = random.random()
    if step < 0.22:
        world.look(random.choice(PROMPTS), random.randrange(3), random.choice([*PROGRAMS, None]))
    elif step < 0.30:
        world.look_again(some)
    elif step < 0.52:
        world.admit(some)
    elif step < 0.56:
        world.give_up(some)
    elif step < 0.62:
        world.publish(some, random.randrange(BLOCKS_MAX))
    elif step < 0.70:
        world.end(some, random.randrange(2))
    elif step < 0.78:
        world.pause(some, random.choice(["stay", "stay", "stay", "expel", "drop"]))
    elif step < 0.80:
        world.cancel_paused(some)
    elif step < 0.88:
        random.choice([world.active, world.idle, world.idle, world.ended])(program)
    elif step < 0.89:
        random.choice([world.drop, world.expel])(random.choice(PROMPTS))
    elif step < 0.90:
        world.price(random.random() < 0.8)
    else:
        world.plan()


def make_tidy(world: KvWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stale entries are thrown away whenever one is added; pairs of ended programs are settled at once."""
    monkeypatch.setattr(retention, "_SPARE_ENTRIES", -100)
    store = world.cache._store
    store.retention._ended_pairs_max = -1
    store.retention._entries_max = [0, 0]
    heaps = [store.host.by_age]
    for tier in (store.device, store.host):
        heaps += [tier.lapsed._ended, tier.lapsed._idle]
    for heap in heaps:
        heap._entries_max = 0


@pytest.mark.parametrize("tidy", [False, True], ids=["lazy", "tidy"])
@pytest.mark.parametrize("seed", range(20))
def test_crowds(seed: int, tidy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether work is put off as long as can be or done early: nobody can tell the difference."""
    random = Random(seed)
    world = KvWorld(device_blocks=random.randint(4, 30), host_blocks=random.choice([0, 3, 8, 20]))
    if tidy:
        make_tidy(world, monkeypatch)
    for _ in range(400):
        random_step(world, random)
        if len(world.waiting) > 4:
            world.give_up(0)
        if len(world.paused) > 8:
            world.cancel_paused(0)
        world.check()
    for _ in range(len(world.running)):
        world.end(0, 0)
    for _ in range(len(world.waiting)):
        world.give_up(0)
    world.plan()
    world.check()
    assert world.cache.available == world.cache.size
    assert world.plans > 20
