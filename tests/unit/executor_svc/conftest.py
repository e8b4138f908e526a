"""Fixtures of the executor's tests."""

import socket
from collections.abc import AsyncIterator

import pytest

from tests.unit.executor_svc.fake_scheduler import FakeScheduler, fake_scheduler
from tests.unit.executor_svc.session_harness import Executor, running


@pytest.fixture
def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
async def scheduler() -> AsyncIterator[FakeScheduler]:
    """A fake scheduler."""
    async with fake_scheduler() as fake:
        yield fake


@pytest.fixture
async def executor(scheduler: FakeScheduler) -> AsyncIterator[Executor]:
    """An executor that dials it."""
    async with running(scheduler.target) as each:
        yield each
