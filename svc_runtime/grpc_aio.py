"""gRPC servers and channels as all three services use them.

A server brings health, reflection and, when it has a peer token, an interceptor that refuses peers without it
(health stays open: probes carry no token). A channel to such a server adds the token to every call.
Columns travel in messages of at most 64 MiB; keepalive finds a peer that has vanished within about 15 s;
ports are never shared silently (`so_reuseport` is 0). A channel tries unary reads again while the server is
unavailable; nothing else is ever sent twice.
"""

import asyncio
import hmac
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Self

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from svc_runtime.lifecycle import PortTaken
from svc_runtime.rpc_errors import abort

PEER_TOKEN_KEY = "autellix-peer-token"
MESSAGE_BYTES_MAX = 64 * 1024 * 1024

_MESSAGE_LIMITS: list[tuple[str, Any]] = [
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
]
_KEEPALIVE: list[tuple[str, Any]] = [
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),  # else a peer that is frozen, not gone, is found after a minute
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
]
_READS = [
    {"service": service, "method": method}
    for service, methods in {
        "autellix.scheduler.v1.SchedulerService": (
            "GetProgram",
            "ListPrograms",
            "ListExecutors",
            "GetStatistics",
        ),
        "autellix.program.v1.ProgramService": ("GetProgram", "ListPrograms"),
        "grpc.health.v1.Health": ("Check",),
    }.items()
    for method in methods
]
"""Methods that may be tried again: unary, and they change nothing."""
_RETRY_POLICY = {
    "maxAttempts": 4,
    "initialBackoff": "0.1s",
    "maxBackoff": "1s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}
SERVER_OPTIONS: list[tuple[str, Any]] = [
    *_MESSAGE_LIMITS,
    *_KEEPALIVE,
    ("grpc.so_reuseport", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),  # below the peers' 10 s, else GOAWAY
]
CHANNEL_OPTIONS: list[tuple[str, Any]] = [
    *_MESSAGE_LIMITS,
    *_KEEPALIVE,
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.service_config", json.dumps({"methodConfig": [{"name": _READS, "retryPolicy": _RETRY_POLICY}]})),
]

_Serving = health_pb2.HealthCheckResponse
_OPEN_TO_ALL = f"/{health.SERVICE_NAME}/"


class GrpcServer:
    """A grpc.aio server with health and reflection; NOT_SERVING until told otherwise.

    Args:
        register: adds the servicers, e.g. `partial(add_SchedulerServiceServicer_to_server, servicer)`.
        service_names: full names, for health and reflection.
        peer_token: when given, every RPC but health must carry it.
        request_bytes_max: larger messages end their RPC with RESOURCE_EXHAUSTED. A message is read before
            anybody is asked who the caller is: a port that is open to the world wants a low limit.
    """

    def __init__(
        self,
        *,
        host: str,
        port: int,
        register: Callable[[grpc.aio.Server], None],
        service_names: Sequence[str],
        peer_token: str | None = None,
        interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
        request_bytes_max: int = MESSAGE_BYTES_MAX,
    ) -> None:
        self._address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._register = register
        self._service_names = tuple(service_names)
        guard = (PeerTokenGuard(peer_token),) if peer_token else ()
        self._interceptors = (*guard, *interceptors)
        limits = {"grpc.max_receive_message_length": request_bytes_max}
        self._options = list((dict(SERVER_OPTIONS) | limits).items())
        self._health: health.aio.HealthServicer | None = None
        self._server: grpc.aio.Server | None = None

    async def start(self) -> int:
        """Listens and serves.

        Returns: the bound port, also when 0 was asked for.
        Raises: PortTaken.
        """
        self._server = grpc.aio.server(interceptors=self._interceptors, options=self._options)
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._register(self._server)
        names = (*self._service_names, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        await self.set_serving(False)
        try:
            port = self._server.add_insecure_port(self._address)
        except RuntimeError as error:
            raise PortTaken(self._address) from error
        await self._server.start()
        return port

    def set_serving(self, serving: bool) -> asyncio.Task[None]:
        """Tells health checkers; takes effect in the loop's next turn, await the task to be sure."""
        return asyncio.create_task(self._set_health(serving))

    async def stop(self, grace_s: float) -> None:
        """Turns NOT_SERVING, takes no new RPC, gives running ones `grace_s` seconds, then cancels them."""
        if self._server is None:
            return
        await self._set_health(False)
        await self._server.stop(grace_s)

    async def _set_health(self, serving: bool) -> None:
        assert self._health is not None, "set_serving before start"
        status = _Serving.SERVING if serving else _Serving.NOT_SERVING
        for name in ("", *self._service_names):
            await self._health.set(name, status)


class PeerTokenGuard(grpc.aio.ServerInterceptor):
    """Refuses every RPC but health checks that does not carry the shared token."""

    def __init__(self, token: str) -> None:
        self._token = token.encode()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler | None:
        handler = await continuation(handler_call_details)
        if handler is None or self._admits(handler_call_details):
            return handler
        return _refusing(handler)

    def _admits(self, call: grpc.HandlerCallDetails) -> bool:
        if call.method.startswith(_OPEN_TO_ALL):
            return True
        tokens = [value for key, value in call.invocation_metadata or () if key == PEER_TOKEN_KEY]
        return len(tokens) == 1 and hmac.compare_digest(str(tokens[0]).encode(), self._token)


async def _refuse_peer(_request: Any, context: grpc.aio.ServicerContext) -> None:
    await abort(context, None, "UNAUTHENTICATED", f"this port is for peers: send metadata {PEER_TOKEN_KEY}")


def _refusing(handler: grpc.RpcMethodHandler) -> grpc.RpcMethodHandler:
    """The same kind of RPC, always refused; a coroutine serves unary and streaming kinds alike."""
    kinds = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }
    return kinds[handler.request_streaming, handler.response_streaming](_refuse_peer)


def open_channel(
    target: str, *, peer_token: str | None = None, options: Sequence[tuple[str, Any]] = ()
) -> grpc.aio.Channel:
    """Opens a channel to `host:port`; with a token, every call made through it carries the token.

    Args:
        options: gRPC channel arguments besides those that all channels have.
    """
    channel = grpc.aio.insecure_channel(target, options=[*CHANNEL_OPTIONS, *options])
    return _PeerChannel(channel, peer_token) if peer_token else channel


class _PeerChannel(grpc.aio.Channel):
    """A channel whose calls carry the peer token.

    Not client interceptors: those put a queue and a task around every stream, on the path of each step.
    """

    def __init__(self, channel: grpc.aio.Channel, token: str) -> None:
        self._channel = channel
        self._token = (PEER_TOKEN_KEY, token)

    def unary_unary(self, *args: Any, **kwargs: Any) -> Any:
        return self._with_token(self._channel.unary_unary(*args, **kwargs))

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        return self._with_token(self._channel.unary_stream(*args, **kwargs))

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        return self._with_token(self._channel.stream_unary(*args, **kwargs))

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        return self._with_token(self._channel.stream_stream(*args, **kwargs))

    def _with_token(self, multicallable: Any) -> Callable[..., Any]:
        def call(*args: Any, metadata: Sequence[tuple[str, str]] | None = None, **kwargs: Any) -> Any:
            return multicallable(*args, metadata=(*(metadata or ()), self._token), **kwargs)

        return call

    async def __aenter__(self) -> Self:
        await self._channel.__aenter__()
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        await self._channel.__aexit__(*exc_info)

    async def close(self, grace: float | None = None) -> None:
        await self._channel.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._channel.channel_ready()
