"""A waiting call that did not fit is not looked up at every step; nor does it wait for that."""

import pytest

from tests.unit.scheduler_core.world import World, assert_right_outputs, executor_spec


@pytest.mark.parametrize("prompt", [3, 4, 5])
def test_a_call_that_only_lacked_a_seat_gets_the_next_one(prompt: int) -> None:
    """The one that runs on enters a new block in the same plan: no more memory is free than before."""
    spec = executor_spec(max_plans_in_flight=1, max_num_seqs=2)
    world = World(executors=[spec], policy="mlfq", first_quantum_s=2.5, preemption_grace_s=1000.0)
    for name in "abc":
        world.open(name)
    world.submit("a", prompt=1, max_tokens=4)
    for _ in range(3):
        world.turn()
    runs_on = world.submit("b", prompt=prompt, max_tokens=9)
    waits = world.submit("c", prompt=1, max_tokens=2)
    world.turn()
    assert waits not in world.started, "a call that has just started keeps its seat"
    world.plan()
    assert world.batch() == [runs_on, waits]
    world.run()
    assert_right_outputs(world)
