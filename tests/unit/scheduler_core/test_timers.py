"""Timers come up once, in order, and leave nothing behind."""

from scheduler_svc.core.timers import Timers


def test_due_keys_come_in_order_of_time_then_of_setting() -> None:
    timers: Timers[str, float] = Timers()
    timers.set("late", 3.0)
    timers.set("b", 1.0)
    timers.set("a", 1.0)
    assert list(timers.pop_due(2.0)) == ["b", "a"]
    assert list(timers.pop_due(2.0)) == []
    assert list(timers.pop_due(3.0)) == ["late"]


def test_setting_again_moves_a_key() -> None:
    timers: Timers[str, float] = Timers()
    timers.set("a", 1.0)
    timers.set("a", 5.0)
    assert list(timers.pop_due(4.0)) == []
    assert list(timers.pop_due(5.0)) == ["a"]


def test_a_dropped_key_never_comes_up() -> None:
    timers: Timers[str, float] = Timers()
    timers.set("a", 1.0)
    timers.drop("a")
    timers.drop("never set")
    assert "a" not in timers
    assert list(timers.pop_due(9.0)) == []


def test_a_key_set_while_others_are_popped_for_a_time_gone_by_comes_up_too() -> None:
    timers: Timers[int, float] = Timers()
    timers.set(3, 0.0)
    seen = []
    for key in timers.pop_due(1.0):
        seen.append(key)
        if key:
            timers.set(key - 1, 0.5)
    assert seen == [3, 2, 1, 0]


def test_memory_follows_the_timers_that_are_set() -> None:
    timers: Timers[int, float] = Timers()
    for number in range(10_000):
        timers.set(number, 600.0)
        timers.drop(number)
    assert len(timers) == 0
    assert len(timers._heap) < 200


def test_whole_numbers_stay_exact() -> None:
    timers: Timers[str, int] = Timers()
    timers.set("now", 2**60)
    timers.set("next", 2**60 + 1)
    assert list(timers.pop_due(2**60)) == ["now"]
