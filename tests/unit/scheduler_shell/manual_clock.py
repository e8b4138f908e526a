"""A clock that moves when the test says so."""

import asyncio
import heapq
from itertools import count


class ManualClock:
    """Starts at 1000 s; sleepers wake in order as `advance` passes their time."""

    def __init__(self) -> None:
        self._now = 1000.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = count()

    def now(self) -> float:
        return self._now

    async def sleep(self, delay_s: float) -> None:
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._now + delay_s, next(self._order), woken))
        await woken

    def advance(self, seconds: float) -> None:
        """Moves time; sleepers run in the event loop's next turns."""
        self._now += seconds
        while self._sleepers and self._sleepers[0][0] <= self._now:
            _, _, woken = heapq.heappop(self._sleepers)
            if not woken.done():
                woken.set_result(None)

    def sleeping_for(self, delay_s: float) -> bool:
        """Whether somebody wakes exactly `delay_s` from now."""
        return any(at == self._now + delay_s and not woken.done() for at, _, woken in self._sleepers)
