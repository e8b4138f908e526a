"""Device blocks: taking, publishing, finding, holding and giving back."""

import pytest

from scheduler_svc.core.kv import NOTHING_FOUND, KvCache, private_key
from tests.unit.scheduler_core.kv_filled import A, B, hold, keep, keys, on_device

TEXT = keys("t", 4)


def cache_of(blocks: int = 9, host_blocks: int = 0) -> KvCache:
    return KvCache(device_blocks=blocks, host_blocks=host_blocks)


def test_the_null_block_is_never_handed_out() -> None:
    cache = cache_of(5)
    assert sorted(cache.take(4)) == [1, 2, 3, 4]
    assert (cache.available, cache.held, cache.size) == (0, 4, 4)


def test_taking_more_than_there_is_is_our_bug() -> None:
    with pytest.raises(AssertionError, match="5 blocks wanted, 4 available"):
        cache_of(5).take(5)
    with pytest.raises(AssertionError, match="-1 blocks wanted"):
        cache_of(5).take(-1)


def test_taking_none_takes_none() -> None:
    cache = cache_of(5)
    assert cache.take(0) == []
    assert cache.available == 4


def test_a_block_that_was_not_named_is_worthless_once_given_back() -> None:
    cache = cache_of(9)
    cache.give_back(cache.take(2), [], A)
    assert (cache.plain, cache.footprint(A)) == (8, 0)


def test_what_is_given_back_under_keys_is_found_where_it_was() -> None:
    cache = cache_of()
    table = cache.take(3)
    cache.give_back(table, TEXT[:2], A)
    found = cache.find(TEXT)
    assert (len(found), list(found.device), found.to_bring) == (2, table[:2], 0)
    assert (cache.held, cache.available, cache.plain) == (0, 8, 6)


def test_a_prefix_ends_at_the_first_unknown_key() -> None:
    cache = cache_of()
    keep(cache, TEXT[:1])
    keep(cache, TEXT[2:])
    assert len(cache.find(TEXT)) == 1
    assert len(cache.find(TEXT[1:])) == 0
    assert cache.find(keys("other", 2)) is NOTHING_FOUND


def test_a_published_block_is_found_while_it_is_held() -> None:
    cache = cache_of()
    (block,) = cache.take(1)
    cache.publish([block], TEXT[:1])
    assert hold(cache, TEXT) == [block]
    assert cache.references(block) == 2


def test_a_shared_block_is_free_when_its_last_holder_has_left() -> None:
    cache = cache_of(3)
    table = keep(cache, TEXT[:1])
    first, second = hold(cache, TEXT), hold(cache, TEXT)
    assert first == second == table
    cache.give_back(first, TEXT[:1], A)
    assert (cache.references(table[0]), cache.available) == (1, 1)
    cache.give_back(second, TEXT[:1], A)
    assert (cache.references(table[0]), cache.available) == (0, 2)


def test_what_is_held_is_not_evicted() -> None:
    cache = cache_of(3)
    keep(cache, TEXT[:2])
    hold(cache, TEXT[:1])
    cache.take(1)
    assert cache.available == 0
    assert on_device(cache, TEXT) == TEXT[:1]


def test_letting_go_undoes_holding() -> None:
    cache = cache_of(5)
    keep(cache, TEXT)
    found = cache.find(TEXT)
    cache.hold(found)
    assert cache.available == 0
    cache.let_go(found)
    assert (cache.available, cache.held) == (4, 0)
    cache.take(1)
    assert on_device(cache, TEXT) == TEXT[:3], "the end of a prefix goes first"


def test_the_first_of_two_equal_blocks_is_the_one_found() -> None:
    cache = cache_of()
    first, second = cache.take(1), cache.take(1)
    cache.publish(first, TEXT[:1])
    cache.publish(second, TEXT[:1])
    assert list(cache.find(TEXT).device) == first
    cache.give_back(second, TEXT[:1], B)
    assert cache.plain == 7, "the copy is worthless"
    assert cache.footprint(B) == 1, "B wants the content nevertheless"
    cache.give_back(first, TEXT[:1], A)
    assert list(cache.find(TEXT).device) == first


def test_a_resumed_call_owns_its_private_tail() -> None:
    cache = cache_of()
    tail = [private_key(7, 1), private_key(7, 2)]
    table = [*keep(cache, TEXT[:1]), *keep(cache, tail)]
    assert hold(cache, [TEXT[0], *tail]) == table
    cache.own(tail)
    assert len(cache.find(tail)) == 0
    assert cache.footprint(A) == 1
    cache.give_back(table, TEXT[:1], A)
    assert cache.plain == 7, "what was written into is worthless without a new name"


def test_owning_what_others_hold_is_our_bug() -> None:
    cache = cache_of()
    keep(cache, TEXT[:1])
    hold(cache, TEXT[:1])
    hold(cache, TEXT[:1])
    with pytest.raises(AssertionError, match="alone"):
        cache.own(TEXT[:1])


@pytest.mark.parametrize("forced", ["forget", "drop"])
def test_forgotten_contents_are_free_unless_they_are_held(forced: str) -> None:
    cache = cache_of()
    keep(cache, TEXT)
    hold(cache, TEXT[:1])
    getattr(cache, forced)([*TEXT, *keys("unknown", 1)])
    assert on_device(cache, TEXT) == TEXT[:1]
    assert (cache.plain, cache.evicted, cache.footprint(A)) == (7, 0, 1)


def test_private_keys_collide_with_nothing() -> None:
    assert len(private_key(2**40, 5)) != 16
    assert len({private_key(seq, index) for seq in range(20) for index in (0, 1, 2**20)}) == 60


@pytest.mark.parametrize("lie", [[], [[1, 1]], [[2]], [[1], [1]]])
def test_check_sees_references_that_do_not_add_up(lie: list[list[int]]) -> None:
    cache = cache_of()
    table = cache.take(1)
    assert table == [1]
    cache.check([table])
    with pytest.raises(AssertionError, match=r"do not add up|twice"):
        cache.check(lie)  # type: ignore[arg-type]
