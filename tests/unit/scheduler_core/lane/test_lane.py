"""Steady rows enter the lane, are found by what happens to them, and leave it as what they were."""

from functools import partial

import pytest

from scheduler_svc.core.effects import FinishReason
from scheduler_svc.core.executor import Executor
from scheduler_svc.core.ids import CallId, ExecutorId, FrontendId
from scheduler_svc.core.lane import Lane
from tests.unit.scheduler_core.world import World, assert_right_outputs, executor_spec


class QuietWorld(World):
    """A world that does not look at the core after each event: a look refreshes the lane."""

    @property
    def executor(self) -> Executor:
        found = self.core.fleet.get(ExecutorId("executor-1"))
        assert found is not None
        return found

    @property
    def lane(self) -> Lane:
        assert self.executor.lane is not None
        return self.executor.lane

    def live(self, call_id: CallId):  # type: ignore[no-untyped-def]
        call = self.core.registry.live(call_id)
        assert call is not None
        return call


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> QuietWorld:
    monkeypatch.setattr("tests.unit.scheduler_core.world.check", lambda core: None)
    world = QuietWorld(executors=[executor_spec(num_blocks=257)], first_quantum_s=1000.0)
    world.open("a")
    return world


def turns(world: World, count: int) -> None:
    for _ in range(count):
        world.turn()


def test_rows_are_steady_once_their_prompts_are_computed(world: QuietWorld) -> None:
    for _ in range(3):
        world.submit("a", prompt=5, max_tokens=50)
    assert world.lane.rows == 0
    world.plan()
    prompts, decodes = world.plans()
    assert prompts.chunks
    assert not decodes.chunks
    assert world.lane.rows == 3
    assert not world.lane.loose


def test_the_record_of_a_steady_call_is_old_until_it_is_refreshed(world: QuietWorld) -> None:
    call_id = world.submit("a", prompt=5, max_tokens=50)
    turns(world, 10)
    call = world.live(call_id)
    before = len(call.tokens)
    assert before < 5 + len(world.outputs[call_id])
    program = world.core.program(call.spec.tenant, call.spec.program_id)
    assert len(call.tokens) == 5 + len(world.outputs[call_id])
    assert program is not None
    assert program.attained_service_s == len(world.outputs[call_id])


def test_the_batch_is_the_same_object_while_nothing_changes(world: QuietWorld) -> None:
    for _ in range(4):
        world.submit("a", prompt=5, max_tokens=60)
    turns(world, 5)
    turns(world, 6)
    newest = world.plans()[-5:]
    assert len({id(plan.handles) for plan in newest}) == 1


def test_a_row_is_planned_exactly_up_to_its_last_token(world: QuietWorld) -> None:
    call_id = world.submit("a", prompt=5, max_tokens=20)
    world.run()
    assert world.finished[call_id].reason is FinishReason.LENGTH
    assert world.finished[call_id].output_tokens == 20
    rows = sum(len(plan.handles) for plan in world.plans())
    assert rows == 20
    assert_right_outputs(world)


def test_a_steady_row_stops_at_its_stop_token(world: QuietWorld) -> None:
    plain = world.submit("a", prompt=5, max_tokens=40)
    world.run()
    stop = world.outputs[plain][25]
    prompt = world.specs[plain].prompt_token_ids
    call_id = world.submit("a", prompt=prompt, max_tokens=40, stop_token_ids=frozenset({stop}))
    world.run()
    assert world.finished[call_id].stop_token_id == stop
    assert_right_outputs(world)


def test_nothing_is_due_for_a_row_that_has_left(world: QuietWorld) -> None:
    stays, goes = (world.submit("a", prompt=5, max_tokens=tokens) for tokens in (60, 30))
    turns(world, 10)
    assert world.live(goes).seat.steady
    world.cancel(goes)
    turns(world, 70)
    assert len(world.outputs[stays]) == 60
    assert_right_outputs(world, but=[goes])


def test_a_cancelled_row_leaves_with_all_tokens_that_came(world: QuietWorld) -> None:
    call_id = world.submit("a", prompt=5, max_tokens=50)
    turns(world, 12)
    world.cancel(call_id)
    assert world.finished[call_id].output_tokens == len(world.outputs[call_id]) == 12
    assert world.lane.rows == 0
    world.run()
    assert len(world.lane.order) == 0


@pytest.mark.interpreted_core("it replaces a class of the core")
def test_tokens_outlive_a_ring_that_is_too_short_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scheduler_svc.core.executor.Lane", partial(Lane, results_kept=3))
    world = World(executors=[executor_spec(num_blocks=257)])
    world.open("a")
    for length in (7, 40, 41):
        world.submit("a", prompt=5, max_tokens=length)
    world.run()
    assert_right_outputs(world)


def test_several_frontends_get_their_own_tokens(world: QuietWorld) -> None:
    for number in range(4):
        world.submit("a", prompt=5, max_tokens=20 + number, frontend_id=FrontendId(f"f-{number % 2}"))
    turns(world, 5)
    emitted = {effect.frontend_id: len(effect.handles) for effect in world.emits_in_event}
    assert emitted == {"f-0": 2, "f-1": 2}
    world.run()
    assert_right_outputs(world)


def test_slots_are_used_again_but_not_before_their_results_came(world: QuietWorld) -> None:
    for _ in range(40):
        world.submit("a", prompt=3, max_tokens=6)
    world.run()
    assert_right_outputs(world)
    seats = world.executor.spec.max_num_seqs
    assert len(world.lane.table) <= seats * (1 + world.executor.spec.max_plans_in_flight)


def test_a_lost_executor_loses_no_token(world: QuietWorld) -> None:
    call_id = world.submit("a", prompt=5, max_tokens=50)
    turns(world, 12)
    world.lose()
    assert len(world.live(call_id).tokens) == 5 + 12
    world.join(executor_spec(epoch=2, num_blocks=257))
    world.run()
    assert_right_outputs(world)
