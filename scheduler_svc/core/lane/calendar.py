"""What is due when: seats by the number of a plan or of a result.

Numbers come up one by one, so what is due is found by one look-up, however many rows there are.
"""

from collections.abc import Iterable

from scheduler_svc.core.lane.seats import Seat


class Calendar:
    """Seats by number; a seat stands under one at most."""

    def __init__(self) -> None:
        self._seats: dict[int, dict[Seat, None]] = {}

    def put(self, number: int, seat: Seat) -> None:
        """A seat that stands under no number is due at this one."""
        seats = self._seats.get(number)
        if seats is None:
            self._seats[number] = {seat: None}
        else:
            seats[seat] = None

    def drop(self, number: int, seat: Seat) -> None:
        """Takes a seat off its number, if it stands there."""
        seats = self._seats.get(number)
        if seats is not None and seat in seats:
            del seats[seat]
            if not seats:
                del self._seats[number]

    def take(self, number: int) -> Iterable[Seat]:
        """The seats that are due at a number; none are left there."""
        return self._seats.pop(number, ())
