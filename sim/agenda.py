"""Virtual time: what is to happen when. Equal times come up in the order in which they were entered."""

import heapq
from collections.abc import Callable


class Agenda:
    """Actions by time. `now` is the time of the action that goes on."""

    def __init__(self, now: float) -> None:
        self.now = now
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._entered = 0

    def __len__(self) -> int:
        return len(self._heap)

    def at(self, time_s: float, action: Callable[[], None]) -> None:
        """Enters an action; a time gone by means now."""
        self._entered += 1
        heapq.heappush(self._heap, (max(time_s, self.now), self._entered, action))

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
        """Enters an action for `delay_s` from now."""
        self.at(self.now + delay_s, action)

    def next(self) -> Callable[[], None]:
        """Advances time to the first action, takes it out and returns it. There must be one."""
        self.now, _, action = heapq.heappop(self._heap)
        return action
