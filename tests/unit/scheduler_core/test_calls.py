"""Calls from their submission to their acknowledgement."""

from typing import Any

import pytest

from scheduler_svc.core.effects import AnnounceCall, EmitTokens, FinishCall, FinishReason
from scheduler_svc.core.events import CallPrepared, CancelReason, FrontendLost, PlanDue, TimePassed
from scheduler_svc.core.ids import CallId, FrontendId, StreamHandle, TenantId
from tests.unit.scheduler_core.obedient_executor import VOCAB_SIZE, expected_output
from tests.unit.scheduler_core.world import World, executor_spec


@pytest.fixture
def world() -> World:
    world = World(first_quantum_s=1000.0)
    world.open("p")
    return world


class TestDoor:
    @pytest.mark.parametrize(
        ("reason", "field", "limit", "value", "changes"),
        [
            ("PROGRAM_UNKNOWN", "program_id", "", "nope", {"program_id": "nope"}),
            ("PROGRAM_UNKNOWN", "program_id", "", "p", {"tenant": TenantId("stranger")}),
            ("MODEL_UNKNOWN", "model", "", "gpt-9", {"model": "gpt-9"}),
            ("PARAMS_FORMAT_UNKNOWN", "params_format", "", "v2", {"params_format": "v2"}),
            ("PROMPT_EMPTY", "prompt_token_ids", "1", "0", {"prompt": []}),
            ("PROMPT_TOO_LONG", "prompt_token_ids", "127", "128", {"prompt": 128}),
            ("PARAMETER_OUT_OF_RANGE", "max_tokens", "<= 28", "29", {"prompt": 100, "max_tokens": 29}),
            ("PARAMETER_OUT_OF_RANGE", "max_tokens", "> 0", "0", {"max_tokens": 0}),
            (
                "PARAMETER_OUT_OF_RANGE",
                "max_tokens",
                "> 2",
                "2",
                {"output_token_ids": (1, 2), "max_tokens": 2},
            ),
            ("PARAMETER_OUT_OF_RANGE", "min_tokens", "0..4", "5", {"min_tokens": 5}),
            ("PARAMETER_OUT_OF_RANGE", "min_tokens", "0..4", "-1", {"min_tokens": -1}),
            ("PARAMETER_OUT_OF_RANGE", "deadline_s", "> 0", "0.0", {"deadline_s": 0.0}),
            ("INVALID_TOKEN_ID", "prompt_token_ids", "0..996", "997", {"prompt": [1, VOCAB_SIZE]}),
            ("INVALID_TOKEN_ID", "prompt_token_ids", "0..996", "-1", {"prompt": [-1, 5]}),
            ("INVALID_TOKEN_ID", "output_token_ids", "0..996", "1000", {"output_token_ids": (1000,)}),
        ],
    )
    def test_refuses_and_names_what_is_wrong(
        self, world: World, reason: str, field: str, limit: str, value: str, changes: dict[str, Any]
    ) -> None:
        call = world.submit(**({"program_id": "p"} | changes))
        refusal = world.refused[call].refusal
        assert (refusal.reason, refusal.field, refusal.limit, refusal.value) == (reason, field, limit, value)
        assert refusal.message
        assert world.core.statistics().calls_refused == 1
        assert world.core.statistics().live_calls == 0

    def test_the_largest_call_is_let_in(self, world: World) -> None:
        call = world.submit("p", prompt=100, max_tokens=28)
        assert call not in world.refused

    def test_memory_limits_a_call_as_well_as_the_model(self) -> None:
        world = World(executors=[executor_spec(num_blocks=11)])
        world.open("p")
        call = world.submit("p", prompt=40)
        assert world.refused[call].refusal.limit == "39"

    def test_the_largest_executor_decides(self) -> None:
        world = World(executors=[executor_spec(num_blocks=11), executor_spec("executor-2")])
        world.open("p")
        call = world.submit("p", prompt=100)
        assert world.core.executors()[1].waiting == 1
        world.run()
        assert world.outputs[call] == expected_output(world.specs[call])

    def test_a_live_call_cannot_be_submitted_twice(self, world: World) -> None:
        first = world.submit("p")
        world.submit("p", call_id=first, stream_handle=StreamHandle(77))
        assert world.refused[first].refusal.reason == "CALL_DUPLICATE"
        assert world.core.statistics().live_calls == 1

    def test_an_ended_call_can_be_submitted_again_only_after_its_acknowledgement(self, world: World) -> None:
        first = world.submit("p", max_tokens=1)
        world.run()
        world.submit("p", call_id=first, stream_handle=StreamHandle(77))
        assert world.refused.pop(first).refusal.reason == "CALL_DUPLICATE"
        world.acknowledge(first)
        del world.finished[first], world.started[first]
        world.submit("p", call_id=first, stream_handle=StreamHandle(78), max_tokens=1)
        assert first not in world.refused

    def test_the_number_of_live_calls_is_bounded(self) -> None:
        world = World(live_calls_max=2)
        world.open("p")
        calls = [world.submit("p") for _ in range(3)]
        refusal = world.refused[calls[2]].refusal
        assert (refusal.reason, refusal.limit, refusal.retry_after_s) == ("QUEUE_FULL", "2", 1.0)


class TestEnds:
    def test_stop_tokens_are_named_and_eos_is_not(self, world: World) -> None:
        probe = world.submit("p", prompt=[5, 6, 7], max_tokens=8)
        world.run()
        second = world.outputs[probe][1]
        by_stop = world.submit("p", prompt=[5, 6, 7], max_tokens=8, stop_token_ids=frozenset({second}))
        by_eos = world.submit("p", prompt=[5, 6, 7], max_tokens=8, eos_token_id=second)
        world.run()
        ends = [
            (world.finished[call].reason, world.finished[call].stop_token_id) for call in (by_stop, by_eos)
        ]
        assert ends == [(FinishReason.STOP, second), (FinishReason.STOP, None)]
        assert world.outputs[by_stop] == world.outputs[by_eos] == world.outputs[probe][:2]

    def test_stops_count_only_from_min_tokens_on(self, world: World) -> None:
        probe = world.submit("p", prompt=[5, 6, 7], max_tokens=8)
        world.run()
        output = world.outputs[probe]
        call = world.submit(
            "p",
            prompt=[5, 6, 7],
            max_tokens=8,
            min_tokens=4,
            stop_token_ids=frozenset({output[1], output[5]}),
        )
        world.run()
        assert world.outputs[call] == output[:6]

    def test_a_call_may_continue_tokens_the_client_has(self, world: World) -> None:
        whole = world.submit("p", prompt=[5, 6, 7], max_tokens=8)
        world.run()
        rest = world.submit(
            "p", prompt=[5, 6, 7], output_token_ids=tuple(world.outputs[whole][:3]), max_tokens=8
        )
        world.run()
        assert world.outputs[rest] == world.outputs[whole]
        assert world.core.statistics().tokens == 8 + 5

    def test_the_end_tells_what_the_call_used(self, world: World) -> None:
        world.now = 1000.0
        call = world.submit("p", prompt=3, max_tokens=4)
        world.now += 2.5
        world.run()
        end = world.finished[call]
        assert (end.service_s, end.waiting_s, end.preemptions) == (4.0, 2.5, 0)
        assert world.started[call].queued_s == 2.5

    def test_a_clock_that_goes_back_is_held(self, world: World) -> None:
        call = world.submit("p", prompt=3, max_tokens=1)
        world.now -= 50.0
        world.run()
        assert world.finished[call].waiting_s == 0.0
        assert world.started[call].queued_s == 0.0

    def test_tokens_come_before_the_end_and_once_a_frontend(self, world: World) -> None:
        for frontend in ("frontend-1", "frontend-2", "frontend-1", "frontend-2"):
            world.submit("p", max_tokens=1, frontend_id=FrontendId(frontend))
        world.plan()
        executor = world.executors[next(iter(world.executors))]
        effects = world.feed(executor.results.popleft())
        assert [type(effect) for effect in effects] == [EmitTokens] * 2 + [FinishCall] * 4
        assert [len(effect.handles) for effect in effects[:2]] == [2, 2]  # type: ignore[union-attr]

    def test_unacknowledged_ends_are_bounded(self) -> None:
        world = World(unacknowledged_calls_max=2)
        world.open("p")
        calls = [world.submit("p", max_tokens=1) for _ in range(4)]
        world.run()
        assert [call in world.core.registry for call in calls] == [False, False, True, True]
        ended = world.core.registry.ended(calls[3])
        assert ended is not None
        assert list(ended.tokens[ended.prompt_len :]) == world.outputs[calls[3]]


class TestCancel:
    def test_a_cancelled_call_is_in_no_later_plan_and_its_blocks_are_free(self, world: World) -> None:
        call, other = world.submit("p", max_tokens=20), world.submit("p", max_tokens=20)
        world.turn()
        held = world.core.engine_status(world.specs[call].frontend_id).kv_usage
        world.cancel(call)
        assert world.core.engine_status(world.specs[call].frontend_id).kv_usage < held
        before = len(world.plans())
        world.run()
        after = world.plans()[before:]
        assert after[0].released == (1,), "with the first plan made after the cancel"
        assert all(1 not in plan.handles for plan in after)
        assert world.finished[call].reason is FinishReason.ABORT
        assert world.outputs[other] == expected_output(world.specs[other])

    def test_a_waiting_call_is_cancelled_without_a_trace_on_the_executor(self, world: World) -> None:
        world.cancel(world.submit("p"))
        world.run()
        assert world.plans() == []

    @pytest.mark.parametrize(
        ("reason", "end", "counter"),
        [
            (CancelReason.STOP_STRING, FinishReason.STOP, "calls_finished"),
            (CancelReason.CLIENT, FinishReason.ABORT, "calls_cancelled"),
            (CancelReason.PROGRAM, FinishReason.ABORT, "calls_cancelled"),
            (CancelReason.DEADLINE, FinishReason.ERROR, "calls_failed"),
        ],
    )
    def test_the_reason_decides_how_it_counts(
        self, world: World, reason: CancelReason, end: FinishReason, counter: str
    ) -> None:
        call = world.submit("p", max_tokens=9)
        world.turn()
        world.cancel(call, reason)
        assert world.finished[call].reason is end
        statistics = world.core.statistics()
        counts = (statistics.calls_finished, statistics.calls_cancelled, statistics.calls_failed)
        assert getattr(statistics, counter) == 1
        assert sum(counts) == 1
        program = world.core.programs()[0]
        assert (program.finished_calls, program.live_calls, program.attained_service_s) == (1, 0, 1.0)

    def test_unknown_and_ended_calls_are_ignored(self, world: World) -> None:
        call = world.submit("p", max_tokens=1)
        world.run()
        world.cancel(call)
        world.cancel(CallId("no such call"))
        assert world.core.statistics().calls_cancelled == 0

    def test_a_lost_frontend_takes_its_calls_along(self, world: World) -> None:
        mine = world.submit("p", max_tokens=9)
        other = world.submit("p", max_tokens=9, frontend_id=FrontendId("frontend-2"))
        done = world.submit("p", max_tokens=1)
        world.turn()
        world.feed(FrontendLost(frontend_id=world.specs[mine].frontend_id))
        assert mine not in world.core.registry
        assert done not in world.core.registry
        world.run()
        assert world.outputs[other] == expected_output(world.specs[other])
        assert world.core.programs()[0].live_calls == 0


class TestDeadline:
    def test_a_call_fails_when_its_time_is_up(self, world: World) -> None:
        call = world.submit("p", max_tokens=50, deadline_s=5.0)
        world.turn()
        world.pass_time(3.9)
        assert call not in world.finished
        world.pass_time(0.1)
        error = world.finished[call].error
        assert error is not None
        assert (error.reason, error.limit) == ("DEADLINE_EXCEEDED", "5.0")

    def test_one_that_ended_in_time_does_not(self, world: World) -> None:
        call = world.submit("p", max_tokens=1, deadline_s=5.0)
        world.run()
        world.pass_time(10.0)
        assert world.finished[call].reason is FinishReason.LENGTH

    def test_waiting_for_an_executor_is_said(self, world: World) -> None:
        world.lose()
        call = world.submit("p", deadline_s=5.0)
        world.pass_time(5.0)
        error = world.finished[call].error
        assert error is not None
        assert error.reason == "DEADLINE_EXCEEDED"
        assert "No executor" in error.message


class TestPreparation:
    def test_a_call_that_cannot_be_prepared_fails_alone(self, world: World) -> None:
        bad, good = (world.submit("p", needs_preparation=True) for _ in range(2))
        executor_id = next(iter(world.executors))
        world.feed(CallPrepared(executor_id=executor_id, handle=world.to_prepare.pop(0).handle, error="no"))
        error = world.finished[bad].error
        assert error is not None
        assert (error.reason, error.message) == ("PREPARATION_FAILED", "no")
        world.run()
        assert world.outputs[good] == expected_output(world.specs[good])

    def test_an_answer_for_a_call_that_has_left_is_ignored(self, world: World) -> None:
        call = world.submit("p", needs_preparation=True)
        world.cancel(call)
        world.run()
        assert not world.closed

    def test_a_moved_call_is_announced_and_prepared_again(self, world: World) -> None:
        call = world.submit("p", needs_preparation=True)
        world.lose()
        effects = world.join(executor_spec(epoch=2))
        assert effects.calls[1].spec.call_id == call  # type: ignore[index]
        world.run()
        assert world.outputs[call] == expected_output(world.specs[call])


def test_a_call_is_announced_once_just_before_the_plan_that_names_it(world: World) -> None:
    world.submit("p")
    effects = world.feed(PlanDue())
    assert [type(effect).__name__ for effect in effects][:3] == ["AnnounceCall", "ReportStarted", "SendPlan"]
    assert sum(isinstance(effect, AnnounceCall) for effect in effects) == 1


class TestStarvation:
    def test_a_waiting_call_is_promoted_after_beta_times_its_service(self) -> None:
        world = World(
            executors=[executor_spec(max_num_seqs=1)], first_quantum_s=1.0, starvation_beta=2.0, levels=2
        )
        world.open("old")
        world.submit("old", prompt=2, max_tokens=2)
        world.run()
        world.open("flood")
        world.submit("flood", prompt=2, max_tokens=60)
        starving = world.submit("old", prompt=2, max_tokens=2)
        call = world.core.registry.live(starving)
        assert call is not None
        assert call.level == 1
        world.plan()
        world.pass_time(3.5)
        assert call.level == 1
        world.pass_time(0.5)
        assert call.level == 0
        assert world.core.statistics().promotions == 1

    def test_a_long_wait_is_looked_at_more_than_once(self) -> None:
        world = World(executors=[executor_spec(max_num_seqs=1)], first_quantum_s=1.0, starvation_beta=10.0)
        world.open("old")
        world.submit("old", prompt=2, max_tokens=9)
        world.run()
        world.lose()
        world.join(executor_spec(epoch=2))
        call = world.core.registry.live(world.submit("old", prompt=2, max_tokens=2))
        assert call is not None
        for _ in range(89):
            world.pass_time(1.0)
        assert call.level > 0
        world.pass_time(1.0)
        assert call.level == 0

    @pytest.mark.parametrize("waited_before_s", [0.1, 0.3, 0.7, 1.1, 1.3, 1.7, 1.9, 2.3])
    def test_a_rest_too_short_for_the_clock_is_not_waited_for(self, waited_before_s: float) -> None:
        """At the very instant when a timer is due, rounding may leave less than `now` can be raised by."""
        world = World(executors=[executor_spec(max_num_seqs=1)], first_quantum_s=1.0, starvation_beta=2.3)
        world.now = 1e6 / 3
        world.open("old")
        world.submit("old", prompt=2, max_tokens=2)
        world.pass_time(waited_before_s)
        world.run()
        world.open("flood")
        world.submit("flood", prompt=2, max_tokens=60)
        call = world.core.registry.live(world.submit("old", prompt=2, max_tokens=2))
        assert call is not None
        assert call.level == 1
        timers = world.core.lifecycle.starvation_looks
        while call.level > 0:
            world.now = min(due_s for due_s, _, _ in timers._heap)
            world.feed(TimePassed())
        assert world.core.statistics().promotions == 1

    def test_it_can_be_switched_off(self) -> None:
        world = World(starvation_beta=None, first_quantum_s=1.0)
        world.open("old")
        world.submit("old", max_tokens=3)
        world.run()
        world.lose()
        world.submit("old")
        world.join(executor_spec(epoch=2, max_num_seqs=1))
        world.pass_time(1e6)
        assert world.core.statistics().promotions == 0
