"""Prefixes found and not found, through the core."""

import pytest

from tests.unit.scheduler_core.world import World, assert_right_outputs, small_world


def test_a_second_call_finds_the_full_blocks_of_the_first() -> None:
    world = small_world()
    world.open("p")
    prompt = [*range(1, 11)]
    first = world.submit("p", prompt=prompt, max_tokens=1)
    world.run()
    second = world.submit("p", prompt=prompt, max_tokens=1)
    world.run()
    assert (world.started[first].cached_tokens, world.started[second].cached_tokens) == (0, 8)
    assert world.plans()[-2].joined == {0: 8}
    assert_right_outputs(world)
    assert world.core.statistics().cached_tokens == 8


def test_the_newest_token_is_always_computed() -> None:
    world = small_world()
    world.open("p")
    prompt = [*range(1, 9)]
    world.submit("p", prompt=prompt, max_tokens=1)
    world.run()
    again = world.submit("p", prompt=prompt, max_tokens=1)
    world.run()
    assert world.started[again].cached_tokens == 4, "8 tokens in 2 full blocks, of which one is used"
    assert_right_outputs(world)


def test_generated_tokens_are_found_too() -> None:
    world = small_world()
    world.open("p")
    first = world.submit("p", prompt=4, max_tokens=9)
    world.run()
    turn_two = [*world.specs[first].prompt_token_ids, *world.outputs[first], 7]
    second = world.submit("p", prompt=turn_two, max_tokens=1)
    world.run()
    assert world.started[second].cached_tokens == 12
    assert_right_outputs(world)


def test_nothing_is_found_before_its_result_came() -> None:
    world = World()
    world.open("p")
    world.submit("p", prompt=[*range(1, 9)], max_tokens=5)
    world.plan()
    second = world.submit("p", prompt=[*range(1, 9)], max_tokens=5)
    world.deliver()
    world.run()
    assert_right_outputs(world)
    assert world.started[second].cached_tokens == 4


def test_a_simultaneous_call_finds_nothing() -> None:
    world = small_world()
    world.open("p")
    calls = [world.submit("p", prompt=[*range(1, 9)], max_tokens=2) for _ in range(2)]
    world.run()
    assert [world.started[call].cached_tokens for call in calls] == [0, 0]
    assert_right_outputs(world)


@pytest.mark.parametrize(
    "changes", [{"skip_reading_prefix_cache": True}, {"cache_salt": "other"}], ids=["skip", "salt"]
)
def test_a_call_that_must_not_share_computes_everything(changes: dict[str, object]) -> None:
    world = small_world()
    world.open("p")
    world.submit("p", prompt=[*range(1, 9)])
    world.run()
    call = world.submit("p", prompt=[*range(1, 9)], **changes)
    world.run()
    assert world.started[call].cached_tokens == 0
    assert_right_outputs(world)


def test_an_executor_without_prefix_caching_shares_nothing() -> None:
    world = small_world(prefix_caching=False)
    world.open("p")
    calls = []
    for _ in range(2):
        calls.append(world.submit("p", prompt=[*range(1, 9)]))
        world.run()
    assert world.started[calls[1]].cached_tokens == 0


def test_a_paused_call_goes_on_where_it_stopped() -> None:
    world = small_world(quantum_s=2.0, max_num_seqs=1)
    world.open("long")
    world.open("new")
    long = world.submit("long", prompt=9, max_tokens=6)
    for _ in range(3):
        world.turn()
    world.submit("new", prompt=2, max_tokens=1)
    world.turn()
    world.plan()
    assert world.batch() == [long]
    assert world.plans()[-1].joined == {0: 11}
    world.deliver()
    assert world.core.statistics().recomputed_tokens == 0
    world.run()
    assert_right_outputs(world)
