"""Puts an executor together: runner on its threads, session with the scheduler, health service, metrics.

Health is SERVING exactly while the executor is registered.
"""

import asyncio
from collections.abc import Callable
from functools import partial

import structlog

from executor_svc.metrics import ExecutorMetrics
from executor_svc.runner import Runner, RunnerInfo
from executor_svc.runner_process import RunnerProcess
from executor_svc.runners import make_runner
from executor_svc.session import Session, SessionConfig
from executor_svc.settings import ExecutorSettings
from executor_svc.stepper import Stepper
from svc_runtime.gc_control import GcControl
from svc_runtime.grpc_aio import GrpcServer, open_channel
from svc_runtime.metrics import serve_metrics

log = structlog.get_logger("autellix.executor")

CLOSE_LIMIT_S = 10.0
"""Longest wait for a running step at the end."""
PROBE_BYTES_MAX = 64 * 1024
"""Largest message on the health port, where nobody is asked who he is."""
SERVICE_NAME = "autellix.executor.v1.ExecutorService"
"""Health name; the service itself is the scheduler's: executors dial."""


async def serve(
    settings: ExecutorSettings, stop: asyncio.Event, *, runner_factory: Callable[[], Runner] | None = None
) -> None:
    """Runs an executor until it is stopped, drained, refused or broken.

    Args:
        runner_factory: makes the runner, on the step lane; None: as the settings say.

    Raises: StartupError; the runner's own error when a step fails.
    """
    metrics = ExecutorMetrics()
    health = GrpcServer(
        host=settings.health_host,
        port=settings.health_port,
        register=lambda _server: None,
        service_names=(SERVICE_NAME,),
        request_bytes_max=PROBE_BYTES_MAX,
    )
    port = await health.start()
    scrape = (
        await serve_metrics(settings.metrics_host, settings.metrics_port, metrics.registry)
        if settings.metrics_port
        else None
    )
    log.info("health_listening", port=port, metrics_port=settings.metrics_port)
    try:
        await _serve(settings, stop, metrics, health, runner_factory or partial(start_runner, settings))
    finally:
        await health.stop(grace_s=0)
        if scrape is not None:
            await scrape.close()


async def _serve(
    settings: ExecutorSettings,
    stop: asyncio.Event,
    metrics: ExecutorMetrics,
    health: GrpcServer,
    runner_factory: Callable[[], Runner],
) -> None:
    stepper = Stepper(runner_factory)
    info = await _started(stepper, stop)
    if info is None:
        return
    session = _session(settings, stepper, metrics, health)
    collector = GcControl(lambda: not metrics.plans_in_flight, metrics.gc_pauses)
    collecting = asyncio.create_task(collector.run(), name="gc-control")
    try:
        await session.run(info, stop)
    finally:
        collecting.cancel()
        await asyncio.gather(collecting, return_exceptions=True)
        await _close(stepper)


async def _close(stepper: Stepper) -> None:
    """Frees the runner; a device that hangs must not keep the process from ending."""
    try:
        async with asyncio.timeout(CLOSE_LIMIT_S):
            await stepper.close()
    except TimeoutError:
        log.error("step_hangs", waited_s=CLOSE_LIMIT_S)


async def _started(stepper: Stepper, stop: asyncio.Event) -> RunnerInfo | None:
    """Makes the runner; None when stop came first (loading cannot be interrupted: the process just ends)."""
    starting = asyncio.create_task(stepper.start())
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not starting.done():
        starting.cancel()
        log.info("stopped_while_loading")
        return None
    info = starting.result()
    log.info(
        "runner_ready",
        runner=info.runner,
        model=info.model,
        device=info.device,
        num_blocks=info.num_blocks,
        host_blocks=info.host_blocks,
    )
    return info


def _session(
    settings: ExecutorSettings, stepper: Stepper, metrics: ExecutorMetrics, health: GrpcServer
) -> Session:
    token = settings.peer_token.get_secret_value() if settings.peer_token else None
    config = SessionConfig(
        executor_id=settings.executor_id,
        scheduler=settings.scheduler,
        drain_s=settings.drain_s,
        accept_timeout_s=settings.accept_timeout_s,
        connect_timeout_s=settings.connect_timeout_s,
    )
    return Session(
        config,
        stepper,
        metrics,
        open_channel=partial(open_channel, settings.scheduler, peer_token=token),
        on_registered=health.set_serving,
    )


def start_runner(settings: ExecutorSettings) -> Runner:
    """vLLM's runner in a process of its own; a simulated one, which costs little, in this one.

    Raises: StartupError when the model is missing or unsupported, or no GPU is free.
    """
    return RunnerProcess(settings) if settings.runner == "vllm" else make_runner(settings)
