"""The composed executor: health follows registration, metrics are served, it stops cleanly."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from executor_svc import server
from executor_svc.server import SERVICE_NAME, serve
from executor_svc.settings import ExecutorSettings
from svc_runtime.lifecycle import PortTaken, StartupError
from svc_runtime.settings import load_settings
from tests.unit.executor_svc.fake_runner import FakeRunner
from tests.unit.executor_svc.fake_scheduler import FakeScheduler, fake_scheduler
from tests.unit.executor_svc.plan_writer import call, plan
from tests.unit.executor_svc.waiting import PATIENCE_S, until

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def settings(scheduler: FakeScheduler, health_port: int, *flags: str) -> ExecutorSettings:
    """A simulated executor that dials the fake scheduler."""
    return load_settings(
        ExecutorSettings,
        [
            *("--runner", "simulated", "--model", "m", "--scheduler", scheduler.target),
            *("--health-port", str(health_port), "--simulated-cost", "zero", *flags),
        ],
    )


@asynccontextmanager
async def served(told: ExecutorSettings) -> AsyncIterator[asyncio.Event]:
    """An executor that is stopped at the end of the block."""
    stop = asyncio.Event()
    task = asyncio.create_task(serve(told, stop))
    try:
        yield stop
    finally:
        stop.set()
        async with asyncio.timeout(PATIENCE_S):
            await task


async def health_becomes(port: int, wanted: int) -> None:
    """Returns when the health service says so."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel, asyncio.timeout(PATIENCE_S):
        watch = health_pb2_grpc.HealthStub(channel).Watch(
            health_pb2.HealthCheckRequest(service=SERVICE_NAME), wait_for_ready=True
        )
        async for answer in watch:
            if answer.status == wanted:
                return


async def test_health_follows_registration(free_port: int) -> None:
    async with fake_scheduler() as scheduler, served(settings(scheduler, free_port)) as stop:
        attachment = await scheduler.attached(accept=False)
        await health_becomes(free_port, NOT_SERVING)
        await attachment.accept()
        await health_becomes(free_port, SERVING)
        stop.set()
        await health_becomes(free_port, NOT_SERVING)
        assert (await attachment.receive()).WhichOneof("message") == "drain"
        attachment.finish()


async def test_metrics_are_served(free_port: int) -> None:
    async with fake_scheduler() as scheduler:
        told = settings(scheduler, 0, "--metrics-port", str(free_port))
        async with served(told) as stop:
            attachment = await scheduler.attached()
            await attachment.announce(call(1))
            await attachment.plan(plan(1, [1], chunks={0: 3}, joined={0: 0}, blocks={0: [1]}))
            await attachment.result()
            async with httpx.AsyncClient() as client:
                text = (await client.get(f"http://127.0.0.1:{free_port}/metrics")).text
            assert "autellix_executor_tokens_total 1.0" in text
            assert "autellix_executor_registered 1.0" in text
            stop.set()
            await attachment.receive()
            attachment.finish()


async def test_a_taken_health_port_is_named(free_port: int) -> None:
    async with fake_scheduler() as scheduler:
        with pytest.raises(PortTaken, match=str(scheduler.port)):
            await serve(settings(scheduler, scheduler.port), asyncio.Event())


async def test_a_runner_that_cannot_be_made_ends_the_start() -> None:
    def make() -> FakeRunner:
        raise StartupError("no such model")

    async with fake_scheduler() as scheduler:
        with pytest.raises(StartupError, match="no such model"):
            await serve(settings(scheduler, 0), asyncio.Event(), runner_factory=make)


@pytest.mark.parametrize("registered", [True, False])
async def test_a_device_that_hangs_does_not_keep_the_process(
    monkeypatch: pytest.MonkeyPatch, registered: bool
) -> None:
    monkeypatch.setattr(server, "CLOSE_LIMIT_S", 0.05)
    runner, stop = FakeRunner(), asyncio.Event()
    runner.steps_may_end.clear()
    async with fake_scheduler() as scheduler:
        told = settings(scheduler, 0, "--drain-s", "0.05")
        task = asyncio.create_task(serve(told, stop, runner_factory=lambda: runner))
        attachment = await scheduler.attached()
        await attachment.plan(plan(1))
        await until(lambda: "execute 1" in runner.log)
        if not registered:
            attachment.finish("SHUTTING_DOWN")
            await attachment.until_gone()
        stop.set()
        async with asyncio.timeout(PATIENCE_S):
            await task
    assert "close" not in runner.log
    runner.steps_may_end.set()
