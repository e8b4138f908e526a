"""Copies between the tiers: what a plan orders, and what it must not."""

import pytest

from scheduler_svc.core.ids import BlockId
from scheduler_svc.core.kv import KvCache, private_key
from tests.unit.scheduler_core.kv_filled import A, B, hold, keep, keys, on_device, on_host, push_out

TEXT = keys("t", 3)


def swapped(*texts: list[bytes], blocks: int = 6, host_blocks: int = 6) -> KvCache:
    """All of some texts on the host, and the plan that copied them is out."""
    cache = KvCache(device_blocks=blocks, host_blocks=host_blocks)
    for text in texts:
        keep(cache, text)
    push_out(cache, sum(map(len, texts)))
    cache.drain_swaps()
    for text in texts:
        assert on_host(cache, text) == text
    return cache


def on_host_at(cache: KvCache, text: list[bytes]) -> list[BlockId]:
    """The host blocks of a text, all of which is there."""
    there = {key: host for key, _, host in cache.contents() if host is not None}
    return [there[key] for key in text]


class TestPlans:
    def test_outs_and_ins_name_the_blocks_of_their_contents(self) -> None:
        cache = KvCache(device_blocks=6, host_blocks=6)
        table = keep(cache, TEXT)
        push_out(cache, 3)
        host = on_host_at(cache, TEXT)
        outs, ins = cache.drain_swaps()
        assert sorted(outs) == sorted(zip(table, host, strict=True))
        assert ins == ()
        back = hold(cache, TEXT)
        assert cache.swaps_pending == 3
        assert cache.drain_swaps() == ((), tuple(zip(host, back, strict=True)))
        assert (cache.swapped_out, cache.swapped_in, cache.swaps_pending) == (3, 3, 0)
        assert cache.drain_swaps() == ((), ())

    def test_only_what_is_not_on_the_device_is_brought_in(self) -> None:
        cache = KvCache(device_blocks=6, host_blocks=6)
        table = keep(cache, TEXT)
        push_out(cache, 1)
        cache.drain_swaps()
        found = cache.find(TEXT)
        assert (found.to_bring, list(found.device)) == (1, [*table[:2], None])
        cache.hold(found)
        assert cache.bring_in(found)[:2] == table[:2]
        assert len(cache.drain_swaps()[1]) == 1

    def test_a_brought_in_content_keeps_its_copy(self) -> None:
        cache = swapped(TEXT)
        cache.give_back(hold(cache, TEXT), TEXT, A)
        cache.drain_swaps()
        push_out(cache, 3)
        assert on_host(cache, TEXT) == TEXT
        assert cache.drain_swaps() == ((), ())

    def test_two_calls_bring_one_content_in_once(self) -> None:
        cache = swapped(TEXT)
        first, second = cache.find(TEXT), cache.find(TEXT)
        cache.hold(first)
        cache.hold(second)
        table = cache.bring_in(first)
        assert cache.bring_in(second) == table
        assert [cache.references(block) for block in table] == [2, 2, 2]
        assert len(cache.drain_swaps()[1]) == 3

    def test_the_second_finds_it_even_if_the_first_has_left(self) -> None:
        cache = swapped(TEXT)
        first, second = cache.find(TEXT), cache.find(TEXT)
        cache.hold(first)
        cache.hold(second)
        cache.give_back(cache.bring_in(first), TEXT, A)
        cache.drain_swaps()
        table = cache.bring_in(second)
        assert [cache.references(block) for block in table] == [1, 1, 1]
        assert cache.drain_swaps() == ((), ())
        cache.check([table])


class TestPins:
    def test_what_a_call_found_on_the_host_stays_there(self) -> None:
        cache = swapped(TEXT, host_blocks=3)
        found = cache.find(TEXT)
        cache.hold(found)
        other = keys("other", 5)
        keep(cache, other, B)
        push_out(cache, 5)
        assert on_host(cache, TEXT) == TEXT
        assert cache.evicted == 5
        cache.forget(TEXT)
        assert on_host(cache, TEXT) == TEXT
        cache.let_go(found)
        keep(cache, other, B)
        push_out(cache, 5)
        assert on_host(cache, TEXT) == []

    def test_a_host_block_that_is_read_is_not_written(self) -> None:
        cache = swapped(TEXT, blocks=7, host_blocks=3)
        other = keys("other", 3)
        keep(cache, other, B)
        hold(cache, TEXT)
        cache.take(3)
        outs, ins = cache.drain_swaps()
        assert (len(outs), len(ins)) == (0, 3)
        assert cache.evicted == 3

    def test_it_can_be_written_by_the_next_plan(self) -> None:
        cache = swapped(TEXT, blocks=7, host_blocks=3)
        other = keys("other", 3)
        hold(cache, TEXT)
        cache.drain_swaps()
        keep(cache, other, B)
        cache.take(3)
        assert len(cache.drain_swaps()[0]) == 3
        assert on_host(cache, other) == other
        assert on_device(cache, TEXT) == TEXT


class TestPrivateTails:
    TAIL = (private_key(1, 3), private_key(1, 4))

    def test_a_host_copy_that_is_read_is_free_when_the_plan_is_out(self) -> None:
        cache = swapped(TEXT, list(self.TAIL))
        table = hold(cache, [*TEXT, *self.TAIL])
        cache.own(self.TAIL)
        assert cache.host_plain == 1
        cache.check([table])
        assert len(cache.drain_swaps()[1]) == 5, "the tail is read all the same"
        assert cache.host_plain == 3
        cache.check([table])

    def test_a_host_copy_that_is_not_read_is_free_at_once(self) -> None:
        cache = swapped(list(self.TAIL))
        cache.give_back(hold(cache, self.TAIL), self.TAIL, A)
        cache.drain_swaps()
        hold(cache, self.TAIL)
        cache.own(self.TAIL)
        assert cache.host_plain == 6

    def test_a_tail_that_is_still_on_its_way_is_dropped_rather_than_copied_wrong(self) -> None:
        cache = swapped(list(self.TAIL), blocks=3)
        table = hold(cache, self.TAIL)
        cache.own(self.TAIL)
        again = [private_key(2, 3), private_key(2, 4)]
        cache.give_back(table, again, A)
        assert cache.take(2)
        assert len(cache.find(again)) == 0
        assert cache.drain_swaps() == ((), ()), "the block is not written for who does not hold it any more"
        assert cache.host_plain == 6

    @pytest.mark.parametrize("how", ["evicted", "expelled"])
    def test_what_stands_beside_it_is_copied(self, how: str) -> None:
        cache = swapped(list(self.TAIL), blocks=4)
        computed = cache.take(1)
        cache.drain_swaps()
        table = hold(cache, self.TAIL)
        cache.own(self.TAIL)
        cache.give_back([table[0], *computed, table[1]], TEXT, A)
        if how == "evicted":
            cache.take(3)
        else:
            cache.expel(TEXT)
        assert on_host(cache, TEXT) == TEXT[1:2]
        assert on_device(cache, TEXT) == ([] if how == "evicted" else [TEXT[0], TEXT[2]])
        outs, _ = cache.drain_swaps()
        assert [device for device, _ in outs] == computed

    def test_the_block_of_such_a_tail_may_be_the_target_of_another_copy(self) -> None:
        cache = swapped(TEXT, list(self.TAIL), blocks=6)
        table = hold(cache, self.TAIL)
        cache.own(self.TAIL)
        cache.give_back(table, [], None)
        table = hold(cache, TEXT)
        assert len(cache.drain_swaps()[1]) == 3
        assert cache.host_plain == 3
        cache.check([table])

    @pytest.mark.parametrize("where", ["device", "host"])
    def test_the_tail_of_a_call_that_ended_is_free(self, where: str) -> None:
        cache = KvCache(device_blocks=6, host_blocks=6)
        keep(cache, self.TAIL)
        if where == "host":
            cache.expel(self.TAIL)
        cache.forget(self.TAIL)
        assert (cache.plain, cache.host_plain, cache.footprint(A)) == (5, 6, 0)
        assert cache.drain_swaps() == ((), ())


class TestNeedlessCopies:
    def test_nothing_is_kept_for_copies_that_are_not_ordered(self) -> None:
        cache = swapped(TEXT)
        cache.give_back(hold(cache, TEXT), TEXT, A)
        cache.drop(TEXT)
        assert cache.drain_swaps() == ((), ())
        assert not cache._store.host.read
        cache.check([])

    def test_a_copy_whose_content_was_forgotten_is_not_ordered(self) -> None:
        cache = KvCache(device_blocks=6, host_blocks=6)
        keep(cache, TEXT)
        push_out(cache, 3)
        cache.hold(cache.find(TEXT[:1]))
        cache.drop(TEXT)
        assert cache.swaps_pending == 1
        assert len(cache.drain_swaps()[0]) == 1

    def test_a_host_block_is_the_target_of_one_copy(self) -> None:
        cache = KvCache(device_blocks=3, host_blocks=1)
        (first,), (second,) = keep(cache, TEXT[:1]), keep(cache, TEXT[1:2])
        cache.take(2)
        assert first != second
        assert cache.drain_swaps() == (((second, BlockId(0)),), ())

    def test_out_and_in_again_within_a_plan(self) -> None:
        cache = KvCache(device_blocks=6, host_blocks=6)
        table = keep(cache, TEXT[:1])
        blocker = cache.take(5)
        (host,) = on_host_at(cache, TEXT[:1])
        cache.give_back(blocker, [], None)
        back = hold(cache, TEXT[:1])
        assert cache.drain_swaps() == (((table[0], host),), ((host, back[0]),))

    def test_what_is_computed_again_meanwhile_is_on_both(self) -> None:
        cache = swapped(TEXT)
        table = keep(cache, TEXT)
        assert list(cache.find(TEXT).device) == table
        assert cache.host_plain == 3
        push_out(cache, 3)
        assert cache.drain_swaps() == ((), ())
        assert on_host(cache, TEXT) == TEXT
