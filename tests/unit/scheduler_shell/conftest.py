"""A scheduler on a free port, with whatever core, clock and settings a test wants."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import grpc
import pytest

from scheduler_svc.settings import SchedulerSettings
from scheduler_svc.shell.server import SchedulerServer
from svc_runtime.grpc_aio import open_channel

Start = Callable[..., Awaitable[SchedulerServer]]
Dial = Callable[[SchedulerServer], grpc.aio.Channel]


def settings(**changed: object) -> SchedulerSettings:
    """Settings of a test's scheduler."""
    return SchedulerSettings(**({"port": 0, "metrics_port": 0, "drain_s": 5.0} | changed))


@pytest.fixture
async def cleanup() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture
def start(cleanup: AsyncExitStack) -> Start:
    """`await start(core=..., clock=..., **settings)`: a scheduler that serves; closed after the test."""

    async def start_scheduler(
        *, core: object = None, clock: object = None, **changed: object
    ) -> SchedulerServer:
        server = SchedulerServer(settings(**changed), core=core, clock=clock)
        await server.start()
        cleanup.push_async_callback(server.close)
        return server

    return start_scheduler


@pytest.fixture
def dial(cleanup: AsyncExitStack) -> Dial:
    """`dial(server)`: a channel of its own to a scheduler; closed after the test."""

    def open_one(server: SchedulerServer, peer_token: str | None = None) -> grpc.aio.Channel:
        channel = open_channel(f"127.0.0.1:{server.port}", peer_token=peer_token)
        cleanup.push_async_callback(channel.close)
        return channel

    return open_one
