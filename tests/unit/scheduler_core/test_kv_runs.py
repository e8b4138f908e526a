"""Runs: how they grow and are cut, and that work is done by the run, not by the block."""

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from scheduler_svc.core.kv import KvCache
from tests.unit.scheduler_core.kv_filled import (
    A,
    B,
    C,
    hold,
    keep,
    keys,
    on_device,
    on_host,
    program,
    push_out,
)

TEXT = keys("t", 6)


def cache_of(blocks: int = 33, host_blocks: int = 0) -> KvCache:
    return KvCache(device_blocks=blocks, host_blocks=host_blocks)


def runs(cache: KvCache) -> list[list[bytes]]:
    """The keys of all runs, in order of their first ones."""
    return sorted(run.keys for run in cache._store.index.by_first.values())


def branch(cache: KvCache, trunk: list[bytes], name: str, owner: tuple[Any, Any] = A) -> list[bytes]:
    """A call takes a trunk over and computes two blocks of its own. Returns: its keys."""
    text = [*trunk, *keys(name, 2)]
    table = hold(cache, text)
    cache.give_back([*table, *cache.take(len(text) - len(table))], text, owner)
    return text


class TestGrowing:
    def test_a_prompt_published_by_chunks_is_one_run(self) -> None:
        cache = cache_of()
        table = cache.take(6)
        for end in (1, 3, 5):
            cache.publish(table[:end], TEXT[:end])
        cache.give_back(table, TEXT, A)
        assert runs(cache) == [TEXT]
        cache.check([])

    def test_the_context_of_an_agent_is_one_run_however_many_turns_it_takes(self) -> None:
        cache = cache_of()
        text: list[bytes] = []
        for turn in range(10):
            text = branch(cache, text, f"turn{turn}.")
        assert runs(cache) == [text]
        assert (cache.footprint(A), cache.live_footprint) == (20, 20)
        cache.check([])

    def test_what_is_published_is_not_retained_before_it_is_given_back(self) -> None:
        cache = cache_of()
        keep(cache, TEXT[:2])
        table = [*hold(cache, TEXT), *cache.take(4)]
        cache.publish(table[:4], TEXT[:4])
        assert cache.footprint(A) == 2
        cache.give_back(table, TEXT, A)
        assert cache.footprint(A) == 6
        cache.check([])

    @pytest.mark.parametrize("who", ["another call holds it", "another program retains it"])
    def test_what_others_have_a_part_in_does_not_grow(self, who: str) -> None:
        cache = cache_of()
        keep(cache, TEXT[:2], A)
        others = hold(cache, TEXT) if who == "another call holds it" else []
        table = [*hold(cache, TEXT), *cache.take(4)]
        cache.give_back(table, TEXT, A if others else B)
        assert runs(cache) == [TEXT[:2], TEXT[2:]]
        cache.check([others])
        assert (cache.footprint(A), cache.footprint(B)) == ((6, 0) if others else (2, 6))


class TestCutting:
    def test_looking_cuts_nothing(self) -> None:
        cache = cache_of()
        keep(cache, TEXT)
        assert len(cache.find([*TEXT[:2], *keys("other", 2)])) == 2
        assert runs(cache) == [TEXT]

    def test_branches_of_a_tree_share_its_trunk(self) -> None:
        cache = cache_of()
        trunk = TEXT[:3]
        texts = [branch(cache, trunk, name) for name in ("left", "mid", "right")]
        assert runs(cache) == sorted([texts[0][3:], texts[1][3:], texts[2]]), "the last one grew out of it"
        assert (cache.footprint(A), cache.held) == (9, 0)
        for text in texts:
            assert len(cache.find(text)) == 5
        cache.check([])

    def test_the_rest_of_a_cut_run_keeps_its_place_in_the_order(self) -> None:
        cache = cache_of(blocks=9)
        first, second = keys("first", 4), keys("second", 4)
        keep(cache, first)
        keep(cache, second)
        hold(cache, first[:2])
        for left in ([first[2], *second], second, second[:3], second[:2]):
            cache.take(1)
            assert on_device(cache, [*first[2:], *second]) == left

    def test_two_who_compute_the_same_by_different_chunks_name_it_once(self) -> None:
        cache = cache_of()
        one, other = cache.take(6), cache.take(6)
        cache.publish(one[:3], TEXT[:3])
        for end in (2, 4, 6):
            cache.publish(other[:end], TEXT[:end])
        cache.publish(one, TEXT)
        assert list(cache.find(TEXT).device) == one[:3] + other[3:]
        cache.check([one, other])
        cache.give_back(other, TEXT, B)
        cache.check([one])
        cache.give_back(one, TEXT, A)
        assert (cache.plain, cache.footprint(A), cache.footprint(B)) == (32 - 6, 6, 6)
        cache.check([])

    def test_a_run_whose_beginning_was_forgotten_is_found_behind_a_new_one(self) -> None:
        cache = cache_of(blocks=33, host_blocks=1)
        keep(cache, TEXT[:3])
        cache.expel(TEXT[:1])
        waiting = cache.find(TEXT[:1])
        cache.hold(waiting)
        cache.drop(TEXT[:2])
        assert len(cache.find(TEXT)) == 1
        assert on_device(cache, TEXT) == TEXT[2:3]
        table = [*cache.bring_in(waiting), *cache.take(2)]
        cache.publish(table, TEXT[:3])
        assert len(cache.find(TEXT)) == 3
        assert runs(cache) == [TEXT[:1], TEXT[1:2], TEXT[2:3]]
        cache.check([table])

    @pytest.mark.parametrize("event", ["program_idle", "program_ended"])
    def test_both_parts_keep_the_standing_of_the_whole(self, event: str) -> None:
        cache = cache_of(blocks=13)
        keep(cache, TEXT[:4], A)
        keep(cache, keys("live", 4), B)
        getattr(cache, event)(A)
        found = cache.find(TEXT[:2])
        cache.hold(found)
        cache.let_go(found)
        cache.check([])
        push_out(cache, 4)
        assert on_device(cache, [*TEXT, *keys("live", 4)]) == keys("live", 4)

    def test_a_run_goes_to_the_host_as_far_as_there_is_room(self) -> None:
        cache = cache_of(blocks=7, host_blocks=4)
        keep(cache, TEXT)
        push_out(cache, 5)
        assert on_host(cache, TEXT) == TEXT[1:5], "its tail is older than what came last"
        assert on_device(cache, TEXT) == TEXT[:1]
        assert (cache.evicted, cache.footprint(A)) == (1, 5)
        cache.check([])

    @pytest.mark.parametrize("what", ["evict", "expel", "expel to less", "drop", "copy"])
    def test_where_runs_were_cut_makes_no_difference(self, what: str) -> None:
        def outcome(*, cut: bool) -> object:
            cache = cache_of(blocks=13, host_blocks=4 if what == "expel to less" else 6)
            copy = cache.take(6)
            keep(cache, TEXT)
            part, whole = cache.find(TEXT[:2]), cache.find(TEXT)
            for found in (part, whole) if cut else (whole,):
                cache.hold(found)
            for found in (part, whole) if cut else (whole,):
                cache.let_go(found)
            assert len(runs(cache)) == 1 + cut
            if what == "copy":
                cache.give_back(copy, TEXT, A)
            elif what == "evict":
                cache.take(5)
            else:
                getattr(cache, what.split()[0])(TEXT)
            kept = sorted(cache.contents(), key=lambda content: content[0])
            return kept, cache.drain_swaps(), cache.take(cache.plain)

        assert outcome(cut=True) == outcome(cut=False)


class TestJoining:
    def test_a_context_whose_prompts_are_published_is_one_run_after_each_turn(self) -> None:
        cache = cache_of(blocks=65)
        text: list[bytes] = []
        for turn in range(10):
            text = [*text, *keys(f"turn{turn}.", 4)]
            table = hold(cache, text)
            table += cache.take(len(text) - len(table))
            cache.publish(table[:-2], text[:-2])
            cache.give_back(table, text, A)
            assert runs(cache) == [text]
            assert (cache.footprint(A), cache.live_footprint) == (len(text), len(text))
            cache.check([])

    def test_what_others_looked_at_in_part_is_one_run_after_its_next_use(self) -> None:
        cache = cache_of()
        keep(cache, TEXT)
        for count in (4, 2, 1):
            part = cache.find(TEXT[:count])
            cache.hold(part)
            cache.let_go(part)
        assert runs(cache) == [TEXT[:1], TEXT[1:2], TEXT[2:4], TEXT[4:]]
        cache.give_back(hold(cache, TEXT), TEXT, A)
        assert runs(cache) == [TEXT]
        cache.check([])

    def test_what_went_to_the_host_block_by_block_is_one_run_after_its_next_use(self) -> None:
        cache = cache_of(blocks=7, host_blocks=6)
        keep(cache, TEXT)
        cache.give_back([block for _ in TEXT for block in cache.take(1)], [])
        assert on_host(cache, TEXT) == TEXT
        assert len(runs(cache)) == 6
        cache.drain_swaps()
        table = hold(cache, TEXT)
        cache.drain_swaps()
        cache.give_back(table, TEXT, A)
        assert runs(cache) == [TEXT]
        cache.check([])
        push_out(cache, 6)
        assert cache.drain_swaps() == ((), ()), "the host copies are still good"
        cache.check([])

    @pytest.mark.parametrize("who", ["holds", "waits for", "retains", "reads"])
    def test_what_others_have_a_part_in_stays_apart(self, who: str) -> None:
        cache = cache_of(host_blocks=6)
        keep(cache, TEXT)
        if who in ("waits for", "reads"):
            cache.expel(TEXT)
        cache.drain_swaps()
        head = cache.find(TEXT[:2])
        cache.hold(head)
        others = [block for block in head.device if block is not None]
        table = hold(cache, TEXT)
        if who == "retains":
            cache.give_back(others, TEXT[:2], B)
            others = []
        elif who == "reads":
            cache.let_go(head)
        if who != "reads":
            cache.drain_swaps()
        cache.give_back(table, TEXT, A)
        assert runs(cache) == [TEXT[:2], TEXT[2:]]
        cache.check([others])

    def test_what_another_call_has_computed_in_its_own_blocks_stays_apart(self) -> None:
        cache = cache_of()
        one, other = cache.take(6), cache.take(6)
        cache.publish(one[:2], TEXT[:2])
        cache.publish(other, TEXT)
        cache.give_back(one, TEXT, A)
        assert runs(cache) == [TEXT[:2], TEXT[2:]]
        cache.check([other])

    def test_what_a_program_retains_does_not_join_a_beginning_that_nobody_does(self) -> None:
        cache = cache_of()
        keep(cache, TEXT, A)
        cache.drop(TEXT[:2])
        again = cache.take(2)
        cache.publish(again, TEXT[:2])
        table = hold(cache, TEXT)
        cache.give_back(again, TEXT[:2], None)
        assert cache.footprint(A) == 4
        cache.give_back(table, TEXT, A)
        assert (cache.footprint(A), cache.live_footprint) == (6, 6)
        cache.check([])


def test_what_is_forgotten_does_not_keep_its_keys() -> None:
    cache = cache_of(blocks=11, host_blocks=20)
    programs = [program(f"p{number}") for number in range(50)]
    for number, owner in enumerate(programs):
        keep(cache, keys(f"{number}.", 10), owner)
        cache.program_idle(owner)
    cache.drain_swaps()
    host = cache._store.host
    assert len(host.by_age) > 3, "runs that are gone are still listed"
    assert sum(len(run.keys) for _, run in host.by_age._entries) == 20
    cache.check([])


class TestDepartures:
    def test_what_two_calls_share_is_free_when_both_have_left(self) -> None:
        cache = cache_of()
        keep(cache, TEXT[:2])
        one, other = hold(cache, TEXT) + cache.take(3), hold(cache, TEXT) + cache.take(1)
        departures = cache.departures()
        before = cache.available
        assert departures.add(one, TEXT[:2]) == 3
        assert departures.add(other, TEXT[:3]) == 1 + 2
        assert cache.available == before, "nobody has left"

    def test_a_private_copy_is_free_whoever_holds_what_is_found(self) -> None:
        cache = cache_of()
        one, copy = cache.take(3), cache.take(3)
        cache.publish(one, TEXT[:3])
        cache.publish(copy, TEXT[:3])
        assert cache.departures().add(copy, TEXT[:3]) == 3
        assert cache.departures().add(one, TEXT[:3]) == 3


def python_calls(work: Callable[[], object]) -> int:
    """Functions that are called for some work."""
    calls = 0

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
    return calls


def a_life(blocks: int) -> int:
    """What a call costs that finds half of its blocks, computes the other half, ends, and is evicted."""
    cache = KvCache(device_blocks=blocks + 1, host_blocks=0)
    text = keys("t", blocks)
    half = blocks // 2
    keep(cache, text[:half], C)

    def live() -> None:
        table = [*hold(cache, text), *cache.take(blocks - half)]
        cache.publish(table, text)
        cache.give_back(table, text, A)
        cache.program_ended(A)
        cache.take(blocks)

    return python_calls(live)


@pytest.mark.interpreted_core("calls of compiled functions cannot be counted")
def test_a_call_costs_by_its_runs_not_by_its_blocks() -> None:
    assert 0 < a_life(10) == a_life(1000) < 150
