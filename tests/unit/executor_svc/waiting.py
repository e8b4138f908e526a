"""Waiting for a condition, with a limit, instead of sleeping and hoping."""

import asyncio
from collections.abc import Callable

PATIENCE_S = 10.0


async def until(condition: Callable[[], object]) -> None:
    """Returns when the condition holds; fails after a while."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - the condition comes true on other threads
            await asyncio.sleep(0.002)
