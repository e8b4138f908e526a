"""Composition: one scheduler process, from settings, or from fakes.

Life: listen, serve, and on stop: health turns NOT_SERVING, new calls and programs are refused, live calls
get `drain_s` seconds, what was generated is handed to the frontends, streams end in good order. If the core
loop ends by itself one of our invariants is broken: the process ends at once with that error (fail-stop).
"""

import asyncio
import os
import socket
from contextlib import suppress

import grpc
import structlog

from protos.autellix.executor.v1 import executor_pb2, executor_pb2_grpc
from protos.autellix.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc
from scheduler_svc.core.core import Core
from scheduler_svc.settings import SchedulerSettings
from scheduler_svc.shell.call_log import CallLog
from scheduler_svc.shell.clock import Clock, MonotonicClock
from scheduler_svc.shell.core_kind import core_kind
from scheduler_svc.shell.core_loop import CoreLoop, TurnTimings
from scheduler_svc.shell.door import Door, DoorLimits
from scheduler_svc.shell.effect_router import EffectRouter
from scheduler_svc.shell.executor_registry import ExecutorRegistry
from scheduler_svc.shell.executor_service import ExecutorServicer
from scheduler_svc.shell.frontend_registry import FrontendRegistry
from scheduler_svc.shell.frontend_streams import FrontendStreams
from scheduler_svc.shell.metrics import Gauges, SchedulerMetrics
from scheduler_svc.shell.program_desk import CoreLike, ProgramDesk
from scheduler_svc.shell.scheduler_service import SchedulerServicer
from svc_runtime.gc_control import GcControl
from svc_runtime.grpc_aio import GrpcServer
from svc_runtime.metrics import MetricsServer, serve_metrics

log = structlog.get_logger(__name__)

LOOK_INTERVAL_S = 1.0
HAND_OVER_S = 1.0
"""Seconds that peers get to read what is left for them at the end."""
SERVICE_NAMES = (
    scheduler_pb2.DESCRIPTOR.services_by_name["SchedulerService"].full_name,
    executor_pb2.DESCRIPTOR.services_by_name["ExecutorService"].full_name,
)


class SchedulerServer:
    """A scheduler. `core` and `clock` are for tests; the constructor does no I/O."""

    def __init__(
        self, settings: SchedulerSettings, *, core: CoreLike | None = None, clock: Clock | None = None
    ) -> None:
        self._settings = settings
        self._scheduler_id = settings.scheduler_id or f"{socket.gethostname()}-{os.getpid()}"
        self._core: CoreLike = core or Core(settings.core_config())
        self._clock = clock or MonotonicClock()
        self._executors = ExecutorRegistry()
        self.frontends = FrontendRegistry()
        self._metrics = SchedulerMetrics()
        self._call_log = CallLog(self._metrics)
        self._door = Door(_door_limits(settings), self._executors.facts)
        self._turned = asyncio.Event()
        router = EffectRouter(self._executors, self.frontends, self._call_log)
        self._loop = CoreLoop(self._core, self._clock, carry_out=router.carry_out, on_turn=self._after_turn)
        self._grpc = GrpcServer(
            host=settings.host,
            port=settings.port,
            register=self._register,
            service_names=SERVICE_NAMES,
            peer_token=settings.peer_token.get_secret_value() or None,
        )
        self._collector = GcControl(lambda: not self._live_calls, self._metrics.gc_pauses)
        self._metrics_server: MetricsServer | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self.port = 0
        """Bound gRPC port, once started."""

    @property
    def metrics_port(self) -> int:
        """Bound port of the Prometheus endpoint; 0 when it is off."""
        return self._metrics_server.port if self._metrics_server else 0

    async def run(self, stop: asyncio.Event) -> None:
        """Serves until `stop` is set, then drains.

        Raises: PortTaken; whatever broke the core loop.
        """
        await self.start()
        self._tasks.append(asyncio.create_task(self._collector.run(), name="gc-control"))
        try:
            await self._until_stopped(stop)
            await self.drain()
        finally:
            await self.close()

    async def start(self) -> None:
        """Listens and serves.

        Raises: PortTaken.
        """
        settings = self._settings
        self.port = await self._grpc.start()
        try:
            if settings.metrics_port:
                self._metrics_server = await serve_metrics(
                    settings.metrics_host, settings.metrics_port, self._metrics.registry
                )
        except BaseException:
            await self._grpc.stop(0)
            raise
        self._tasks = [
            asyncio.create_task(self._loop.run(), name="core-loop"),
            asyncio.create_task(self._look(), name="metrics-look"),
        ]
        await self._grpc.set_serving(True)
        self._say_ready()

    async def drain(self) -> None:
        """Refuses what is new, lets live calls finish within `drain_s`, hands over what was generated."""
        self._door.close()
        await self._grpc.set_serving(False)
        log.info("scheduler_draining", live_calls=self._live_calls, drain_s=self._settings.drain_s)
        with suppress(TimeoutError):
            async with asyncio.timeout(self._settings.drain_s):
                await self._until_no_call_lives()
        if self._live_calls:
            log.warning("calls_cut_off", live_calls=self._live_calls)
        await self._hand_over()

    async def close(self) -> None:
        """Ends everything at once."""
        self.frontends.end_all()
        self._executors.end_all()
        await self._grpc.stop(HAND_OVER_S)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._call_log.write_all()
        if self._metrics_server is not None:
            await self._metrics_server.close()

    # ── parts of a life ─────────────────────────────────────────────────────────────────────────────

    async def _until_stopped(self, stop: asyncio.Event) -> None:
        """Returns when told to stop; raises what ended the core loop."""
        stopped = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait([stopped, *self._tasks], return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped.cancel()
        self._check_tasks()

    async def _until_no_call_lives(self) -> None:
        while self._live_calls:
            self._turned.clear()
            await self._turned.wait()

    async def _hand_over(self) -> None:
        written = [asyncio.create_task(session.wait_written()) for session in self.frontends]
        if written:
            await asyncio.wait(written, timeout=HAND_OVER_S)
        for task in written:
            task.cancel()

    async def _look(self) -> None:
        while True:
            self._metrics.look(
                Gauges(
                    statistics=self._core.statistics(),
                    live_calls=self._core.live_calls_by_level(),
                    executors=self._executors.count_by_model(),
                    frontends=self.frontends.connected,
                    inbox_length=self._loop.inbox_length,
                )
            )
            await self._clock.sleep(LOOK_INTERVAL_S)

    def _after_turn(self, timings: TurnTimings) -> None:
        self._metrics.turn(timings)
        self._turned.set()

    def _check_tasks(self) -> None:
        for task in self._tasks:
            if task.done():
                task.result()

    @property
    def _live_calls(self) -> int:
        return self._core.statistics().live_calls

    # ── composition ─────────────────────────────────────────────────────────────────────────────────

    def _register(self, server: grpc.aio.Server) -> None:
        executor_pb2_grpc.add_ExecutorServiceServicer_to_server(self._executor_servicer(), server)
        scheduler_pb2_grpc.add_SchedulerServiceServicer_to_server(self._scheduler_servicer(), server)

    def _executor_servicer(self) -> ExecutorServicer:
        settings = self._settings
        return ExecutorServicer(
            self._loop,
            self._executors,
            scheduler_id=self._scheduler_id,
            max_plans_in_flight=settings.max_plans_in_flight,
            outbox_max=2 * settings.live_calls_max,
            registration_timeout_s=settings.hello_timeout_s,
            on_membership=lambda: self.frontends.announce_models(self._core.models()),
            on_step=self._metrics.step,
        )

    def _scheduler_servicer(self) -> SchedulerServicer:
        settings = self._settings
        streams = FrontendStreams(
            self._loop,
            self.frontends,
            self._door,
            self._call_log,
            self._clock,
            scheduler_id=self._scheduler_id,
            policy=lambda: self._core.statistics().policy,
            models=self._core.models,
            engine_status=self._core.engine_status,
            hello_timeout_s=settings.hello_timeout_s,
            grace_s=settings.frontend_grace_s,
            backlog_bytes_max=int(settings.frontend_backlog_mib * (1 << 20)),
        )
        return SchedulerServicer(streams, ProgramDesk(self._core, self._loop, self._door, self._clock))

    def _say_ready(self) -> None:
        settings = self._settings
        if not settings.peer_token.get_secret_value():
            log.warning(
                "peer_token_absent", host=settings.host, meaning="any process of this machine may connect"
            )
        log.info(
            "scheduler_ready",
            scheduler_id=self._scheduler_id,
            host=settings.host,
            port=self.port,
            metrics_port=self.metrics_port,
            policy=settings.policy,
            core=core_kind(),
        )


def _door_limits(settings: SchedulerSettings) -> DoorLimits:
    return DoorLimits(
        frontend_calls_max=settings.frontend_calls_max, params_bytes_max=settings.params_bytes_max
    )
