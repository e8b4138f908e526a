"""Time, as an argument: the loop and the sessions read it from a `Clock`, tests bring their own."""

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """Monotonic time."""

    def now(self) -> float:
        """Monotonic seconds; never goes back."""
        ...

    async def sleep(self, delay_s: float) -> None:
        """Returns after `delay_s` seconds of this clock."""
        ...


class MonotonicClock:
    """The machine's clock."""

    def now(self) -> float:
        """Seconds of the machine's monotonic clock."""
        return time.monotonic()

    async def sleep(self, delay_s: float) -> None:
        """Sleeps on the running event loop."""
        await asyncio.sleep(delay_s)
