"""uvicorn as a part of a service: our socket, our signals, a bounded drain."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

from svc_runtime.lifecycle import PortTaken

BACKLOG = 2048
KEEP_ALIVE_S = 65
"""Longer than the usual idle time of clients and proxies, so that they and not we end a connection."""


class HttpServer:
    """Serves an ASGI application until stopped.

    Args:
        drain_s: seconds that running requests get to finish after `stop`.
    """

    def __init__(self, app: ASGIApp, *, host: str, port: int, drain_s: float) -> None:
        self._host, self._port = host, port
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="on",
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=max(1, round(drain_s)),
            server_header=False,
        )
        self._server = _SignalFreeServer(config)
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> int:
        """Listen and serve.

        Returns: the bound port, also when 0 was asked for.

        Raises:
            PortTaken: somebody else listens there.
        """
        listener = _listen(self._host, self._port)
        self._serving = asyncio.create_task(self._server.serve(sockets=[listener]), name="http")
        started = asyncio.create_task(self._server.startup_over.wait())
        await asyncio.wait((started, self._serving), return_when=asyncio.FIRST_COMPLETED)
        started.cancel()
        if not self._server.started:
            await self._serving
            raise RuntimeError("the HTTP application did not start")
        return int(listener.getsockname()[1])

    async def wait_closed(self) -> None:
        """Wait until the server has ended."""
        assert self._serving is not None, "wait_closed before start"
        await asyncio.shield(self._serving)

    async def stop(self) -> None:
        """Take no new connection, let running requests finish, return when all are gone."""
        self._server.should_exit = True
        await self.wait_closed()


class _SignalFreeServer(uvicorn.Server):
    """uvicorn that leaves SIGTERM and SIGINT to the service and says when it has started."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.startup_over = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.startup_over.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise PortTaken(f"{host}:{port}", purpose="HTTP") from error
    return listener
