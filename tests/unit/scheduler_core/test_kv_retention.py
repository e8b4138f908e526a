"""What is kept for programs, and that nothing is kept for those that are over."""

import gc
from collections.abc import Callable
from random import Random
from types import FunctionType, ModuleType

import pytest

from scheduler_svc.core.kv import KvCache
from scheduler_svc.core.kv.runs import Retainer, Run, Standing
from tests.unit.scheduler_core.kv_filled import A, B, hold, keep, keys, program, push_out

SHARED = keys("system", 3)


def cache_of(blocks: int = 33, host_blocks: int = 8) -> KvCache:
    return KvCache(device_blocks=blocks, host_blocks=host_blocks)


def everything_kept(cache: KvCache) -> list[object]:
    """Objects that the cache keeps alive."""
    seen: dict[int, object] = {}
    waiting: list[object] = [cache]
    while waiting:
        thing = waiting.pop()
        if id(thing) not in seen and not isinstance(thing, type | FunctionType | ModuleType):
            seen[id(thing)] = thing
            waiting += gc.get_referents(thing)
    return list(seen.values())


def kept(cache: KvCache, kind: type = object) -> int:
    """How many of a kind those are."""
    return sum(isinstance(thing, kind) for thing in everything_kept(cache))


class TestFootprint:
    def test_a_tree_counts_its_trunk_once(self) -> None:
        cache = cache_of()
        trunk = keep(cache, SHARED)
        for branch in range(4):
            hold(cache, SHARED)
            cache.give_back([*trunk, *cache.take(2)], [*SHARED, *keys(f"branch{branch}", 2)], A)
        assert cache.footprint(A) == 3 + 4 * 2
        assert cache.live_footprint == 11

    def test_it_counts_both_tiers_and_each_content_once(self) -> None:
        cache = cache_of(blocks=4)
        keep(cache, SHARED)
        push_out(cache, 2)
        assert cache.footprint(A) == 3
        cache.drain_swaps()
        hold(cache, SHARED)
        assert cache.footprint(A) == 3

    def test_programs_that_share_count_each_for_itself(self) -> None:
        cache = cache_of()
        keep(cache, SHARED, A)
        cache.give_back(hold(cache, SHARED), SHARED, B)
        assert (cache.footprint(A), cache.footprint(B), cache.live_footprint) == (3, 3, 6)

    def test_idle_and_ended_programs_are_not_live(self) -> None:
        cache = cache_of()
        keep(cache, SHARED, A)
        keep(cache, keys("b", 2), B)
        cache.program_idle(A)
        cache.program_idle(A)
        assert (cache.live_footprint, cache.footprint(A)) == (2, 3)
        cache.program_active(A)
        assert cache.live_footprint == 5
        cache.program_ended(A)
        assert (cache.live_footprint, cache.footprint(A)) == (2, 0)
        cache.program_idle(B)
        cache.program_ended(B)
        assert cache.live_footprint == 0
        cache.check([])

    def test_it_shrinks_as_contents_are_forgotten(self) -> None:
        cache = cache_of(blocks=4, host_blocks=1)
        keep(cache, SHARED)
        push_out(cache, 3)
        assert (cache.footprint(A), cache.live_footprint, cache.evicted) == (1, 1, 2)

    @pytest.mark.parametrize("event", ["program_active", "program_idle", "program_ended"])
    def test_programs_that_retain_nothing_are_not_known(self, event: str) -> None:
        cache = cache_of()
        getattr(cache, event)(A)
        keep(cache, [], A)
        assert cache.footprint(A) == cache.live_footprint == 0
        cache.check([])
        assert kept(cache, Retainer) == 0


class TestMemory:
    """What has left both tiers leaves no trace; what is put off is bounded."""

    def test_a_program_is_forgotten_with_its_last_content(self) -> None:
        cache = cache_of(blocks=4, host_blocks=0)
        for name in range(50):
            keep(cache, keys(f"text{name}", 3), program(f"p{name}"))
        assert (len(list(cache.contents())), kept(cache, Run), kept(cache, Retainer)) == (3, 1, 1)
        assert cache.live_footprint == 3

    def test_ended_programs_that_shared_a_prompt_do_not_pile_up(self) -> None:
        cache = cache_of(blocks=9, host_blocks=0)
        keep(cache, SHARED, A)
        for name in range(300):
            cache.give_back(hold(cache, SHARED), SHARED, program(f"p{name}"))
            cache.program_ended(program(f"p{name}"))
        assert cache.evicted == 0, "nothing had to be evicted"
        assert kept(cache, Retainer) < 40
        cache.check([])

    def test_contents_that_have_gone_do_not_pile_up_with_an_idle_program(self) -> None:
        cache = cache_of(blocks=9, host_blocks=0)
        keep(cache, keys("t", 8), A)
        cache.program_idle(A)
        push_out(cache, 6)
        assert cache.footprint(A) == 2
        assert [len(run.keys) for run in everything_kept(cache) if isinstance(run, Run)] == [2]

    def test_neither_do_spells_of_idleness(self) -> None:
        cache = cache_of(blocks=9)
        keep(cache, SHARED, A)
        self.repeat(cache, lambda: (cache.program_idle(A), cache.program_active(A)))

    def test_neither_do_looks_at_what_nobody_retains(self) -> None:
        cache = cache_of(blocks=9)
        keep(cache, SHARED, None)
        self.repeat(cache, lambda: cache.give_back(hold(cache, SHARED), SHARED, None))

    def test_neither_do_host_copies_that_come_and_go(self) -> None:
        cache = cache_of(blocks=9)
        self.repeat(cache, lambda: (keep(cache, SHARED, A), cache.expel(SHARED), cache.drop(SHARED)))

    @staticmethod
    def repeat(cache: KvCache, what: Callable[[], object]) -> None:
        """Doing it over and over does not make the cache larger."""
        what()
        before = kept(cache)
        for _ in range(1000):
            what()
        assert kept(cache) - before < 600
        cache.check([])


class TestPuttingOff:
    """Ends and idleness of programs cost next to nothing until eviction asks for their runs; then little."""

    @staticmethod
    def unsettled(cache: KvCache) -> int:
        """Pairs of idle and ended programs that are not settled."""
        pairs = [
            (retainer.standing, run in retainer.cold)
            for run in cache._store.index.by_first.values()
            for retainer in run.retainers
        ]
        return pairs.count((Standing.IDLE, False)) + sum(standing is Standing.ENDED for standing, _ in pairs)

    @pytest.mark.parametrize("event", ["program_idle", "program_ended"])
    def test_an_event_walks_nothing_and_an_eviction_only_what_it_needs(self, event: str) -> None:
        cache = cache_of(blocks=201)
        for text in range(50):
            keep(cache, keys(f"t{text}.", 3), A)
        keep(cache, keys("u", 50), B)
        getattr(cache, event)(A)
        for runs in range(50, 45, -1):
            assert self.unsettled(cache) == runs
            cache.take(1)
            assert self.unsettled(cache) == runs - 1
            cache.take(2)
            assert self.unsettled(cache) == runs - 1, "a run is settled once, whole"

    @pytest.mark.parametrize("event", ["program_idle", "program_ended"])
    def test_programs_that_came_long_ago_and_were_used_again_are_left_alone(self, event: str) -> None:
        cache = cache_of(blocks=41, host_blocks=0)
        programs = [program(f"p{number}") for number in range(20)]
        for owner in programs * 2:
            text = keys(owner[1], 2)
            cache.give_back(hold(cache, text) or cache.take(2), text, owner)
        retainers = dict(cache._store.retention._retainers)
        for owner in programs:
            getattr(cache, event)(owner)
        taken = cache.take(1)
        assert [owner for owner in programs if retainers[owner].walk is not None] == programs[:1]
        cache.check([taken])

    @pytest.mark.parametrize("seed", range(5))
    def test_the_order_is_kept_when_many_come_and_go(self, seed: int) -> None:
        random, cache = Random(seed), cache_of(blocks=101, host_blocks=0)
        programs = [program(f"p{number}") for number in range(100)]
        for owner in programs:
            keep(cache, keys(owner[1], 1), owner)
        for owner in random.sample(programs[:-1], 99):
            cache.program_idle(owner)
        for owner in programs[:30]:
            cache.program_active(owner)
        for _ in range(200):
            cache.program_idle(programs[-1])
            cache.program_active(programs[-1])
        for owner in programs[30:-1]:
            assert cache.footprint(owner) == 1
            cache.take(1)
            assert cache.footprint(owner) == 0, "not the oldest idle one"

    def test_each_pair_is_settled_once_a_spell(self) -> None:
        cache = cache_of(blocks=101, host_blocks=0)
        for owner in (A, B):
            table = hold(cache, SHARED) or cache.take(3)
            text = keys(owner[1], 40)
            cache.give_back([*table, *cache.take(40)], [*SHARED, *text], owner)
        cache.program_idle(A)
        assert self.unsettled(cache) == 2
        push_out(cache, 30)
        assert self.unsettled(cache) == 1, "what A shares with B is newer"
        cache.program_idle(A)
        assert self.unsettled(cache) == 1, "the spell goes on"
        cache.program_active(A)
        cache.program_ended(A)
        cache.program_ended(B)
        assert self.unsettled(cache) == 2 + 2
        push_out(cache, 53)
        assert self.unsettled(cache) == 0


def test_a_program_that_retains_nothing_leaves_no_cycle_to_the_garbage_collector() -> None:
    def retainers() -> int:
        return sum(type(thing) is Retainer for thing in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        before = retainers()
        cache = KvCache(device_blocks=5, host_blocks=0)
        keep(cache, keys("a", 2), A)
        keep(cache, keys("b", 2), B)
        cache.program_ended(B)
        assert retainers() == before + 2
        push_out(cache, 4)
        assert retainers() == before
    finally:
        gc.enable()
