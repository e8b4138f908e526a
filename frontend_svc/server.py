"""The frontend, put together: scheduler link, AsyncLLM, HTTP, public gRPC, metrics; and its life.

    connect to the scheduler -> wait for the model -> check that it is ours -> listen -> serve -> drain ->
    stop

Importing this module imports vllm: `__main__` reads the settings first.
"""

import asyncio
import contextlib
from argparse import Namespace
from collections.abc import AsyncIterator
from dataclasses import dataclass

import structlog
from fastapi import Request
from prometheus_client import REGISTRY

from frontend_svc.auth import ApiKeys
from frontend_svc.call_context import CallRegistry
from frontend_svc.engine_core_client import GrpcEngineCoreClient
from frontend_svc.errors import Refused, SchedulerLost
from frontend_svc.http_app import behind_doors, vllm_app
from frontend_svc.http_server import HttpServer
from frontend_svc.ids import new_id
from frontend_svc.llm import ProgramLLM
from frontend_svc.metrics import FrontendMetrics
from frontend_svc.model_check import check_model, wait_for_model
from frontend_svc.params_codec import PARAMS_FORMAT
from frontend_svc.program_auth import TenantGuard
from frontend_svc.program_generator import VllmGenerator
from frontend_svc.program_grpc import SERVICE_NAME, register_programs
from frontend_svc.program_http import make_router
from frontend_svc.program_service import ProgramService
from frontend_svc.readiness import Readiness
from frontend_svc.scheduler_link import SchedulerLink
from frontend_svc.settings import FrontendSettings
from frontend_svc.vllm_setup import engine_config, serve_arguments
from protos.autellix.scheduler.v1 import scheduler_pb2 as pb
from svc_runtime.gc_control import GcControl
from svc_runtime.grpc_aio import GrpcServer
from svc_runtime.lifecycle import ExitCode, StartupError
from svc_runtime.metrics import serve_metrics

HEALTH_CHECK_S = 1.0
"""Seconds after which the gRPC health state follows the link at the latest."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a running frontend is made of."""

    settings: FrontendSettings
    link: SchedulerLink
    readiness: Readiness
    calls: CallRegistry
    """Live calls by id, those of both doors."""
    metrics: FrontendMetrics
    llm: ProgramLLM
    args: Namespace
    """vLLM's serve arguments."""


async def serve(settings: FrontendSettings, stop: asyncio.Event) -> None:
    """Run a frontend until `stop` is set, then drain it.

    Raises:
        StartupError: it cannot run as configured.
    """
    calls = CallRegistry()
    metrics = FrontendMetrics(REGISTRY)
    engine_core = GrpcEngineCoreClient(model=settings.model_name, calls=calls, on_failure=metrics.call_failed)
    async with _linked(settings, engine_core) as link:
        metrics.watch(live_calls=lambda: link.live_calls, scheduler_up=lambda: link.up)
        model = await _model(settings, link, stop)
        if model is None:
            return
        args, readiness = serve_arguments(settings, model), Readiness(link, model)
        llm = ProgramLLM(engine_config(args, model), engine_core, unavailable=readiness.unavailable)
        try:
            await _serve_calls(
                Parts(
                    settings=settings,
                    link=link,
                    readiness=readiness,
                    calls=calls,
                    metrics=metrics,
                    llm=llm,
                    args=args,
                ),
                stop,
            )
        finally:
            llm.shutdown()


@contextlib.asynccontextmanager
async def _linked(
    settings: FrontendSettings, engine_core: GrpcEngineCoreClient
) -> AsyncIterator[SchedulerLink]:
    """The connected link.

    Raises:
        StartupError: PEER_UNREACHABLE, or REFUSED by the scheduler.
    """
    link = SchedulerLink(
        settings.scheduler,
        engine_core,
        frontend_id=settings.frontend_id,
        peer_token=settings.peer_token.get_secret_value() or None,
        max_live_calls=settings.max_live_calls,
    )
    engine_core.link = link
    await link.start()
    try:
        try:
            await link.wait_up(settings.connect_timeout_s)
        except SchedulerLost as error:
            raise StartupError(str(error), ExitCode.PEER_UNREACHABLE) from error
        except Refused as error:
            raise StartupError(f"the scheduler refuses this frontend: {error}", ExitCode.REFUSED) from error
        yield link
    finally:
        await link.close()


async def _model(settings: FrontendSettings, link: SchedulerLink, stop: asyncio.Event) -> pb.ModelInfo | None:
    """The served model, checked to be ours; None when `stop` was set first."""
    timeout_s = settings.model_timeout_s
    model = await wait_for_model(link, settings.model_name, timeout_s=timeout_s, stop=stop)
    if model is not None:
        log.info(
            "model_found",
            model=model.model,
            max_model_len=model.max_model_len,
            executors=model.executors,
            simulated=model.simulated,
        )
        check_model(model, settings, params_format=PARAMS_FORMAT)
    return model


async def _serve_calls(parts: Parts, stop: asyncio.Event) -> None:
    settings, link = parts.settings, parts.link
    keys = settings.keys()
    template = settings.chat_template or None
    generator = VllmGenerator(parts.llm, [settings.model_name], chat_template=template)
    service = ProgramService(link.programs, generator, parts.calls, new_id)
    http = await _http_server(parts, service, keys)
    grpc_server = _grpc_server(settings, service, keys)
    async with contextlib.AsyncExitStack() as stack:
        await _listen(stack, settings, http, grpc_server)
        mirror = asyncio.create_task(_mirror_health(grpc_server, parts.readiness, link))
        stack.callback(mirror.cancel)
        collecting = asyncio.create_task(
            GcControl(lambda: not link.live_calls, parts.metrics.gc_pauses).run()
        )
        stack.callback(collecting.cancel)
        if not keys.required:
            log.warning("no_api_keys", host=settings.host, note="anybody on this machine may call")
        await _until_over(stop, http, link, parts.llm)
        parts.readiness.drain()
        log.info("draining", live_calls=link.live_calls, drain_s=settings.drain_s)
        await asyncio.gather(http.stop(), grpc_server.stop(settings.drain_s))


async def _http_server(parts: Parts, service: ProgramService, keys: ApiKeys) -> HttpServer:
    settings, unavailable = parts.settings, parts.readiness.unavailable
    programs = make_router(service, _tenant_of)
    app = behind_doors(
        await vllm_app(parts.llm, parts.args, unavailable=unavailable, programs=programs),
        keys=keys,
        max_body_bytes=settings.max_body_bytes,
        programs=parts.link.programs,
        unavailable=unavailable,
        calls=parts.calls,
        served=parts.metrics.request_served,
    )
    return HttpServer(app, host=settings.host, port=settings.port, drain_s=settings.drain_s)


def _grpc_server(settings: FrontendSettings, service: ProgramService, keys: ApiKeys) -> GrpcServer:
    return GrpcServer(
        host=settings.host,
        port=settings.grpc_port,
        register=register_programs(service),
        service_names=[SERVICE_NAME],
        interceptors=[TenantGuard(keys.tenant_of_authorization)],
        request_bytes_max=settings.max_message_bytes,
    )


async def _listen(
    stack: contextlib.AsyncExitStack, settings: FrontendSettings, http: HttpServer, grpc_server: GrpcServer
) -> None:
    """Open all ports, or none."""
    metrics_port = 0
    if settings.metrics_port:
        endpoint = await serve_metrics(settings.metrics_host, settings.metrics_port)
        stack.push_async_callback(endpoint.close)
        metrics_port = endpoint.port
    grpc_port = await grpc_server.start()
    stack.push_async_callback(grpc_server.stop, 0)
    http_port = await http.start()
    stack.push_async_callback(http.stop)
    log.info(
        "frontend_ready",
        host=settings.host,
        port=http_port,
        grpc_port=grpc_port,
        metrics_port=metrics_port,
        model=settings.model_name,
    )


async def _until_over(stop: asyncio.Event, http: HttpServer, link: SchedulerLink, llm: ProgramLLM) -> None:
    """Wait for the stop signal.

    Raises:
        RuntimeError: a part that must run for ever ended by itself.
    """
    parts = {
        asyncio.create_task(stop.wait()): "stop",
        asyncio.create_task(http.wait_closed()): "the HTTP server",
        asyncio.create_task(link.wait_closed()): "the scheduler link",
        asyncio.create_task(_output_loop_ended(llm)): "vLLM's output loop",
    }
    try:
        done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in parts:
            task.cancel()
    ended = {parts[task]: task.exception() for task in done}
    if "stop" not in ended:
        name, error = ended.popitem()
        raise RuntimeError(f"{name} ended") from error


async def _output_loop_ended(llm: ProgramLLM) -> None:
    """vLLM logs why its output loop failed; it stays in place, finished."""
    assert llm.output_handler is not None
    await asyncio.wait((llm.output_handler,))


async def _mirror_health(grpc_server: GrpcServer, readiness: Readiness, link: SchedulerLink) -> None:
    """Let the gRPC health service say what /health says."""
    while True:
        await grpc_server.set_serving(readiness.unavailable() is None)
        await link.wait_models_changed(HEALTH_CHECK_S)


def _tenant_of(request: Request) -> str:
    return str(request.state.tenant)
