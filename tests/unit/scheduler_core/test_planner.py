"""The planner, through the core: who is in which plan, with which tokens and blocks."""

import pytest

from scheduler_svc.core.call_states import CallState
from scheduler_svc.core.effects import FinishReason
from scheduler_svc.core.ids import CallId
from tests.unit.scheduler_core.world import World, assert_right_outputs, executor_spec, small_world


def state_of(world: World, call_id: CallId) -> CallState:
    call = world.core.registry.live(call_id)
    assert call is not None
    return call.state


class TestAhead:
    @pytest.mark.parametrize("ahead", [1, 2, 3])
    def test_a_length_known_in_advance_wastes_no_row(self, ahead: int) -> None:
        world = World(executors=[executor_spec(max_plans_in_flight=ahead)])
        world.open("p")
        call = world.submit("p", prompt=5, max_tokens=7)
        world.run()
        assert_right_outputs(world)
        assert world.finished[call].reason is FinishReason.LENGTH
        assert sum(len(plan.handles) for plan in world.plans()) == 7

    def test_an_early_stop_wastes_one_row_and_delivers_nothing_of_it(self) -> None:
        world = World()
        world.open("p")
        probe = world.submit("p", prompt=[1, 2, 3], max_tokens=6)
        world.run()
        third = world.outputs[probe][2]
        call = world.submit("p", prompt=[1, 2, 3], max_tokens=6, eos_token_id=third)
        rows_before = sum(len(plan.handles) for plan in world.plans())
        world.run()
        assert world.outputs[call] == world.outputs[probe][:3]
        assert world.finished[call].reason is FinishReason.STOP
        assert sum(len(plan.handles) for plan in world.plans()) - rows_before == 4

    def test_no_more_plans_than_the_executor_takes(self) -> None:
        world = World()
        world.open("p")
        world.submit("p", max_tokens=9)
        world.plan()
        world.plan()
        assert [plan.step for plan in world.plans()] == [1, 2]

    def test_nothing_to_do_is_no_plan(self) -> None:
        world = World()
        world.plan()
        assert world.plans() == []


class TestTokenBudget:
    def test_a_long_prompt_goes_in_chunks_and_only_the_last_samples(self) -> None:
        world = small_world(max_num_batched_tokens=16)
        world.open("p")
        world.submit("p", prompt=40, max_tokens=2)
        world.run()
        assert [dict(plan.chunks) for plan in world.plans() if plan.handles] == [{0: 16}, {0: 16}, {0: 8}, {}]
        assert_right_outputs(world)

    def test_decoding_never_waits_for_prompts(self) -> None:
        world = small_world(max_num_batched_tokens=16)
        world.open("long")
        world.open("short")
        short = world.submit("short", prompt=4, max_tokens=12)
        world.turn()
        world.submit("long", prompt=60, max_tokens=2)
        for _ in range(4):
            world.plan()
            assert short in world.batch()
            assert sum(world.plans()[-1].chunks.values()) == 15, "what decoding leaves of 16"
            world.deliver()

    def test_prompts_share_what_is_left_in_order(self) -> None:
        world = small_world(max_num_batched_tokens=16)
        world.open("p")
        first, second = world.submit("p", prompt=10), world.submit("p", prompt=10)
        world.plan()
        assert world.batch() == [first, second]
        assert world.plans()[-1].chunks == {0: 10, 1: 6}


class TestSeats:
    def test_no_more_rows_than_seats(self) -> None:
        world = small_world(max_num_seqs=2)
        world.open("p")
        calls = [world.submit("p", prompt=2) for _ in range(3)]
        world.plan()
        assert world.batch() == calls[:2]
        world.run()
        assert_right_outputs(world)

    def test_a_full_batch_gives_way_to_a_better_level(self) -> None:
        world = small_world(quantum_s=2.0, max_num_seqs=1)
        world.open("long")
        world.open("new")
        long = world.submit("long", prompt=2, max_tokens=10)
        for _ in range(3):
            world.turn()
        new = world.submit("new", prompt=2, max_tokens=1)
        world.plan()
        assert world.batch() == [new]
        assert state_of(world, long) is CallState.QUEUED
        world.run()
        assert_right_outputs(world)
        assert world.finished[long].preemptions == 1
        assert world.core.statistics().preemptions == 1

    def test_calls_of_one_level_do_not_displace_each_other(self) -> None:
        world = small_world(max_num_seqs=1)
        world.open("first")
        world.open("second")
        late = world.submit("second", prompt=2, max_tokens=5)
        world.turn()
        world.submit("first", prompt=2, max_tokens=5)
        world.plan()
        assert world.batch() == [late], "although its program arrived later"

    def test_a_last_token_in_flight_keeps_its_seat(self) -> None:
        world = World(executors=[executor_spec(max_num_seqs=1)])
        world.open("p")
        ending = world.submit("p", prompt=2, max_tokens=1)
        waiting = world.submit("p", prompt=2, max_tokens=1)
        world.plan()
        assert world.batch() == [ending]
        assert len(world.plans()) == 1
        world.deliver()
        world.plan()
        assert world.batch() == [waiting]

    def test_a_call_preempted_with_a_result_in_flight_waits_for_it_and_keeps_its_token(self) -> None:
        world = World(executors=[executor_spec(max_num_seqs=1)], first_quantum_s=2.0)
        world.open("long")
        world.open("new")
        long = world.submit("long", prompt=2, max_tokens=10)
        for _ in range(3):
            world.turn()
        world.plan()
        new = world.submit("new", prompt=2, max_tokens=1)
        world.deliver()
        world.plan()
        assert world.batch() == [new]
        call = world.core.registry.live(long)
        assert call is not None
        assert (call.state, call.in_flight) == (CallState.QUEUED, 1)
        tokens = len(world.outputs[long])
        world.deliver()
        assert len(world.outputs[long]) == tokens + 1
        world.run()
        assert_right_outputs(world)

    def test_a_call_with_a_result_in_flight_from_before_its_preemption_is_passed_over(self) -> None:
        spec = executor_spec(max_num_seqs=2, max_plans_in_flight=3)
        world = World(executors=[spec], first_quantum_s=2.0)
        world.open("old")
        world.open("new")
        calls = [world.submit("old", prompt=2, max_tokens=20) for _ in range(2)]
        for _ in range(4):
            world.turn()
        new = world.submit("new", prompt=2, max_tokens=9)
        world.plan()
        assert world.batch() == [new, calls[0]]
        world.deliver()
        world.cancel(new)
        world.plan()
        assert world.batch() == [calls[0]], "a seat is free, but a result is due"
        world.run()
        assert_right_outputs(world, but=[new])


class TestBlocks:
    def test_blocks_are_given_as_they_are_needed(self) -> None:
        world = small_world()
        world.open("p")
        world.submit("p", prompt=3, max_tokens=4)
        world.run()
        computing = [plan for plan in world.plans() if plan.handles]
        assert [len(plan.blocks.get(0, ())) for plan in computing] == [1, 0, 1, 0]
        assert [dict(plan.joined) for plan in computing] == [{0: 0}, {}, {}, {}]

    def test_full_memory_takes_from_the_last_running_call(self) -> None:
        world = small_world(num_blocks=9, max_model_len=32, max_num_seqs=4)
        world.open("p")
        calls = [world.submit("p", prompt=8, max_tokens=16) for _ in range(3)]
        world.run()
        assert_right_outputs(world)
        preemptions = [world.finished[call].preemptions for call in calls]
        assert preemptions[0] == 0, "the first in order is never preempted"
        assert preemptions[2] > 0
        assert world.core.statistics().recomputed_tokens > 0

    def test_the_first_misfit_ends_admission(self) -> None:
        world = small_world(num_blocks=9, max_model_len=32, max_num_batched_tokens=64)
        world.open("p")
        first = world.submit("p", prompt=20, max_tokens=2)
        world.submit("p", prompt=20, max_tokens=2)
        world.submit("p", prompt=1, max_tokens=2)
        world.plan()
        assert world.batch() == [first], "a small call does not overtake one that does not fit"

    def test_nobody_is_preempted_in_vain(self) -> None:
        world = small_world(quantum_s=2.0, num_blocks=9, max_model_len=32, max_num_batched_tokens=64)
        world.open("p")
        little = world.submit("p", prompt=3, max_tokens=5)
        for _ in range(2):
            world.turn()
        big = world.submit("p", prompt=20, max_tokens=4)
        world.turn()
        world.submit("p", prompt=16, max_tokens=4)
        world.plan()
        assert world.batch() == [big, little], (
            "the new call is urgent, but what it may take is not enough for it"
        )
        assert world.core.statistics().preemptions == 0
        world.run()
        assert_right_outputs(world)

    def test_shared_blocks_are_free_only_when_all_holders_leave(self) -> None:
        world = small_world(quantum_s=2.0, num_blocks=9, max_model_len=32, max_num_batched_tokens=64)
        world.open("p")
        prefix = [*range(1, 17)]
        world.submit("p", prompt=prefix, max_tokens=1)
        world.run()
        sharers = [world.submit("p", prompt=[*prefix, 40 + i], max_tokens=3) for i in range(2)]
        for _ in range(2):
            world.turn()
        assert world.core.executors()[0].running == 2
        urgent = world.submit("p", prompt=12, max_tokens=4)
        world.plan()
        assert world.batch() == [urgent, sharers[0]], "5 of 8 blocks held, 3 wanted, 2 to spare for the last"
        world.run()
        assert_right_outputs(world)

    def test_a_call_whose_last_token_is_in_flight_keeps_its_blocks(self) -> None:
        spec = executor_spec(num_blocks=9, max_model_len=32, max_num_batched_tokens=64)
        world = World(executors=[spec], first_quantum_s=2.0)
        world.open("p")
        ending = world.submit("p", prompt=16, max_tokens=3)
        for _ in range(2):
            world.turn()
        urgent = world.submit("p", prompt=24, max_tokens=4)
        world.plan()
        assert len(world.plans()) == 3
        world.deliver()
        world.plan()
        assert world.batch() == [urgent]
        assert world.finished[ending].preemptions == 0

    def test_a_lone_call_of_the_largest_size_runs(self) -> None:
        world = World(executors=[executor_spec(num_blocks=9, max_model_len=999)])
        world.open("p")
        call = world.submit("p", prompt=20, max_tokens=12)
        world.run()
        assert world.finished[call].reason is FinishReason.LENGTH
        assert_right_outputs(world)


class TestRelease:
    def test_a_release_goes_alone_when_nothing_else_is_to_do(self) -> None:
        world = small_world()
        world.open("p")
        world.submit("p", max_tokens=1)
        world.run()
        last = world.plans()[-1]
        assert (tuple(last.handles), tuple(last.released)) == ((), (1,))
        world.turn()
        assert world.plans()[-1] is last, "no further empty plan"

    def test_a_release_rides_on_the_next_plan(self) -> None:
        world = small_world()
        world.open("p")
        world.submit("p", max_tokens=1)
        world.submit("p", max_tokens=3)
        world.turn()
        world.plan()
        assert (tuple(world.plans()[-1].handles), tuple(world.plans()[-1].released)) == ((2,), (1,))

    def test_nothing_is_released_alone_while_a_result_is_due(self) -> None:
        world = World()
        world.open("p")
        cancelled, ending = world.submit("p", max_tokens=1), world.submit("p", max_tokens=1)
        world.plan()
        world.cancel(cancelled)
        world.plan()
        assert len(world.plans()) == 1, "the executor could take a second plan"
        world.run()
        assert ending in world.finished
        assert set(world.plans()[-1].released) == {1, 2}

    def test_after_everything_the_executor_knows_no_call(self) -> None:
        world = World()
        world.open("p")
        for _ in range(6):
            world.submit("p", prompt=6)
        world.run()
        assert world.executors[next(iter(world.executors))].calls == {}


def test_running_calls_go_on_behind_a_waiting_one_that_does_not_fit() -> None:
    """Nobody has taken their seats: standing still would help no one."""
    spec = executor_spec(max_num_batched_tokens=64, max_model_len=256, max_plans_in_flight=1)
    world = World(executors=[spec], first_quantum_s=8.0, levels=2)
    world.open("low")
    low = [world.submit("low", max_tokens=100) for _ in range(2)]
    for _ in range(9):
        world.turn()
    world.open("big")
    big = world.submit("big", prompt=200, max_tokens=20)
    for _ in range(5):
        world.turn()
    world.open("new")
    waiting = [world.submit("new", prompt=64, max_tokens=2) for _ in range(3)]
    world.plan()
    assert [state_of(world, call) for call in waiting] == [CallState.QUEUED] * 3
    assert world.batch() == [big, *low]
    world.run()
    assert_right_outputs(world)


class TestPreparation:
    def test_a_call_in_preparation_is_announced_and_not_planned(self) -> None:
        world = small_world()
        world.open("p")
        call = world.submit("p", needs_preparation=True)
        other = world.submit("p")
        world.plan()
        assert world.batch() == [other]
        assert state_of(world, call) is CallState.PREPARING
        world.run()
        assert_right_outputs(world)
