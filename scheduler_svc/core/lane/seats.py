"""Seats: each call in a batch has a slot, and the columns say of each slot what is the same at every step.

A slot is used again only when the plans that were made while it was taken have been answered: until then what
their results say of it goes where nobody reads it.
"""

from collections import deque
from typing import TYPE_CHECKING

import numpy as np

from scheduler_svc.core.ids import FrontendId
from scheduler_svc.core.lineup import QueueKey

if TYPE_CHECKING:
    from scheduler_svc.core.call import Call

_SLOTS_FIRST = 16


class Seat:
    """The place of a running call in the columns. What concerns steady rows is void while `steady` is not
    set."""

    __slots__ = (
        "base",
        "call",
        "due",
        "first",
        "key",
        "last",
        "offset",
        "plan_base",
        "planned_step",
        "retired",
        "slot",
        "steady",
    )

    def __init__(self, call: "Call", slot: int) -> None:
        self.call = call
        self.slot = slot
        self.key: QueueKey | None = None
        """Its place in the order of the batch; None: it is not in it."""
        self.planned_step = -1
        """The newest plan with a row of it that was an object."""
        self.steady = False
        """Whether it is in the lane."""
        self.first = 0
        """Its first plan as a steady row: it takes part in plans `first`..`last`."""
        self.last = 0
        """The plan that samples its last token."""
        self.due = 0
        """The result at which it must be looked at."""
        self.retired = False
        """Whether that plan was made: it takes part in no further one."""
        self.offset = 0
        """Plan number + offset = the position that the plan computes."""
        self.base = 0
        """The newest result that its call knows of."""
        self.plan_base = 0
        """The newest plan that its call knows of."""


class SeatTable:
    """Slots of one executor. Shape of all columns: (slots,)."""

    def __init__(self) -> None:
        self.seats: list[Seat | None] = []
        """By slot; None: free."""
        self.handles = np.zeros(_SLOTS_FIRST, np.int32)
        self.streams = np.zeros(_SLOTS_FIRST, np.int32)
        """Stream handles."""
        self.frontends = np.zeros(_SLOTS_FIRST, np.int32)
        """Indices into `frontend_ids`."""
        self.frontend_ids: list[FrontendId | None] = []
        self._index_of: dict[FrontendId, int] = {}
        self._seats_of: dict[FrontendId, int] = {}
        """Frontend -> its seats. > 0."""
        self._left: deque[tuple[int, int]] = deque()
        """(newest plan when it was left, slot)"""

    def __len__(self) -> int:
        """Slots there are, taken or not."""
        return len(self.seats)

    @property
    def only_frontend(self) -> FrontendId | None:
        """The frontend of all calls in the batch; None: there are several."""
        return next(iter(self._seats_of)) if len(self._seats_of) == 1 else None

    def take(self, call: "Call", results: int) -> Seat:
        """Gives a call a seat.

        Args:
            results: Newest result that was taken in.
        """
        assert call.handle is not None, "a running call has a handle"
        slot = self._free_slot(results)
        seat = self.seats[slot] = Seat(call, slot)
        self.handles[slot] = call.handle
        self.streams[slot] = call.spec.stream_handle
        self.frontends[slot] = self._count_frontend(call.spec.frontend_id)
        return seat

    def leave(self, seat: Seat, plans: int) -> None:
        """Frees a seat.

        Args:
            plans: Newest plan that was made.
        """
        self.seats[seat.slot] = None
        self._left.append((plans, seat.slot))
        frontend_id = seat.call.spec.frontend_id
        left = self._seats_of[frontend_id] - 1
        if left:
            self._seats_of[frontend_id] = left
        else:
            del self._seats_of[frontend_id]
            index = self._index_of.pop(frontend_id)
            self.frontend_ids[index] = None

    def _free_slot(self, results: int) -> int:
        if self._left and self._left[0][0] <= results:
            return self._left.popleft()[1]
        self.seats.append(None)
        if len(self.seats) > len(self.handles):
            for name in ("handles", "streams", "frontends"):
                column = getattr(self, name)
                setattr(self, name, np.concatenate([column, np.zeros_like(column)]))
        return len(self.seats) - 1

    def _count_frontend(self, frontend_id: FrontendId) -> int:
        seats = self._seats_of.get(frontend_id, 0)
        self._seats_of[frontend_id] = seats + 1
        if not seats:
            free = [index for index, name in enumerate(self.frontend_ids) if name is None]
            index = free[0] if free else len(self.frontend_ids)
            self.frontend_ids[index : index + 1] = [frontend_id]
            self._index_of[frontend_id] = index
        return self._index_of[frontend_id]
