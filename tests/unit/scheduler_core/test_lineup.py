"""An ordered map in chunks says the same as a sorted list, whatever is added and removed."""

import random
from bisect import bisect_left

import pytest

from scheduler_svc.core.call import Call
from scheduler_svc.core.lineup import Lineup, QueueKey
from tests.unit.scheduler_core.test_queues import make_call


class Beside:
    """A lineup with short chunks beside a dict that is sorted whenever it is asked."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.lineup = Lineup(chunk_max=4)
        self.naive: dict[QueueKey, Call] = {}

    def add(self) -> None:
        key = (self.random.randrange(4), self.random.randrange(1000))
        if key not in self.naive:
            call = make_call(key[1], level=key[0])
            self.lineup.add(key, call)
            self.naive[key] = call

    def remove(self) -> None:
        if self.naive:
            key = self.random.choice(sorted(self.naive))
            self.lineup.remove(key)
            del self.naive[key]

    def compare(self) -> None:
        keys = sorted(self.naive)
        assert list(self.lineup.items()) == [(key, self.naive[key]) for key in keys]
        assert list(self.lineup.calls()) == [self.naive[key] for key in keys]
        assert list(self.lineup.backwards()) == [(key, self.naive[key]) for key in reversed(keys)]
        assert len(self.lineup) == len(keys)
        assert self.lineup.first() is (self.naive[keys[0]] if keys else None)
        assert self.lineup.last_key() == (keys[-1] if keys else None)
        for key in [*keys, (0,), (2,), (3, 500), (9,)]:
            assert self.lineup.count_before(key) == bisect_left(keys, key)
            assert self.lineup.get(key) is self.naive.get(key)


@pytest.mark.parametrize("seed", range(20))
def test_it_is_a_sorted_list(seed: int) -> None:
    beside = Beside(seed)
    for adds_of_ten in (8, 2, 7, 1):
        for _ in range(60):
            beside.add() if beside.random.randrange(10) < adds_of_ten else beside.remove()
            beside.compare()


def test_nothing_is_left_of_what_was_taken_out() -> None:
    lineup = Lineup(chunk_max=4)
    for number in range(100):
        lineup.add((number,), make_call(number))
    for number in range(100):
        lineup.remove((number,))
    assert (len(lineup), lineup.first(), lineup.last_key(), list(lineup.items())) == (0, None, None, [])
    lineup.add((7,), make_call(7))
    lineup.clear()
    lineup.add((8,), make_call(8))
    assert [call.seq for call in lineup.calls()] == [8]


def test_what_is_not_there_cannot_be_removed() -> None:
    lineup = Lineup()
    lineup.add((1,), make_call(1))
    with pytest.raises(KeyError):
        lineup.remove((2,))
    assert [call.seq for call in lineup.calls()] == [1]
