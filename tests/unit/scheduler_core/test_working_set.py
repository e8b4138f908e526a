"""Working-set admission: new programs wait while the KV of the live ones fills the memory."""

from typing import Any

import pytest

from scheduler_svc.core.config import Admission
from scheduler_svc.core.events import ProgramEnded
from scheduler_svc.core.ids import CallId, ProgramId
from tests.unit.scheduler_core.world import TENANT, World, assert_right_outputs, executor_spec


def world_of(*, admission: Admission = Admission.WORKING_SET, **changes: Any) -> World:
    """One executor with 20 blocks of 4 tokens."""
    return World(executors=[executor_spec(num_blocks=21, **changes)], admission=admission)


def keep_busy(world: World) -> None:
    """A long call that counts with 2 blocks: an executor without work would let anyone in."""
    world.open("busy")
    world.submit("busy", prompt=4, max_tokens=40)


def run_a_while(world: World) -> None:
    """Long enough for every first call, and the long call still runs."""
    for _ in range(12):
        world.turn()
    assert world.core.statistics().live_calls > 0


def busy_world(programs: str) -> World:
    """A world with a long call, in which each of these programs has made its first call."""
    world = world_of()
    keep_busy(world)
    for name in programs:
        first_call(world, name)
    run_a_while(world)
    return world


def waiting_programs(world: World) -> int:
    return world.core.statistics().waiting_programs


def first_call(world: World, name: str, *, prompt: int = 20) -> None:
    world.open(name)
    world.submit(name, prompt=prompt, max_tokens=4)


def test_a_new_program_waits_while_the_live_ones_fill_the_memory() -> None:
    world = busy_world("abc")
    assert waiting_programs(world) == 0, "three programs of 6 blocks fit into 18"
    first_call(world, "d")
    run_a_while(world)
    assert waiting_programs(world) == 1, "the others are in tool calls and will come back"
    assert [program.live_calls for program in world.core.programs()] == [1, 0, 0, 0, 1]


def test_without_the_option_nobody_waits_for_memory_that_is_only_retained() -> None:
    world = world_of(admission=Admission.NONE)
    for name in "abcd":
        first_call(world, name)
    world.run()
    assert waiting_programs(world) == 0
    assert_right_outputs(world)


def test_it_is_let_in_when_another_program_ends() -> None:
    world = busy_world("abcd")
    assert waiting_programs(world) == 1
    world.feed(ProgramEnded(tenant=TENANT, program_id=ProgramId("a")))
    world.turn()
    assert waiting_programs(world) == 0
    world.run()
    assert_right_outputs(world)


def test_it_is_let_in_when_another_program_idles() -> None:
    world = busy_world("abcd")
    assert waiting_programs(world) == 1
    world.pass_time(31.0)
    world.turn()
    assert waiting_programs(world) == 0
    world.run()
    assert_right_outputs(world)


def test_a_program_that_was_let_in_never_waits_again() -> None:
    world = busy_world("abc")
    world.submit("a", prompt=40, max_tokens=8)
    assert waiting_programs(world) == 0
    world.run()
    assert_right_outputs(world)


def test_programs_that_arrive_together_are_counted_before_their_prompts_are_computed() -> None:
    world = world_of()
    for name in "abcdef":
        first_call(world, name)
    world.plan()
    assert waiting_programs(world) == 3


def test_an_idle_executor_lets_a_program_in_whatever_its_size() -> None:
    world = world_of()
    first_call(world, "a", prompt=30)
    world.run()
    first_call(world, "b", prompt=70)
    world.run()
    assert waiting_programs(world) == 0
    assert_right_outputs(world)


def test_shared_prefixes_of_a_tree_count_once() -> None:
    """Eight branches over a common prefix of 40 tokens: ten blocks, not eighty."""
    world = world_of()
    keep_busy(world)
    world.open("tree")
    prefix = [*range(100, 140)]
    for branch in range(8):
        world.submit("tree", prompt=[*prefix, 500 + branch], max_tokens=2)
    run_a_while(world)
    first_call(world, "b", prompt=24)
    world.turn()
    assert waiting_programs(world) == 0
    world.run()
    assert_right_outputs(world)


def test_a_waiting_call_can_be_cancelled_and_timed_out() -> None:
    world = busy_world("abc")
    world.open("d")
    world.open("e")
    gone = world.submit("d", prompt=20)
    late = world.submit("e", prompt=20, deadline_s=5.0)
    world.plan()
    assert waiting_programs(world) == 2
    world.cancel(gone)
    world.pass_time(6.0)
    assert waiting_programs(world) == 0
    assert {gone, late} <= world.finished.keys()


@pytest.mark.parametrize("over", [ProgramEnded, None], ids=["ended", "idle"])
def test_room_for_a_program_that_never_ran_is_given_to_others(over: type[ProgramEnded] | None) -> None:
    """Its only call is cancelled after it was let in and before it got a seat."""
    spec = executor_spec(num_blocks=21, max_num_seqs=1)
    world = World(executors=[spec], admission=Admission.WORKING_SET, policy="fcfs")
    keep_busy(world)
    first_call(world, "a", prompt=60)
    world.turn()
    assert waiting_programs(world) == 0, "let in, and waiting for a seat"
    assert CallId("call-2") not in world.started
    first_call(world, "b")
    world.turn()
    assert waiting_programs(world) == 1
    world.cancel(CallId("call-2"))
    if over is None:
        world.pass_time(31.0)
    else:
        world.feed(over(tenant=TENANT, program_id=ProgramId("a")))
    world.turn()
    assert waiting_programs(world) == 0
    world.run()
    assert_right_outputs(world, but=[CallId("call-2")])


def test_calls_at_the_gate_move_when_the_executor_is_lost() -> None:
    world = busy_world("abcd")
    assert waiting_programs(world) == 1
    world.lose()
    world.join(executor_spec(num_blocks=21, epoch=2))
    world.run()
    assert waiting_programs(world) == 0
    assert_right_outputs(world)
