"""The process table and the two formulas for priorities."""

from scheduler_svc.core.ids import ProgramId
from scheduler_svc.core.prices import PS_PER_S
from scheduler_svc.core.process_table import Program
from tests.unit.scheduler_core.world import TENANT, World


def row(world: World, program_id: str) -> Program:
    program = world.core.table.get(TENANT, ProgramId(program_id))
    assert program is not None
    return program


def chain(world: World, program_id: str, *lengths: int) -> None:
    """Runs calls of these lengths one after the other, a second a token."""
    for length in lengths:
        world.submit(program_id, prompt=2, max_tokens=length)
        world.run()


def test_plas_is_the_sum_over_completed_calls() -> None:
    """Process table: PLAS service is the execution time of completed calls, summed."""
    world = World()
    world.open("p")
    chain(world, "p", 3, 4)
    assert row(world, "p").completed_service_s == 7.0
    world.submit("p", prompt=2, max_tokens=9)
    world.turn()
    assert row(world, "p").completed_service_s == 7.0, "a call that still runs does not count"
    assert row(world, "p").service_s == 8.0, "though it has attained service"


def test_plas_and_atlas_agree_on_a_chain() -> None:
    """Priorities: for a sequential program the sum and the longest path are the same."""
    world = World()
    world.open("p")
    chain(world, "p", 3, 1, 5)
    assert row(world, "p").path_service_ps == row(world, "p").completed_service_ps == 9 * PS_PER_S


def test_parallel_calls_add_for_plas_and_take_the_maximum_for_atlas() -> None:
    """Priorities: on completion service = max(service, p(call) + t(call)) for ATLAS, the sum for PLAS."""
    world = World()
    world.open("p")
    chain(world, "p", 2)
    for length in (3, 5):
        world.submit("p", prompt=2, max_tokens=length)
    world.run()
    assert row(world, "p").completed_service_s == 10.0
    assert row(world, "p").path_service_ps == 7 * PS_PER_S


def test_a_call_inherits_the_programs_service_on_arrival() -> None:
    """Priorities: a call's place comes from what the program had completed when it arrived."""
    world = World(first_quantum_s=1.0, levels=4)
    world.open("p")
    chain(world, "p", 3)
    call = world.core.registry.live(world.submit("p"))
    assert call is not None
    assert (call.level, call.entry_path.service_ps) == (2, 3 * PS_PER_S)


def test_the_table_keeps_times_of_arrival_and_completion() -> None:
    """Process table: last arrival finds stale programs, last completion finds long interrupts."""
    world = World()
    world.open("p")
    world.pass_time(1.0)
    world.submit("p", prompt=2, max_tokens=3)
    world.run()
    program = row(world, "p")
    assert program.last_arrival_s is not None
    assert program.last_completion_s is not None
    assert program.last_completion_s - program.last_arrival_s == 3.0
