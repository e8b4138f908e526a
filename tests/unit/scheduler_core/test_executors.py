"""Executors: joining, leaving, being lost, breaking the protocol."""

from dataclasses import replace
from typing import Any

import pytest

from scheduler_svc.core.effects import FinishReason
from scheduler_svc.core.errors import Refused
from scheduler_svc.core.events import (
    CallPrepared,
    ExecutorDrainRequested,
    ExecutorJoined,
    ExecutorLost,
    StepCompleted,
)
from scheduler_svc.core.ids import CallHandle, ExecutorId
from tests.unit.scheduler_core.obedient_executor import expected_output
from tests.unit.scheduler_core.world import World, assert_right_outputs, executor_spec

ONE, TWO = ExecutorId("executor-1"), ExecutorId("executor-2")


@pytest.fixture
def world() -> World:
    world = World()
    world.open("p")
    return world


class TestJoining:
    @pytest.mark.parametrize(
        ("field", "value"),
        [("block_size", 0), ("num_blocks", 1), ("max_num_seqs", 0), ("max_num_batched_tokens", 3),
         ("max_model_len", 1), ("max_plans_in_flight", 0)],
    )  # fmt: skip
    def test_what_cannot_be_planned_for_is_refused(self, field: str, value: int) -> None:
        world = World(executors=())
        with pytest.raises(Refused) as refused:
            world.feed(ExecutorJoined(executor=executor_spec(**{field: value})))
        assert refused.value.refusal.reason == "UNSUPPORTED_EXECUTOR"
        assert (refused.value.refusal.field, refused.value.refusal.value) == (field, str(value))
        assert world.core.executors() == []

    def test_executors_of_a_model_must_agree(self, world: World) -> None:
        with pytest.raises(Refused) as refused:
            world.feed(ExecutorJoined(executor=executor_spec("executor-2", model_fingerprint="other")))
        assert refused.value.refusal.reason == "MODEL_MISMATCH"
        world.join(executor_spec("executor-2", model_fingerprint="other", model="another"))
        assert [model.model for model in world.core.models()] == ["another", "tiny"]

    def test_an_executor_may_come_back_with_other_weights_when_it_is_the_only_one(self, world: World) -> None:
        world.join(executor_spec(epoch=2, model_fingerprint="new"))
        assert [executor.epoch for executor in world.core.executors()] == [2]

    @pytest.mark.parametrize("lost_before", [True, False])
    def test_calls_do_not_continue_on_other_weights(self, world: World, lost_before: bool) -> None:
        world.open("p")
        call = world.submit("p", max_tokens=20)
        for _ in range(4):
            world.turn()
        if lost_before:
            world.lose()
        world.join(executor_spec(epoch=2, model_fingerprint="new", vocab_size=7))
        error = world.finished[call].error
        assert error is not None
        assert error.reason == "EXECUTOR_FAILED"
        assert "replaced" in error.message
        assert world.core.statistics().live_calls == 0

    def test_an_id_that_joins_again_replaces_the_former(self, world: World) -> None:
        call = world.submit("p", max_tokens=9)
        for _ in range(3):
            world.turn()
        world.join(executor_spec(epoch=2))
        assert [executor.epoch for executor in world.core.executors()] == [2]
        world.feed(ExecutorLost(executor_id=ONE, epoch=1))
        assert len(world.core.executors()) == 1, "the loss of an older epoch is stale"
        world.run()
        assert world.outputs[call] == expected_output(world.specs[call])

    def test_calls_wait_for_an_executor_of_a_model_that_was_served_before(self, world: World) -> None:
        world.lose()
        call = world.submit("p")
        world.plan()
        assert call not in world.refused
        world.join(executor_spec(epoch=2))
        world.run()
        assert_right_outputs(world)


class TestLoss:
    @pytest.mark.parametrize("turns", range(6))
    def test_calls_continue_elsewhere_with_their_tokens(self, world: World, turns: int) -> None:
        for length in (2, 5, 9):
            world.submit("p", prompt=6, max_tokens=length)
        for _ in range(turns):
            world.turn()
        world.plan()
        world.lose()
        world.plan()
        world.join(executor_spec("executor-2"))
        world.run()
        assert_right_outputs(world)
        assert world.core.programs()[0].tokens == 16

    def test_service_of_lost_results_is_not_charged(self, world: World) -> None:
        world.submit("p", max_tokens=9)
        world.turn()
        world.lose()
        assert world.core.programs()[0].attained_service_s == 1.0
        assert world.core.programs()[0].state.value == "waiting"

    def test_a_call_that_takes_executors_down_fails_in_the_end(self) -> None:
        world = World(executor_losses_max=2)
        world.open("p")
        bad = world.submit("p", max_tokens=9)
        world.plan()
        waiting = world.submit("p", max_tokens=9)
        world.lose()
        world.join(executor_spec(epoch=2))
        world.cancel(waiting)
        world.plan()
        world.lose()
        error = world.finished[bad].error
        assert error is not None
        assert error.reason == "EXECUTOR_FAILED"

    def test_waiting_calls_do_not_count_losses(self) -> None:
        world = World(executor_losses_max=1)
        world.open("p")
        call = world.submit("p")
        world.lose()
        world.join(executor_spec(epoch=2))
        world.run()
        assert world.finished[call].reason is FinishReason.LENGTH


class TestDrain:
    def test_running_calls_finish_waiting_ones_move_and_then_it_is_closed(self, world: World) -> None:
        world.submit("p", max_tokens=6)
        world.turn()
        moving = world.submit("p", max_tokens=3)
        world.join(executor_spec("executor-2"))
        world.feed(ExecutorDrainRequested(executor_id=ONE))
        one, two = world.core.executors()
        assert (one.running, one.waiting, one.draining) == (1, 0, True)
        assert two.waiting == 1
        world.run()
        assert_right_outputs(world)
        assert [(close.executor_id, close.drained) for close in world.closed] == [(ONE, True)]
        assert world.core.program(world.specs[moving].tenant, world.specs[moving].program_id)
        world.submit("p")
        world.run()
        assert_right_outputs(world)

    def test_without_another_executor_it_serves_what_it_has(self, world: World) -> None:
        call = world.submit("p")
        world.feed(ExecutorDrainRequested(executor_id=ONE))
        late = world.submit("p")
        world.run()
        assert call in world.finished
        assert late not in world.finished
        assert world.core.executors() == []
        world.join(executor_spec(epoch=2))
        world.run()
        assert_right_outputs(world)

    def test_waiting_calls_leave_as_soon_as_another_executor_joins(self) -> None:
        world = World(executors=[executor_spec(max_num_seqs=1)], first_quantum_s=1000.0)
        world.open("p")
        world.submit("p", max_tokens=9)
        world.submit("p", max_tokens=9)
        world.turn()
        world.feed(ExecutorDrainRequested(executor_id=ONE))
        world.join(executor_spec("executor-2"))
        one, two = world.core.executors()
        assert (one.running, one.waiting, two.waiting) == (1, 0, 1)
        world.run()
        assert_right_outputs(world)

    def test_an_unknown_executor_cannot_be_drained(self, world: World) -> None:
        with pytest.raises(Refused) as refused:
            world.feed(ExecutorDrainRequested(executor_id=TWO))
        assert refused.value.refusal.reason == "NO_EXECUTOR"


class TestBrokenProtocol:
    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"step": 7}, "step 7 came, step 1 is due"),
            ({"handles": [9], "tokens": [5]}, "not asked for"),
            ({"handles": [1, 1], "tokens": [5, 5]}, "two tokens"),
            ({"handles": [1], "tokens": []}, "1 handles came with 0 tokens"),
            ({"handles": [], "tokens": []}, "lacks the token"),
            ({"tokens": [997]}, "outside"),
            ({"tokens": [-1]}, "outside"),
            ({"step_s": -0.1}, "seconds"),
            ({"step_s": float("nan")}, "seconds"),
            ({"failures": {CallHandle(99): "?"}}, "unknown call 99"),
        ],
    )
    def test_closes_the_executor_and_queues_its_calls_again(
        self, world: World, changes: dict[str, Any], reason: str
    ) -> None:
        call = world.submit("p", max_tokens=5)
        world.plan()
        world.feed(replace(world.executors[ONE].results[0], **changes))
        assert [close.executor_id for close in world.closed] == [ONE]
        assert reason in world.closed[0].reason
        assert world.outputs[call] == []
        world.join(executor_spec(epoch=2))
        world.run()
        assert_right_outputs(world)

    def test_a_token_of_a_row_that_does_not_sample(self, world: World) -> None:
        world.submit("p", prompt=40, max_tokens=5)
        world.plan()
        result = world.executors[ONE].results[0]
        world.feed(replace(result, handles=[CallHandle(1)], tokens=[3]))
        assert len(world.closed) == 1

    @pytest.mark.parametrize("handle", [0, 55])
    def test_an_unknown_handle_prepared(self, world: World, handle: int) -> None:
        world.feed(CallPrepared(executor_id=ONE, handle=CallHandle(handle)))
        assert len(world.closed) == 1

    def test_a_call_prepared_unasked(self, world: World) -> None:
        world.submit("p")
        world.plan()
        world.feed(CallPrepared(executor_id=ONE, handle=CallHandle(1)))
        assert len(world.closed) == 1

    def test_results_of_an_executor_that_is_gone_are_ignored(self, world: World) -> None:
        result = StepCompleted(executor_id=TWO, step=1, handles=[], tokens=[], step_s=0.0)
        assert world.feed(result) == []


def test_a_failing_call_ends_alone(world: World) -> None:
    bad, good = world.submit("p", max_tokens=9), world.submit("p", max_tokens=9)
    world.turn()
    world.executors[ONE].failing.add(bad)
    world.run()
    end = world.finished[bad]
    assert end.reason is FinishReason.ERROR
    assert end.error is not None
    assert (end.error.reason, end.error.message) == ("EXECUTOR_FAILED", "broken on purpose")
    assert world.outputs[good] == expected_output(world.specs[good])
    assert world.core.statistics().calls_failed == 1


def test_payloads_travel_with_their_tokens(world: World) -> None:
    world.submit("p", max_tokens=9)
    world.submit("p", max_tokens=9)
    world.plan()
    result = replace(world.executors[ONE].results[0], payloads={CallHandle(2): b"logprobs"})
    world.feed(result)
    assert world.emits_in_event[0].payloads == {1: b"logprobs"}
