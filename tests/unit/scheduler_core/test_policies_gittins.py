"""Gittins: ranks that are right, classes that are told apart, levels that do not thrash, memory that is
bounded."""

from random import Random

import pytest

from scheduler_svc.core.config import CoreConfig, ServiceUnit
from scheduler_svc.core.events import PolicyChanged, ProgramCancelled, ProgramEnded
from scheduler_svc.core.ids import ProgramId
from scheduler_svc.core.policies import make_policy
from scheduler_svc.core.prices import PS_PER_S
from scheduler_svc.core.process_table import Program
from scheduler_svc.core.service_history import (
    BUCKETS,
    EDGES_PS,
    PRIOR_RANKS_PS,
    ServiceHistory,
    SizeDistribution,
    ranks_ps,
)
from tests.unit.scheduler_core.test_queues import make_call, make_program
from tests.unit.scheduler_core.world import TENANT, World


def ended(size_s: float, class_name: str = "", *, single_call: bool = False) -> Program:
    program = make_program()
    program.class_name, program.single_call = class_name, single_call
    program.finished_calls = 1
    program.cost_ps = program.service_ps = round(size_s * PS_PER_S)
    return program


def history_of(sizes: dict[str, list[float]]) -> ServiceHistory:
    history = ServiceHistory()
    for class_name, sizes_s in sizes.items():
        for size_s in sizes_s:
            history.program_ended(ended(size_s, class_name))
    return history


class TestRanks:
    def test_are_the_least_price_of_a_completion(self) -> None:
        """Against the definition, computed one program at a time on random histograms."""
        random = Random(1)
        for _ in range(10):
            counts = [random.choice([0, 0, 1, 5]) for _ in range(BUCKETS)]
            counts[-1] = 1
            ends = [*EDGES_PS[1:], 2 * EDGES_PS[-1]]
            sizes = [ends[bucket] for bucket, count in enumerate(counts) for _ in range(count)]
            for start, rank in enumerate(ranks_ps(counts)):
                left = [size - EDGES_PS[start] for size in sizes if size > EDGES_PS[start]]
                prices = []
                for limit in (end - EDGES_PS[start] for end in ends[start:]):
                    done = sum(size <= limit for size in left)
                    if done:
                        prices.append(sum(min(size, limit) for size in left) // done)
                assert rank == min(prices)

    def test_of_the_prior_grow_with_service_like_least_attained_service(self) -> None:
        assert list(PRIOR_RANKS_PS) == sorted(PRIOR_RANKS_PS)
        assert PRIOR_RANKS_PS[0] < PS_PER_S, "a new program begins in the first level"
        for edge, rank in zip(EDGES_PS[10:], PRIOR_RANKS_PS[10:], strict=True):
            assert edge <= rank < 3 * edge

    def test_fall_as_a_predictable_program_comes_to_its_end(self) -> None:
        sizes = SizeDistribution()
        for _ in range(500):
            sizes.add(8 * PS_PER_S)
        ranks = [sizes.rank_ps(round(used_s * PS_PER_S)) for used_s in (0, 4, 6, 7.5)]
        assert ranks == sorted(ranks, reverse=True)
        assert ranks[0] == pytest.approx(8 * PS_PER_S, rel=0.5)

    def test_stand_still_between_eighths_of_new_programs(self) -> None:
        sizes = SizeDistribution()
        for _ in range(80):
            sizes.add(PS_PER_S)
        before = sizes.rank_ps(0)
        changes = 0
        for number in range(80):
            sizes.add((number + 1) * 10 * PS_PER_S)
            changes += sizes.rank_ps(0) != before
            before = sizes.rank_ps(0)
        assert 0 < changes <= 8

    def test_forget_the_distant_past(self) -> None:
        sizes = SizeDistribution()
        for _ in range(5000):
            sizes.add(100 * PS_PER_S)
        for _ in range(2000):
            sizes.add(PS_PER_S)
        assert sizes.rank_ps(0) < 3 * PS_PER_S

    def test_take_any_size(self) -> None:
        sizes = SizeDistribution()
        for _ in range(100):
            sizes.add(10**30)
            sizes.add(0)
        assert sizes.rank_ps(0) > 0
        assert sizes.rank_ps(10**30) > 0


class TestClasses:
    def test_of_short_programs_go_first(self) -> None:
        history = history_of({"chat": [0.3] * 50, "coder": [100.0] * 50})
        policy = make_policy(CoreConfig(policy="gittins"), history)
        levels = {}
        for name in ("chat", "coder", "unknown"):
            call = make_call(1, program=ended(0.0, name))
            levels[name] = policy.level_at_arrival(call)
        assert levels["chat"] == levels["unknown"] == 0
        assert levels["coder"] > 3

    def test_anonymous_calls_are_one_of_their_own(self) -> None:
        history = ServiceHistory()
        for _ in range(50):
            history.program_ended(ended(100.0, single_call=True))
        anonymous = history.of(ended(0.0, single_call=True), ServiceUnit.COST)
        nameless = history.of(ended(0.0), ServiceUnit.COST)
        assert anonymous.rank_ps(0) > nameless.rank_ps(0) == PRIOR_RANKS_PS[0]

    def test_are_bounded_the_silent_ones_go_first(self) -> None:
        history = ServiceHistory(classes_max=3)
        for name in ("a", "b", "c", "a", "d"):
            for _ in range(20):
                history.program_ended(ended(50.0, name))
        assert len(history) == 3
        known = [
            name for name in "abcd" if history.of(ended(0.0, name), ServiceUnit.COST).rank_ps(0) > PS_PER_S
        ]
        assert known == ["a", "c", "d"]

    def test_looking_makes_none(self) -> None:
        history = ServiceHistory()
        history.of(ended(1.0, "x"), ServiceUnit.COST)
        assert len(history) == 0

    def test_both_units_are_kept(self) -> None:
        history = ServiceHistory()
        for _ in range(50):
            program = ended(50.0, "x")
            program.service_ps = 0
            history.program_ended(program)
        ranks = [history.of(ended(0.0, "x"), unit).rank_ps(0) for unit in ServiceUnit]
        assert ranks[0] > 10 * PS_PER_S > PS_PER_S > ranks[1]


class TestHysteresis:
    def test_a_level_is_left_for_good_reason_only(self) -> None:
        last_s = PRIOR_RANKS_PS[20] / 1.1 / PS_PER_S
        config = CoreConfig(policy="gittins", levels=3, level_boundaries_s=(last_s / 10, last_s))
        policy = make_policy(config)
        program = ended(0.0)
        call = make_call(1, program=program, level=1)
        program.cost_ps = EDGES_PS[20]
        assert policy.level_at_arrival(call) == 2
        assert policy.level_after_quantum(call) == 1, "the rank is hardly past the boundary"
        program.cost_ps = EDGES_PS[22]
        assert policy.level_after_quantum(call) == 2
        call.level, program.cost_ps = 2, EDGES_PS[19]
        assert policy.level_at_arrival(call) == 1
        assert policy.level_after_quantum(call) == 2, "and the same on the way back"
        program.cost_ps = EDGES_PS[17]
        assert policy.level_after_quantum(call) == 1
        call.level = 0
        assert policy.level_after_quantum(call) == 1, "after a promotion"

    def test_every_level_looks_again_some_time(self) -> None:
        policy = make_policy(CoreConfig(policy="gittins", levels=8))
        assert policy.quantum_ps(7) < 2**60, "also the last one: ranks may fall"

    @pytest.mark.parametrize("levels", [1, 2, 8])
    def test_it_changes_levels_seldom(self, levels: int) -> None:
        """Over the life of a program a call changes its level a few times, not at every quantum."""
        policy = make_policy(CoreConfig(policy="gittins", levels=levels))
        program = ended(0.0)
        call = make_call(1, program=program)
        changes = 0
        for _ in range(2000):
            program.cost_ps += PS_PER_S // 10
            level = policy.level_after_quantum(call)
            changes += level != call.level
            call.level = level
        assert changes == levels - 1 if levels < 8 else changes <= levels - 1


class TestInTheCore:
    def run_program(self, world: World, name: str, length: int, **changes: object) -> None:
        world.open(name, **changes)
        world.submit(name, prompt=2, max_tokens=length)
        world.run()

    def test_programs_are_counted_when_they_are_over_and_not_when_cancelled(self) -> None:
        world = World()
        history = world.core.table.history
        self.run_program(world, "open", 3, class_name="open")
        assert len(history) == 0
        world.feed(ProgramEnded(tenant=TENANT, program_id=ProgramId("open")))
        assert len(history) == 1
        self.run_program(world, "given-up", 3, class_name="given-up")
        world.feed(ProgramCancelled(tenant=TENANT, program_id=ProgramId("given-up")))
        world.open("silent", class_name="silent")
        world.feed(ProgramEnded(tenant=TENANT, program_id=ProgramId("silent")))
        assert len(history) == 1
        self.run_program(world, "idle", 3, class_name="idle")
        world.pass_time(10_000.0)
        assert len(history) == 2

    @pytest.mark.interpreted_core("it replaces a method of the history")
    def test_ending_again_counts_once(self) -> None:
        world = World()
        self.run_program(world, "p", 3, class_name="x")
        added: list[Program] = []
        world.core.table.history.program_ended = added.append  # type: ignore[method-assign]
        for _ in range(3):
            world.feed(ProgramEnded(tenant=TENANT, program_id=ProgramId("p")))
        assert len(added) == 1

    @pytest.mark.parametrize("policy", ["gittins", "fcfs"])
    def test_what_was_learned_is_used_under_whichever_policy_it_was(self, policy: str) -> None:
        world = World(policy=policy)
        for number in range(20):
            self.run_program(world, f"long-{number}", 40, class_name="long", single_call=False)
            world.feed(ProgramEnded(tenant=TENANT, program_id=ProgramId(f"long-{number}")))
        if policy != "gittins":
            world.feed(PolicyChanged(changes={"policy": "gittins"}))
        for class_name in ("long", "new"):
            world.open(class_name, class_name=class_name)
        levels = [world.core.program(TENANT, ProgramId(name)).level for name in ("long", "new")]  # type: ignore[union-attr]
        assert levels[0] > levels[1] == 0
