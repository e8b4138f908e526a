"""Prometheus metrics over HTTP: `GET /metrics` on a port of its own.

The scrape runs on a thread, so a slow scraper never delays a step; custom collectors must therefore only read
values that are safe to read from another thread.
"""

import asyncio
from threading import Thread
from wsgiref.simple_server import WSGIServer

from prometheus_client import REGISTRY, CollectorRegistry, start_http_server

from svc_runtime.lifecycle import PortTaken


class MetricsServer:
    """A running `/metrics` endpoint."""

    def __init__(self, server: WSGIServer, thread: Thread) -> None:
        self._server = server
        self._thread = thread

    @property
    def port(self) -> int:
        """The TCP port it listens on, also when 0 was asked for."""
        return self._server.server_port

    async def close(self) -> None:
        """Stops listening; returns when the thread has ended."""
        await asyncio.to_thread(self._server.shutdown)
        self._server.server_close()
        await asyncio.to_thread(self._thread.join)


async def serve_metrics(host: str, port: int, registry: CollectorRegistry | None = None) -> MetricsServer:
    """Serves a registry, the process-wide one by default.

    Raises: PortTaken when the address cannot be listened on.
    """
    try:
        server, thread = start_http_server(port, addr=host, registry=registry or REGISTRY)
    except OSError as error:
        raise PortTaken(f"{host}:{port}", purpose="metrics") from error
    return MetricsServer(server, thread)
