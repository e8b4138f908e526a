"""The process table: one entry a program, from session start to session end, and what stands in it."""

from scheduler_svc.core.events import ExecutorDrainRequested, ProgramEnded
from scheduler_svc.core.ids import CallId, ExecutorId, ProgramId, ThreadId
from scheduler_svc.core.process_table import Program
from scheduler_svc.core.snapshots import ProgramState
from tests.unit.scheduler_core.world import TENANT, World, executor_spec


def one_seat() -> World:
    """A call at a time in order of arrival, a second a step."""
    return World(executors=[executor_spec(max_num_seqs=1, max_plans_in_flight=1)], policy="fcfs")


def row(world: World, program_id: str = "p") -> Program:
    program = world.core.table.get(TENANT, ProgramId(program_id))
    assert program is not None
    return program


def states(world: World) -> dict[str, ProgramState]:
    return {program.program_id: program.state for program in world.core.programs()}


def test_an_entry_lives_from_session_start_to_session_end() -> None:
    """Process table: one entry a program."""
    world = one_seat()
    assert states(world) == {}
    world.open("p")
    world.open("q")
    assert states(world) == {"p": ProgramState.IDLE, "q": ProgramState.IDLE}
    call = world.submit("p")
    world.feed(ProgramEnded(tenant=TENANT, program_id=ProgramId("p")))
    late = world.submit("p")
    assert late in world.refused, "an ended program makes no calls"
    world.run()
    assert call in world.finished, "what it had begun is finished"
    assert states(world) == {"p": ProgramState.ENDED, "q": ProgramState.IDLE}


def test_calls_of_all_threads_count_for_the_one_entry() -> None:
    """Sessions: every call names its program and its thread."""
    world = World(executors=[executor_spec(max_plans_in_flight=1)])
    world.open("p")
    for thread in ("left", "right"):
        world.submit("p", prompt=2, max_tokens=3, thread_id=ThreadId(thread))
    world.run()
    assert (row(world).finished_calls, row(world).completed_service_s) == (2, 6.0)
    assert len(world.core.programs()) == 1


def test_threads_are_the_live_calls_each_with_arrival_waiting_and_service() -> None:
    """Process table: the active calls, each with its arrival, waiting and service time."""
    world = one_seat()
    world.open("p")
    began_s = world.now
    world.submit("p", prompt=2, max_tokens=3, thread_id=ThreadId("left"))
    world.turn()
    world.submit("p", prompt=2, max_tokens=2, thread_id=ThreadId("right"))
    world.turn()
    left, right = row(world).live_calls.values()
    assert (left.spec.thread_id, right.spec.thread_id) == ("left", "right")
    assert (left.arrived_s, right.arrived_s) == (began_s, began_s + 1)
    assert (left.waiting_s(world.now), left.service_s) == (0.0, 2.0)
    assert (right.waiting_s(world.now), right.service_s) == (1.0, 0.0)
    world.run()
    assert list(row(world).live_calls) == [], "a finished call is no thread"


def test_waiting_is_the_time_in_the_queue_of_all_calls() -> None:
    """Process table: waiting time in the scheduler's queue, of calls that ended and calls that wait."""
    world = one_seat()
    world.open("p")
    for length in (3, 2, 4):
        world.submit("p", prompt=2, max_tokens=length)
    for _ in range(4):
        world.turn()
    assert row(world).completed_waiting_s == 0.0, "the first call never waited"
    assert row(world).waiting_s(world.now) == 3.0 + 4.0
    world.run()
    assert row(world).completed_waiting_s == row(world).waiting_s(world.now) == 3.0 + 5.0


def test_engines_are_those_that_served_the_program_in_order() -> None:
    """Process table: ids of the engines that served it; being placed on one is not being served."""
    specs = [executor_spec(name, max_plans_in_flight=1) for name in ("a", "b", "c")]
    world = World(executors=specs)
    for program in ("p", "q"):
        world.open(program)
    world.submit("q", prompt=2, max_tokens=9)
    world.submit("p", prompt=2, max_tokens=1)
    assert list(row(world).executor_ids) == []
    world.turn()
    assert list(row(world).executor_ids) == ["b"]
    for gone in ("b", "c"):
        world.feed(ExecutorDrainRequested(executor_id=ExecutorId(gone)))
    world.submit("p", prompt=2, max_tokens=1)
    world.turn()
    assert list(row(world).executor_ids) == ["b", "a"]


def test_last_arrival_and_last_completion_tell_stale_programs_from_long_interrupts() -> None:
    """Process table: nothing arrived for long: stale; something completed long ago: a tool or a human."""
    world = one_seat()
    world.open("p")
    assert (row(world).last_arrival_s, row(world).last_completion_s) == (None, None)
    for interrupt_s in (0.0, 50.0):
        world.pass_time(interrupt_s)
        arrived_s = world.now
        world.submit("p", prompt=2, max_tokens=2)
        assert row(world).last_arrival_s == arrived_s
        world.run()
        assert row(world).last_completion_s == arrived_s + 2


def test_service_is_of_completed_calls_while_live_ones_are_counted_apart() -> None:
    """Process table: a priority comes from what is complete; the other counter runs along."""
    world = one_seat()
    world.open("p")
    call_id: CallId = world.submit("p", prompt=2, max_tokens=4)
    seen = []
    while call_id not in world.finished:
        world.turn()
        seen.append((row(world).service_s, row(world).completed_service_s))
    assert seen == [(1.0, 0.0), (2.0, 0.0), (3.0, 0.0), (4.0, 4.0)]
