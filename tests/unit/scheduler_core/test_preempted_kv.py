"""What becomes of the KV of a preempted call: paused, swapped or dropped, and found again to the token."""

from collections.abc import Callable
from typing import Any

import pytest

from scheduler_svc.core.config import KvPreempted
from scheduler_svc.core.events import CancelReason
from scheduler_svc.core.ids import CallId
from tests.unit.scheduler_core.world import World, assert_right_outputs, executor_spec

LOCKSTEP_AND_AHEAD = pytest.mark.parametrize("plans", [1, 2])


def world_of(*, kv: KvPreempted, plans: int = 2, quantum_s: float = 2.0, **spec: Any) -> World:
    """One executor on which calls of several levels take turns."""
    changes = {"max_plans_in_flight": plans, "block_bytes": 1024} | spec
    return World(executors=[executor_spec(**changes)], kv_preempted=kv, first_quantum_s=quantum_s)


def take_turns(world: World, *, long: int = 2, short: int = 12, prompt: int = 9) -> list[CallId]:
    """Long calls are preempted again and again by short ones of new programs."""
    calls = []
    for number in range(long):
        world.open(f"long-{number}")
        calls.append(world.submit(f"long-{number}", prompt=prompt, max_tokens=40))
    for number in range(short):
        for _ in range(4):
            world.turn()
        world.open(f"short-{number}", single_call=True)
        world.submit(f"short-{number}", prompt=6, max_tokens=2)
    world.run()
    return calls


@LOCKSTEP_AND_AHEAD
def test_a_paused_call_recomputes_nothing(plans: int) -> None:
    world = world_of(kv=KvPreempted.PAUSE, plans=plans, max_num_seqs=2)
    take_turns(world)
    statistics = world.core.statistics()
    assert statistics.preemptions >= 5
    assert statistics.recomputed_tokens == 0
    assert not any(plan.swap_out or plan.swap_in for plan in world.plans())
    assert_right_outputs(world)


@LOCKSTEP_AND_AHEAD
def test_a_swapped_call_recomputes_nothing(plans: int) -> None:
    world = world_of(kv=KvPreempted.SWAP, plans=plans, max_num_seqs=2, host_blocks=64)
    take_turns(world)
    statistics = world.core.statistics()
    assert statistics.preemptions >= 5
    assert statistics.recomputed_tokens == 0
    assert sum(len(plan.swap_out) for plan in world.plans()) >= statistics.preemptions
    assert sum(len(plan.swap_in) for plan in world.plans()) >= statistics.preemptions
    assert_right_outputs(world)


@LOCKSTEP_AND_AHEAD
def test_a_dropped_call_recomputes_and_goes_on(plans: int) -> None:
    world = world_of(kv=KvPreempted.DROP, plans=plans, max_num_seqs=2, host_blocks=64)
    take_turns(world)
    statistics = world.core.statistics()
    assert statistics.recomputed_tokens > statistics.preemptions >= 5
    assert_right_outputs(world)


@LOCKSTEP_AND_AHEAD
def test_memory_pressure_moves_kv_to_the_host_and_back(plans: int) -> None:
    """Three calls whose KV does not fit together, on a host that has room for all of it."""
    world = world_of(kv=KvPreempted.SWAP, plans=plans, num_blocks=21, host_blocks=200)
    for number in range(3):
        world.open(f"p{number}")
        world.submit(f"p{number}", prompt=20, max_tokens=40)
    world.run()
    statistics = world.core.statistics()
    assert statistics.preemptions > 0
    assert statistics.recomputed_tokens == 0
    assert any(plan.swap_in for plan in world.plans())
    assert_right_outputs(world)


def test_without_a_host_memory_pressure_costs_recomputation() -> None:
    world = world_of(kv=KvPreempted.AUTO, num_blocks=21, host_blocks=0)
    for number in range(3):
        world.open(f"p{number}")
        world.submit(f"p{number}", prompt=20, max_tokens=40)
    world.run()
    assert world.core.statistics().recomputed_tokens > 0
    assert_right_outputs(world)


@pytest.mark.parametrize(("block_bytes", "moves"), [(1, True), (1 << 40, False)])
def test_auto_moves_kv_when_copies_are_cheaper_than_computing(block_bytes: int, moves: bool) -> None:
    world = world_of(kv=KvPreempted.AUTO, num_blocks=21, host_blocks=200, block_bytes=block_bytes)
    for number in range(3):
        world.open(f"p{number}")
        world.submit(f"p{number}", prompt=20, max_tokens=40)
    world.run()
    assert any(plan.swap_out for plan in world.plans()) == moves
    assert (world.core.statistics().recomputed_tokens == 0) == moves
    assert_right_outputs(world)


@LOCKSTEP_AND_AHEAD
def test_a_forced_swap_does_not_ask_what_it_costs(plans: int) -> None:
    """Blocks that another call held when theirs was preempted leave the device later: for the host as well,
    although computing them again would be cheaper."""
    spec = executor_spec(num_blocks=12, host_blocks=64, block_bytes=1 << 40, max_plans_in_flight=plans)
    world = World(executors=[spec], kv_preempted=KvPreempted.SWAP, policy="fcfs")
    world.open("p")
    prompt = [*range(1, 21)]
    world.submit("p", prompt=prompt, max_tokens=8)
    for _ in range(2):
        world.turn()
    world.submit("p", prompt=10, max_tokens=30)
    world.submit("p", prompt=[*prompt, 7], max_tokens=20)
    world.run()
    statistics = world.core.statistics()
    assert statistics.preemptions > 0
    assert statistics.recomputed_tokens == 0
    assert_right_outputs(world)


@LOCKSTEP_AND_AHEAD
@pytest.mark.parametrize("kv", list(KvPreempted))
def test_a_call_preempted_in_mid_prefill_goes_on_there(kv: KvPreempted, plans: int) -> None:
    world = world_of(kv=kv, plans=plans, max_num_seqs=1, host_blocks=64, quantum_s=1.5, prefix_caching=False)
    world.open("long")
    world.submit("long", prompt=60, max_tokens=3)
    world.turn()
    world.turn()
    world.open("short")
    world.submit("short", prompt=3, max_tokens=2)
    world.run()
    assert world.core.statistics().preemptions >= 1
    assert (world.core.statistics().recomputed_tokens > 0) == (kv is KvPreempted.DROP)
    assert_right_outputs(world)


@LOCKSTEP_AND_AHEAD
def test_a_call_that_is_cancelled_while_paused_leaves_nothing_behind(plans: int) -> None:
    world = world_of(kv=KvPreempted.PAUSE, plans=plans, max_num_seqs=1, prefix_caching=False)
    world.open("long")
    long = world.submit("long", prompt=9, max_tokens=40)
    for _ in range(4):
        world.turn()
    world.open("short")
    world.submit("short", prompt=3, max_tokens=4)
    world.turn()
    executor = world.core.fleet.get(executor_spec().executor_id)
    assert executor is not None
    call = world.core.registry.live(long)
    assert call is not None
    assert call.kept is not None
    world.cancel(long, CancelReason.CLIENT)
    world.run()
    assert executor.kv.plain == executor.kv.size


@pytest.mark.parametrize(
    "change", [lambda world: world.lose(), lambda world: world.join(executor_spec(epoch=2))]
)
def test_what_a_lost_executor_held_is_computed_again(change: Callable[[World], object]) -> None:
    world = world_of(kv=KvPreempted.SWAP, max_num_seqs=1, host_blocks=64)
    world.open("long")
    world.submit("long", prompt=9, max_tokens=20)
    for _ in range(4):
        world.turn()
    world.open("short")
    world.submit("short", prompt=3, max_tokens=4)
    world.turn()
    change(world)
    world.join(executor_spec(epoch=3))
    world.run()
    assert world.core.statistics().recomputed_tokens > 0
    assert_right_outputs(world)


def test_recomputing_uses_up_no_quantum() -> None:
    """Else calls whose prompts take longer than a quantum would push each other out of memory for ever."""
    world = world_of(kv=KvPreempted.DROP, plans=1, max_num_seqs=1, quantum_s=2.5, prefix_caching=False)
    world.open("long")
    long = world.submit("long", prompt=48, max_tokens=6)
    for _ in range(4):
        world.turn()
    world.open("short")
    world.submit("short", prompt=3, max_tokens=1)
    world.turn()
    call = world.core.registry.live(long)
    assert call is not None
    assert call.preemptions == 1
    level, used_ps, service_ps = call.level, call.quantum_used_ps, call.service_ps
    for _ in range(3):
        world.turn()
    assert call.service_ps > service_ps, "the time is booked"
    assert (call.level, call.quantum_used_ps) == (level, used_ps)
    world.run()
    assert_right_outputs(world)
