"""Whose content leaves the device first, and what leaves the host for it."""

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

OLD, NEW = keys("old", 1), keys("new", 1)
PROMPT = keys("system", 2)


def cache_of(blocks: int = 9, host_blocks: int = 0) -> KvCache:
    return KvCache(device_blocks=blocks, host_blocks=host_blocks)


def left(cache: KvCache, evictions: int, *texts: list[bytes]) -> list[bytes]:
    """What is left of the texts on the device after so many evictions."""
    push_out(cache, evictions)
    cache.check([])
    return on_device(cache, [key for text in texts for key in text])


class TestOrder:
    def test_plain_blocks_go_first(self) -> None:
        cache = cache_of(4)
        keep(cache, OLD)
        assert left(cache, 0, OLD) == OLD

    def test_then_the_least_recently_used(self) -> None:
        cache = cache_of()
        for text in (OLD, NEW):
            keep(cache, text)
        assert left(cache, 1, OLD, NEW) == NEW

    def test_use_makes_new(self) -> None:
        cache = cache_of()
        for text in (OLD, NEW):
            keep(cache, text)
        cache.give_back(hold(cache, OLD), OLD, A)
        assert left(cache, 1, OLD, NEW) == OLD

    def test_looking_makes_new(self) -> None:
        cache = cache_of()
        for text in (OLD, NEW):
            keep(cache, text)
        found = cache.find(OLD)
        cache.hold(found)
        cache.let_go(found)
        assert left(cache, 1, OLD, NEW) == OLD

    def test_a_copy_given_back_makes_the_found_one_new(self) -> None:
        cache = cache_of()
        copy = cache.take(1)
        for text in (OLD, NEW):
            keep(cache, text)
        cache.give_back(copy, OLD, B)
        assert left(cache, 1, OLD, NEW) == OLD

    def test_the_end_of_a_table_goes_before_its_beginning(self) -> None:
        cache = cache_of()
        keep(cache, PROMPT)
        assert left(cache, 1, PROMPT) == PROMPT[:1]

    def test_contents_of_ended_programs_go_first_the_oldest_of_all_first(self) -> None:
        cache = cache_of()
        texts = [keys(name, 1) for name in ("live", "b", "c", "b-again")]
        for text, owner in zip(texts, (A, B, C, B), strict=True):
            keep(cache, text, owner)
        cache.program_ended(C)
        cache.program_ended(B)
        live, _, second, third = texts
        assert left(cache, 1, *texts) == [*live, *second, *third]
        assert left(cache, 1, *texts) == [*live, *third], "not in order of their ends"
        assert left(cache, 1, *texts) == live
        assert left(cache, 1, *texts) == []

    def test_contents_of_idle_programs_go_next(self) -> None:
        cache = cache_of()
        live, idle, ended = keys("live", 1), keys("idle", 1), keys("ended", 1)
        for text, owner in ((live, A), (idle, B), (ended, C)):
            keep(cache, text, owner)
        cache.program_idle(B)
        cache.program_ended(C)
        assert left(cache, 1, live, idle, ended) == [*live, *idle]
        assert left(cache, 1, live, idle, ended) == live

    def test_a_program_that_comes_back_is_as_good_as_any(self) -> None:
        cache = cache_of()
        keep(cache, OLD, A)
        keep(cache, NEW, B)
        cache.program_idle(B)
        cache.program_active(B)
        assert left(cache, 1, OLD, NEW) == NEW

    def test_it_is_so_even_if_eviction_had_begun_with_it(self) -> None:
        cache = cache_of()
        text = keys("b", 3)
        keep(cache, OLD, A)
        keep(cache, text, B)
        cache.program_idle(B)
        assert left(cache, 1, OLD, text) == [*OLD, *text[:2]]
        cache.program_active(B)
        assert left(cache, 1, OLD, text) == text[:2]

    def test_giving_back_makes_a_program_active(self) -> None:
        cache = cache_of()
        keep(cache, OLD, B)
        keep(cache, NEW, A)
        cache.program_idle(B)
        cache.give_back(hold(cache, OLD), OLD, B)
        assert left(cache, 1, OLD, NEW) == OLD
        assert cache.live_footprint == 1


class TestSharing:
    """A content belongs to the best of the programs that retain it."""

    @pytest.mark.parametrize("worse", ["program_ended", "program_idle"])
    @pytest.mark.parametrize("better_is", ["first", "second"])
    def test_a_system_prompt_is_as_good_as_its_best_program(self, worse: str, better_is: str) -> None:
        cache = cache_of()
        keep(cache, PROMPT, A if better_is == "first" else B)
        cache.give_back(hold(cache, PROMPT), PROMPT, B if better_is == "first" else A)
        keep(cache, NEW, C)
        getattr(cache, worse)(B)
        assert left(cache, 1, PROMPT, NEW) == [PROMPT[0], *NEW], "by age alone"
        cache.program_ended(A)
        assert left(cache, 1, PROMPT, NEW) == NEW

    def test_it_goes_first_once_all_have_ended(self) -> None:
        cache = cache_of()
        for owner in (A, B, C):
            table = hold(cache, PROMPT) or cache.take(2)
            cache.give_back(table, PROMPT, owner)
        keep(cache, NEW, program("d"))
        for owner in (B, C, A):
            cache.program_ended(owner)
        assert left(cache, 2, PROMPT, NEW) == NEW

    def test_nobodys_content_is_wanted_again_when_a_live_program_hits_it(self) -> None:
        cache = cache_of()
        keep(cache, PROMPT, A)
        cache.program_ended(A)
        cache.give_back(hold(cache, PROMPT), PROMPT, B)
        keep(cache, OLD, None)
        assert left(cache, 1, PROMPT, OLD) == PROMPT

    def test_a_flood_of_anonymous_calls_evicts_only_its_own(self) -> None:
        cache = cache_of(blocks=17, host_blocks=6)
        identified = keys("agent", 6)
        keep(cache, identified, A)
        for call in range(200):
            anonymous = program(f"call-{call}")
            shared = hold(cache, PROMPT)
            own = cache.take(4 - len(shared))
            cache.drain_swaps()
            text = [*PROMPT, *keys(f"text-{call}", 2)]
            cache.give_back([*shared, *own], text, anonymous if call % 2 else None)
            cache.program_ended(anonymous)
            cache.check([])
        assert on_device(cache, identified) == identified
        assert cache.swapped_out == 0, "what nobody wants again is not copied to the host"
        assert len(cache.find(PROMPT)) == 2, "what the flood itself shares is newer than what it does not"


class TestHost:
    def full_host(self) -> KvCache:
        """Device blocks for 2 contents, a host block that holds OLD, retained by A."""
        cache = cache_of(blocks=3, host_blocks=1)
        keep(cache, OLD)
        push_out(cache, 1)
        assert on_host(cache, OLD) == OLD
        return cache

    def test_an_evicted_content_moves_to_the_host(self) -> None:
        cache = self.full_host()
        assert (cache.host_plain, cache.evicted, cache.footprint(A)) == (0, 0, 1)

    def test_it_is_dropped_when_copying_is_not_worth_it(self) -> None:
        cache = cache_of(blocks=3, host_blocks=1)
        cache.move_to_host = False
        keep(cache, OLD)
        push_out(cache, 1)
        assert (len(cache.find(OLD)), cache.swaps_pending, cache.evicted) == (0, 0, 1)

    def test_the_host_gives_up_what_is_older(self) -> None:
        cache = self.full_host()
        keep(cache, NEW)
        push_out(cache, 1)
        assert on_host(cache, [*OLD, *NEW]) == NEW
        assert (cache.evicted, cache.footprint(A)) == (1, 1)

    def test_it_does_not_give_up_what_is_newer(self) -> None:
        cache = cache_of(blocks=4, host_blocks=1)
        keep(cache, OLD)
        keep(cache, NEW)
        cache.expel(NEW)
        push_out(cache, 1)
        assert on_host(cache, [*OLD, *NEW]) == NEW
        assert cache.evicted == 1

    def test_use_on_the_device_counts_for_the_copy_on_the_host(self) -> None:
        cache = cache_of(blocks=4, host_blocks=1)
        keep(cache, NEW)
        push_out(cache, 1)
        keep(cache, OLD)
        cache.give_back(hold(cache, NEW), NEW, A)
        cache.drain_swaps()
        push_out(cache, 1)
        assert on_device(cache, [*OLD, *NEW]) == NEW
        assert cache.swapped_out == 1, "the only copy was that of the newer one"

    @pytest.mark.parametrize("end", ["program_idle", "program_ended"])
    def test_it_gives_up_a_worse_content_even_if_it_is_newer(self, end: str) -> None:
        cache = cache_of(blocks=3, host_blocks=1)
        keep(cache, OLD, B)
        keep(cache, NEW, A)
        cache.expel(NEW)
        getattr(cache, end)(A)
        push_out(cache, 1)
        assert on_host(cache, [*OLD, *NEW]) == OLD

    def test_it_keeps_a_better_content_though_it_is_older(self) -> None:
        cache = self.full_host()
        keep(cache, NEW, B)
        cache.program_idle(B)
        push_out(cache, 1)
        assert on_host(cache, [*OLD, *NEW]) == OLD

    def test_of_two_idle_programs_it_keeps_the_content_that_is_newer(self) -> None:
        cache = cache_of(blocks=4, host_blocks=2)
        new = keys("new", 2)
        keep(cache, OLD, A)
        keep(cache, new, B)
        cache.expel(new)
        cache.program_idle(A)
        cache.program_idle(B)
        part = cache.find(new[:1])
        cache.hold(part)
        cache.let_go(part)
        push_out(cache, 1)
        assert on_host(cache, [*OLD, *new]) == new

    def test_contents_of_ended_programs_leave_the_host_first(self) -> None:
        cache = cache_of(blocks=4, host_blocks=2)
        texts = [keys(name, 1) for name in "abc"]
        for text, owner in zip(texts, (A, B, C), strict=True):
            keep(cache, text, owner)
        push_out(cache, 2)
        cache.program_ended(B)
        push_out(cache, 1)
        assert on_host(cache, [text[0] for text in texts]) == [*texts[0], *texts[2]]

    def test_a_forced_swap_takes_what_nobody_holds_as_far_as_there_is_room(self) -> None:
        cache = cache_of(blocks=9, host_blocks=2)
        text = keys("t", 4)
        keep(cache, text)
        hold(cache, text[:1])
        cache.expel([*text, *keys("unknown", 1)])
        assert on_host(cache, text) == text[1:3]
        assert on_device(cache, text) == [text[0], text[3]]
        assert cache.plain == 6
