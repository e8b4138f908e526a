"""Waiting for a condition, with a limit, instead of sleeping and hoping."""

import asyncio
from collections.abc import Callable
from typing import Any

import grpc

LIMIT_S = 10.0


async def read_to_end(stream: Any) -> None:
    """Reads a gRPC stream until the server ends it; raises the error it ends with."""
    async with asyncio.timeout(LIMIT_S):
        while await stream.read() is not grpc.aio.EOF:
            pass


async def until(condition: Callable[[], object], what: str = "") -> None:
    """Returns once `condition()` is true; fails after ten seconds."""
    try:
        async with asyncio.timeout(LIMIT_S):
            while not condition():  # noqa: ASYNC110  what is waited for is not ours to notify
                await asyncio.sleep(0.002)
    except TimeoutError:
        raise AssertionError(f"never came true: {what or condition}") from None
