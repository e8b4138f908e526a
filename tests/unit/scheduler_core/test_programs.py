"""The process table through the core: opening, ending, listing, bounds."""

import pytest

from scheduler_svc.core.effects import FinishReason
from scheduler_svc.core.errors import Refused
from scheduler_svc.core.events import ProgramCancelled, ProgramEnded, ProgramOpened
from scheduler_svc.core.ids import ExecutorId, ProgramId, TenantId
from scheduler_svc.core.process_table import EXECUTORS_LISTED
from scheduler_svc.core.snapshots import ProgramSnapshot, ProgramState
from tests.unit.scheduler_core.world import TENANT, World, executor_spec


@pytest.fixture
def world() -> World:
    return World()


def look(world: World, program_id: str) -> ProgramSnapshot:
    program = world.core.program(TENANT, ProgramId(program_id))
    assert program is not None
    return program


def end(world: World, program_id: str) -> None:
    world.feed(ProgramEnded(tenant=TENANT, program_id=ProgramId(program_id)))


def reason_of(world: World, event: object) -> str:
    with pytest.raises(Refused) as refused:
        world.feed(event)  # type: ignore[arg-type]
    return refused.value.refusal.reason


class TestOpening:
    def test_a_session_key_finds_its_open_program(self, world: World) -> None:
        world.open("p", session_key="mine", class_name="chat")
        found = world.core.find_program(TENANT, "mine")
        assert found is not None
        assert (found.program_id, found.class_name, found.state) == ("p", "chat", ProgramState.IDLE)
        assert world.core.find_program(TenantId("stranger"), "mine") is None
        end(world, "p")
        assert world.core.find_program(TENANT, "mine") is None

    def test_two_tenants_may_use_one_id(self, world: World) -> None:
        world.open("p")
        world.feed(ProgramOpened(tenant=TenantId("stranger"), program_id=ProgramId("p")))
        assert len(world.core.programs()) == 2
        assert len(world.core.programs(TENANT)) == 1

    def test_opening_again_changes_nothing_while_it_is_open(self, world: World) -> None:
        world.open("p", class_name="chat")
        world.open("p")
        assert look(world, "p").class_name == "chat"
        end(world, "p")
        assert reason_of(world, ProgramOpened(tenant=TENANT, program_id=ProgramId("p"))) == "PROGRAM_ENDED"

    def test_open_programs_are_bounded(self) -> None:
        world = World(open_programs_max=2)
        world.open("a")
        world.open("b")
        assert reason_of(world, ProgramOpened(tenant=TENANT, program_id=ProgramId("c"))) == "PROGRAM_LIMIT"
        end(world, "a")
        world.open("c")
        assert world.core.statistics().open_programs == 2


class TestEnding:
    def test_live_calls_finish_and_new_ones_are_refused(self, world: World) -> None:
        world.open("p")
        live = world.submit("p")
        world.turn()
        end(world, "p")
        late = world.submit("p")
        assert world.refused[late].refusal.reason == "PROGRAM_ENDED"
        world.run()
        assert world.finished[live].reason is FinishReason.LENGTH
        assert look(world, "p").state is ProgramState.ENDED
        end(world, "p")

    def test_cancelling_ends_the_live_calls(self, world: World) -> None:
        world.open("p")
        calls = [world.submit("p") for _ in range(2)]
        world.turn()
        world.feed(ProgramCancelled(tenant=TENANT, program_id=ProgramId("p")))
        assert [world.finished[call].reason for call in calls] == [FinishReason.ABORT] * 2
        assert look(world, "p").state is ProgramState.CANCELLED

    @pytest.mark.parametrize("event", [ProgramEnded, ProgramCancelled])
    def test_a_strangers_program_looks_unknown(self, world: World, event: type) -> None:
        world.open("p")
        assert (
            reason_of(world, event(tenant=TenantId("stranger"), program_id=ProgramId("p")))
            == "PROGRAM_UNKNOWN"
        )
        assert reason_of(world, event(tenant=TENANT, program_id=ProgramId("q"))) == "PROGRAM_UNKNOWN"
        assert world.core.program(TenantId("stranger"), ProgramId("p")) is None

    def test_a_single_call_program_ends_with_its_last_live_call(self, world: World) -> None:
        world.open("p", single_call=True)
        for length in (1, 3):
            world.submit("p", max_tokens=length)
        world.turn()
        assert look(world, "p").state is ProgramState.RUNNING
        world.run()
        assert look(world, "p").state is ProgramState.ENDED

    def test_idle_programs_time_out_and_busy_ones_do_not(self) -> None:
        world = World(idle_timeout_s=10.0)
        world.open("idle")
        world.open("busy")
        world.submit("busy", max_tokens=30)
        world.turn()
        world.pass_time(8.9)
        assert look(world, "idle").state is ProgramState.IDLE
        world.pass_time(0.1)
        assert look(world, "idle").state is ProgramState.TIMED_OUT
        world.pass_time(100.0)
        assert look(world, "busy").state is ProgramState.RUNNING
        world.run()
        world.pass_time(9.9)
        assert look(world, "busy").state is ProgramState.IDLE
        world.pass_time(0.1)
        assert look(world, "busy").state is ProgramState.TIMED_OUT

    def test_each_wait_is_timed_from_the_end_of_the_last_call(self) -> None:
        world = World(idle_kv_s=4.0, idle_timeout_s=100.0)
        world.open("p")
        program = world.core.table.known(TENANT, ProgramId("p"))
        for waited_s in (0.0, 3.0, 5.0, 9.0):  # at once, while it waits, and twice when its KV is idle
            world.pass_time(waited_s)
            assert program.is_kv_idle is (waited_s > 4.0)
            world.submit("p", max_tokens=5)
            world.pass_time(3.0)  # a timer of an earlier wait comes up while the call runs, or soon after
            world.run()
            world.pass_time(3.75)
            assert not program.is_kv_idle
            world.pass_time(0.25)
            assert program.is_kv_idle
            world.submit("p", max_tokens=1)
            world.run()
        world.pass_time(99.75)
        assert look(world, "p").state is ProgramState.IDLE
        world.pass_time(0.25)
        assert look(world, "p").state is ProgramState.TIMED_OUT
        assert len(world.core.lifecycle.programs) == 0

    def test_ended_programs_are_listed_for_a_while(self) -> None:
        world = World(recent_programs_max=2)
        for program in ("a", "b", "c", "d"):
            world.open(program)
        for program in ("a", "b", "c"):
            end(world, program)
        assert [program.program_id for program in world.core.programs()] == ["b", "c", "d"]
        assert reason_of(world, ProgramEnded(tenant=TENANT, program_id=ProgramId("a"))) == "PROGRAM_UNKNOWN"

    def test_memory_is_bounded_over_many_one_call_programs(self) -> None:
        world = World(recent_programs_max=5, unacknowledged_calls_max=5)
        for number in range(60):
            world.open(f"p{number}", single_call=True)
            world.submit(f"p{number}", max_tokens=1, deadline_s=100.0)
            world.run()
        assert len(world.core.programs()) == 5
        assert len(world.core.registry._calls) == 5
        assert len(world.core.lifecycle.programs) == 0
        assert (len(world.core.lifecycle.deadlines), len(world.core.lifecycle.starvation_looks)) == (0, 0)


class TestCounters:
    def test_the_table_adds_up(self, world: World) -> None:
        for program in ("a", "b"):
            world.open(program)
            for length in (2, 5):
                world.submit(program, prompt=6, max_tokens=length)
        world.run()
        for program in ("a", "b"):
            row = look(world, program)
            ends = [world.finished[call] for call, spec in world.specs.items() if spec.program_id == program]
            assert (row.finished_calls, row.live_calls, row.tokens, row.prompt_tokens) == (2, 0, 7, 12)
            assert row.attained_service_s == sum(end.service_s for end in ends)
            assert row.waiting_s == pytest.approx(sum(end.waiting_s for end in ends))
            assert row.executor_ids == ("executor-1",)
        statistics = world.core.statistics()
        assert (statistics.tokens, statistics.calls_submitted, statistics.calls_finished) == (14, 4, 4)

    def test_a_live_call_counts_at_once(self, world: World) -> None:
        world.open("p")
        world.submit("p", max_tokens=9)
        world.turn()
        world.turn()
        row = look(world, "p")
        assert (row.state, row.live_calls, row.tokens, row.attained_service_s) == (
            ProgramState.RUNNING,
            1,
            2,
            2.0,
        )

    def test_two_calls_in_one_step_are_both_charged(self, world: World) -> None:
        world.open("p")
        world.submit("p", max_tokens=1)
        world.submit("p", max_tokens=1)
        world.run()
        assert look(world, "p").attained_service_s == 2.0

    def test_waiting_is_time_live_and_not_in_a_batch(self, world: World) -> None:
        world.open("p")
        world.submit("p")
        world.pass_time(3.0)
        assert look(world, "p").waiting_s == 3.0
        assert look(world, "p").state is ProgramState.WAITING

    def test_the_level_is_that_of_the_most_urgent_call_or_of_the_next(self) -> None:
        world = World(first_quantum_s=2.0)
        world.open("p")
        world.submit("p", max_tokens=5)
        assert look(world, "p").level == 0
        for _ in range(3):
            world.turn()
        assert look(world, "p").level == 1
        world.run()
        assert look(world, "p").level == 1, "5 s of service, and the second level ends at 6 s"

    def test_ages_and_response_times(self, world: World) -> None:
        world.open("p")
        world.pass_time(5.0)
        assert (look(world, "p").age_s, look(world, "p").response_s) == (5.0, 0.0)
        world.submit("p", max_tokens=2)
        world.run()
        world.pass_time(5.0)
        assert (look(world, "p").age_s, look(world, "p").response_s) == (12.0, 7.0)


def test_live_calls_are_counted_by_level_wherever_they_are() -> None:
    world = World(first_quantum_s=2.0, levels=3)
    world.open("p")
    world.submit("p", max_tokens=9)
    for _ in range(3):
        world.turn()
    world.open("q")
    world.submit("q", needs_preparation=True)
    assert world.core.live_calls_by_level() == [1, 1, 0]
    world.lose()
    assert world.core.live_calls_by_level() == [1, 1, 0], "none is in a queue now"
    world.join(executor_spec(epoch=2))
    world.run()
    assert world.core.live_calls_by_level() == [0, 0, 0]


def test_models_show_what_a_frontend_must_respect() -> None:
    world = World(
        executors=[
            executor_spec(params_formats=("a", "b"), num_blocks=11, simulated=True),
            executor_spec("executor-2", params_formats=("b", "c"), max_model_len=64),
        ]
    )
    (model,) = world.core.models()
    assert (model.executors, model.num_blocks, model.max_model_len, model.max_call_tokens) == (2, 76, 64, 40)
    assert (model.params_formats, model.simulated) == (("b",), False)


def test_a_program_that_ran_on_more_executors_than_it_lists_leaves_no_kv_behind() -> None:
    world = World()
    world.open("p")
    program = world.core.table.get(TENANT, ProgramId("p"))
    assert program is not None
    program.executor_ids = {ExecutorId(f"former-{number}"): None for number in range(EXECUTORS_LISTED)}
    world.submit("p", prompt=12)
    world.run()
    executor = world.core.fleet.get(executor_spec().executor_id)
    assert executor is not None
    assert executor.kv.live_footprint > 0
    world.feed(ProgramEnded(tenant=TENANT, program_id=ProgramId("p")))
    assert executor.kv.live_footprint == 0
