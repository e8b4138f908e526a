"""Waiting for a condition, with a limit, instead of sleeping and hoping."""

import asyncio
from collections.abc import Callable

LIMIT_S = 10.0


async def until(condition: Callable[[], object], what: str = "") -> None:
    """Returns once `condition()` is true; fails after ten seconds."""
    try:
        async with asyncio.timeout(LIMIT_S):
            while not condition():
                await asyncio.sleep(0.002)
    except TimeoutError:
        raise AssertionError(f"never came true: {what or condition}") from None
