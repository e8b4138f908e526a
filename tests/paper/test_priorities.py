"""The two formulas for priorities, PLAS and ATLAS, in both units of service."""

from random import Random

import pytest

from scheduler_svc.core.call import Call
from scheduler_svc.core.config import ServiceUnit
from scheduler_svc.core.critical_path import ENDS_OF_ANY_PROGRAM, Path
from scheduler_svc.core.events import ProgramEnded
from scheduler_svc.core.ids import CallId, ProgramId
from scheduler_svc.core.prices import PS_PER_S
from scheduler_svc.core.process_table import Program
from tests.unit.scheduler_core.world import TENANT, World, executor_spec


def row(world: World, program_id: str = "p") -> Program:
    program = world.core.table.get(TENANT, ProgramId(program_id))
    assert program is not None
    return program


def live(world: World, call_id: CallId) -> Call:
    call = world.core.registry.live(call_id)
    assert call is not None
    return call


def wide_world(**config: object) -> World:
    """Room for everything at once: every call runs from its arrival on, a second a token."""
    spec = executor_spec(max_num_seqs=64, num_blocks=2000, max_num_batched_tokens=512, max_plans_in_flight=1)
    return World(executors=[spec], levels=8, first_quantum_s=1.0, **config)


def chain(world: World, *lengths: int) -> None:
    for length in lengths:
        world.submit("p", prompt=2, max_tokens=length)
        world.run()


@pytest.mark.parametrize(("policy", "level"), [("plas", 4), ("atlas", 3)])
def test_parallel_calls_add_for_plas_and_take_the_maximum_for_atlas(policy: str, level: int) -> None:
    """Priorities: after calls of 5, 6 and 7 s at once PLAS places the next call by 18 s, ATLAS by 7 s."""
    world = wide_world(policy=policy)
    world.open("p")
    for length in (5, 6, 7):
        world.submit("p", prompt=2, max_tokens=length)
    world.run()
    assert live(world, world.submit("p")).level == level, "Q4 begins at 7 s, Q5 at 15 s"


@pytest.mark.parametrize("policy", ["plas", "atlas"])
def test_on_a_chain_both_place_a_call_by_the_sum_of_those_before(policy: str) -> None:
    """Priorities: p(c_j) = sum of t_k, k < j; p = 0 for a root."""
    for lengths, level in (((), 0), ((1,), 1), ((1, 1), 1), ((1, 2), 2), ((3, 4), 3), ((8, 7), 4)):
        world = wide_world(policy=policy)
        world.open("p")
        chain(world, *lengths)
        assert live(world, world.submit("p")).level == level, lengths


def test_plas_counts_completed_calls_only() -> None:
    """Priorities: t_k is known when call k has completed; calls that still run delay no siblings."""
    world = wide_world(policy="plas")
    world.open("p")
    chain(world, 1)
    world.submit("p", prompt=2, max_tokens=30)
    for _ in range(20):
        world.turn()
    assert row(world).service_ps == 21 * PS_PER_S
    assert live(world, world.submit("p")).level == 1


def test_a_call_keeps_the_path_it_inherited() -> None:
    """Priorities: a call inherits the program's scalar on arrival; on completion the scalar becomes
    max(scalar, p(call) + t(call))."""
    world = wide_world()
    world.open("p")
    chain(world, 2)
    for length in (6, 1):
        world.submit("p", prompt=2, max_tokens=length)
    world.run()
    assert row(world).path_service_ps == 8 * PS_PER_S


class TestNamedParents:
    def test_a_branch_is_placed_by_its_own_parent(self) -> None:
        """Priorities: p = max over parents k of (p(c_k) + t_k), here of one parent among two."""
        world = wide_world()
        world.open("p")
        root = world.submit("p", prompt=2, max_tokens=2)
        world.run()
        short = world.submit("p", prompt=2, max_tokens=1, parent_call_ids=(root,))
        long = world.submit("p", prompt=2, max_tokens=30, parent_call_ids=(root,))
        for _ in range(3):
            world.turn()
        child = live(world, world.submit("p", prompt=2, parent_call_ids=(short,)))
        assert child.entry_path.service_ps == 3 * PS_PER_S
        world.run()
        both = live(world, world.submit("p", prompt=2, parent_call_ids=(short, long)))
        assert both.entry_path.service_ps == 32 * PS_PER_S
        nameless = live(world, world.submit("p", prompt=2))
        assert nameless.entry_path == row(world).path

    def test_a_parent_that_still_runs_counts_with_what_it_has_used(self) -> None:
        world = wide_world()
        world.open("p")
        parent = world.submit("p", prompt=2, max_tokens=10)
        for _ in range(4):
            world.turn()
        child_id = world.submit("p", prompt=2, max_tokens=20, parent_call_ids=(parent,))
        child = live(world, child_id)
        assert child.entry_path.service_ps == 4 * PS_PER_S
        world.run()
        assert row(world).path_service_ps == (10 + 20) * PS_PER_S, "and with all of it once that is known"

    def test_an_unknown_parent_means_the_programs_longest_path(self) -> None:
        world = wide_world()
        world.open("p")
        chain(world, 7)
        short = world.submit("p", prompt=2, max_tokens=1, parent_call_ids=("call-1",))
        world.submit("p", prompt=2, max_tokens=20, parent_call_ids=("call-1",))
        world.run()
        assert row(world).path_service_ps == 27 * PS_PER_S
        for parents, path_s in (((short,), 8), (("stranger",), 27), ((short, "stranger"), 27)):
            call = live(world, world.submit("p", prompt=2, parent_call_ids=parents))
            assert call.entry_path.service_ps == path_s * PS_PER_S

    def test_a_foreign_programs_call_is_unknown(self) -> None:
        world = wide_world()
        for program in ("p", "q"):
            world.open(program)
        foreign = world.submit("q", prompt=2, max_tokens=9)
        world.run()
        assert live(world, world.submit("p", parent_call_ids=(foreign,))).entry_path == Path()

    def test_a_call_that_names_itself_or_its_child_gains_nothing(self) -> None:
        world = wide_world()
        world.open("p")
        world.submit("p", prompt=2, max_tokens=3, parent_call_ids=("call-1", "call-2"))
        world.submit("p", prompt=2, max_tokens=3, parent_call_ids=("call-1",))
        world.run()
        assert row(world).path_service_ps == 6 * PS_PER_S

    def test_few_ends_are_kept_until_a_parent_is_named(self) -> None:
        """Memory: a program that never names parents keeps a handful of ends, one that is over none."""
        world = wide_world()
        world.open("p")
        for _ in range(30):
            chain(world, 1)
        assert len(row(world).path_ends) == ENDS_OF_ANY_PROGRAM
        world.submit("p", prompt=2, max_tokens=1, parent_call_ids=("call-30",))
        world.run()
        for _ in range(30):
            chain(world, 1)
        assert len(row(world).path_ends) == ENDS_OF_ANY_PROGRAM + 31
        world.feed(ProgramEnded(tenant=TENANT, program_id=ProgramId("p")))
        assert len(row(world).path_ends) == 0


@pytest.mark.parametrize("seed", range(20))
def test_atlas_is_exact_on_random_dags(seed: int) -> None:
    """Priorities: with all parents named, every call inherits the longest path that leads to it, in both
    units."""
    random = Random(seed)
    world = wide_world(service_unit=random.choice([*ServiceUnit]))
    world.open("p")
    ends: dict[CallId, Path] = {}
    parents_of: dict[CallId, list[CallId]] = {}
    for _ in range(40):
        for _ in range(random.randrange(4)):
            parents = random.sample(sorted(ends), min(len(ends), random.randrange(1, 5)))
            if parents or not parents_of:
                call_id = world.submit(
                    "p", prompt=2, max_tokens=random.randrange(1, 9), parent_call_ids=tuple(parents)
                )
                parents_of[call_id] = parents
                expected = _longest(parents, ends)
                assert live(world, call_id).entry_path == expected
        calls = dict(row(world).live_calls)
        world.turn()
        for call_id, call in calls.items():
            if call_id in world.finished:
                inherited = _longest(parents_of[call_id], ends)
                service_ps, cost_ps = call.service_ps, call.cost_ps
                ends[call_id] = Path(inherited.service_ps + service_ps, inherited.cost_ps + cost_ps)
    world.run()
    assert len(ends) > 15
    assert max(len(parents) for parents in parents_of.values()) > 1


def _longest(parents: list[CallId], ends: dict[CallId, Path]) -> Path:
    service_ps = max((ends[parent].service_ps for parent in parents), default=0)
    return Path(service_ps, max((ends[parent].cost_ps for parent in parents), default=0))
