"""The metrics endpoint."""

import asyncio
import urllib.request

import pytest
from prometheus_client import CollectorRegistry, Counter

from svc_runtime.lifecycle import PortTaken
from svc_runtime.metrics import serve_metrics


def scrape(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return answer.read().decode()


async def test_the_registry_is_served():
    registry = CollectorRegistry()
    Counter("autellix_probes", "Probes.", registry=registry).inc(3)
    server = await serve_metrics("127.0.0.1", 0, registry)
    assert "autellix_probes_total 3.0" in await asyncio.to_thread(scrape, server.port)
    await server.close()
    with pytest.raises(OSError, match="refused"):
        await asyncio.to_thread(scrape, server.port)


async def test_a_taken_port_is_an_error():
    server = await serve_metrics("127.0.0.1", 0, CollectorRegistry())
    with pytest.raises(PortTaken, match="metrics"):
        await serve_metrics("127.0.0.1", server.port)
    await server.close()
