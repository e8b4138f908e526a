"""Things that are due at some time: one heap, so that a tick costs what is due and not what is known.

Time is whatever grows: seconds of a clock, or picoseconds in whole numbers, which stay exact.

A timer has a key; setting a key again moves it. Moved and dropped timers leave a stale entry in the heap,
which is skipped when it comes up; when stale entries outnumber the others the heap is rebuilt, so memory
stays bounded by the timers that are set.
"""

import heapq
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Time = TypeVar("Time", int, float)

_SLACK = 64
"""Stale entries that never trigger a rebuild."""


class Timers(Generic[Key, Time]):
    """Timers by key. Equal times come up in the order in which they were set."""

    def __init__(self) -> None:
        self._heap: list[tuple[Time, int, Key]] = []
        self._set: dict[Key, int] = {}
        """key -> serial number of its valid heap entry."""
        self._serial = 0

    def __len__(self) -> int:
        return len(self._set)

    def __contains__(self, key: Key) -> bool:
        return key in self._set

    def set(self, key: Key, due: Time) -> None:
        """Makes `key` come up at `due` and at no other time."""
        self._serial += 1
        self._set[key] = self._serial
        heapq.heappush(self._heap, (due, self._serial, key))
        if len(self._heap) > 2 * len(self._set) + _SLACK:
            self._rebuild()

    def drop(self, key: Key) -> None:
        """Forgets `key`, if it is set."""
        self._set.pop(key, None)

    def pop_due(self, now: Time) -> Iterator[Key]:
        """Yields and forgets the keys that are due; keys set meanwhile for a time gone by are yielded too."""
        while self._heap and self._heap[0][0] <= now:
            _, serial, key = heapq.heappop(self._heap)
            if self._set.get(key) == serial:
                del self._set[key]
                yield key

    def _rebuild(self) -> None:
        self._heap = [entry for entry in self._heap if self._set.get(entry[2]) == entry[1]]
        heapq.heapify(self._heap)
