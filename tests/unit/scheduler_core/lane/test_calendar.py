"""What is due when: each seat once, at its number."""

from scheduler_svc.core.lane.calendar import Calendar
from scheduler_svc.core.lane.seats import Seat
from tests.unit.scheduler_core.test_queues import make_call

ONE, TWO, THREE = (Seat(make_call(slot + 1), slot) for slot in range(3))


def test_a_seat_is_due_at_its_number_and_only_once() -> None:
    calendar = Calendar()
    calendar.put(7, ONE)
    calendar.put(7, TWO)
    calendar.put(8, THREE)
    assert not list(calendar.take(6))
    assert list(calendar.take(7)) == [ONE, TWO]
    assert not list(calendar.take(7))
    assert list(calendar.take(8)) == [THREE]


def test_a_seat_that_is_taken_off_is_not_due() -> None:
    calendar = Calendar()
    calendar.put(7, ONE)
    calendar.put(7, TWO)
    calendar.drop(7, ONE)
    assert list(calendar.take(7)) == [TWO]


def test_taking_off_what_is_not_there_changes_nothing() -> None:
    calendar = Calendar()
    calendar.put(7, TWO)
    calendar.drop(7, ONE)
    calendar.drop(9, TWO)
    assert list(calendar.take(7)) == [TWO]


def test_rows_may_be_dropped_while_those_that_are_due_are_gone_through() -> None:
    calendar = Calendar()
    calendar.put(7, ONE)
    calendar.put(7, TWO)
    due = calendar.take(7)
    for seat in due:
        calendar.drop(7, seat)
    assert list(due) == [ONE, TWO]
