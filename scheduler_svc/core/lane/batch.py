"""The rows of a plan, in order, as columns.

A batch is immutable, and the same object from plan to plan while no row joins, leaves or changes its place:
its handles are packed once, and its tokens are sorted to frontends in one go.
"""

from array import array
from bisect import bisect_left
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scheduler_svc.core.columns import Column, Int32Array
from scheduler_svc.core.ids import FrontendId
from scheduler_svc.core.lane.seats import Seat, SeatTable
from scheduler_svc.core.lineup import QueueKey

SlotArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Share:
    """The rows of one frontend."""

    frontend_id: FrontendId
    streams: Column
    """Stream handles. Shape: (its rows,)."""
    rows: npt.NDArray[np.intp] | None
    """Which rows of the batch they are, ascending; None: all."""


class Batch:
    """Some rows in order. Slots of the rows stay what they were until the results of its plans have come."""

    def __init__(self, table: SeatTable, slots: SlotArray) -> None:
        """
        Args:
            slots: Taken over: nobody may write to it any more. Shape: (rows,).
        """
        self.slots = slots
        self.handles = Column(table.handles[slots])
        self.shares = _shares(table, slots)
        """In the order of their first rows."""
        self.row_of: Int32Array = np.zeros(len(table), np.int32)
        """Row by slot; of slots that are not in the batch it says nothing. Shape: (slots of the table,)."""
        self.row_of[slots] = np.arange(len(slots), dtype=np.int32)

    def __len__(self) -> int:
        return len(self.slots)


def _shares(table: SeatTable, slots: SlotArray) -> tuple[Share, ...]:
    streams = table.streams[slots]
    only = table.only_frontend
    if only is not None:
        return (Share(only, Column(streams), None),)
    owners = table.frontends[slots]
    found, firsts = np.unique(owners, return_index=True)
    shares: list[Share] = []
    for owner in found[firsts.argsort()].tolist():
        rows = np.flatnonzero(owners == owner)
        frontend_id = table.frontend_ids[owner]
        assert frontend_id is not None, "a taken slot has a frontend"
        shares.append(Share(frontend_id, Column(streams[rows]), rows))
    return tuple(shares)


class BatchOrder:
    """The seats of the newest batch in the order of the queue; changes cost O(log n) and a move of memory."""

    def __init__(self, table: SeatTable) -> None:
        self._table = table
        self._keys: list[QueueKey] = []
        self._slots: array[int] = array("q")
        self._batch: Batch | None = None

    def __len__(self) -> int:
        return len(self._keys)

    def insert(self, seat: Seat) -> None:
        """Puts a seat where its call's place in the queue says."""
        key = seat.key = seat.call.queue_key
        assert key is not None, "a running call is in the queue"
        index = bisect_left(self._keys, key)
        self._keys.insert(index, key)
        self._slots.insert(index, seat.slot)
        self._batch = None

    def remove(self, seat: Seat) -> None:
        """Takes a seat out, if it is in."""
        if seat.key is None:
            return
        index = bisect_left(self._keys, seat.key)
        assert self._slots[index] == seat.slot, "the order has lost a seat"
        del self._keys[index]
        del self._slots[index]
        seat.key = None
        self._batch = None

    def batch(self) -> Batch:
        """The rows as they are now; the same object until something changes."""
        if self._batch is None:
            self._batch = Batch(self._table, np.frombuffer(self._slots.tobytes(), np.int64))
        return self._batch

    def slots(self) -> list[int]:
        """For checks."""
        return list(self._slots)
