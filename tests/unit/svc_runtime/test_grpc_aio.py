"""Servers and channels: ports, health, reflection, the peer token, all over real sockets."""

import asyncio
import json
import os
import signal
import sys
from contextlib import suppress

import grpc
import pytest
from google.protobuf import empty_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from protos.autellix.program.v1 import program_pb2
from protos.autellix.scheduler.v1 import scheduler_pb2
from svc_runtime import grpc_aio, healthcheck
from svc_runtime.grpc_aio import CHANNEL_OPTIONS, SERVER_OPTIONS, GrpcServer, open_channel
from svc_runtime.lifecycle import ExitCode, PortTaken
from svc_runtime.rpc_errors import abort, parse_error

SERVICE = "autellix.probe.v1.ProbeService"
KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
Empty = empty_pb2.Empty
CODEC = (Empty.FromString, Empty.SerializeToString)


async def _answer(_request, _context):
    return Empty()


async def _answers(_request, _context):
    yield Empty()


async def _aborts(_request, context):
    await abort(context, None, "QUEUE_FULL", "full", limit="8", retry_after_s=1.5)


def register_probe(server):
    """One method of each kind, named like the kind, and one that refuses."""
    handlers = {
        kind: getattr(grpc, f"{kind}_rpc_method_handler")(
            _answers if kind.endswith("stream") else _answer, *CODEC
        )
        for kind in KINDS
    }
    handlers["refuse"] = grpc.unary_unary_rpc_method_handler(_aborts, *CODEC)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))


@pytest.fixture
async def start():
    servers = []

    async def starting(**changes):
        wanted = {"host": "127.0.0.1", "port": 0, "register": register_probe, "service_names": [SERVICE]}
        server = GrpcServer(**(wanted | changes))
        port = await server.start()
        servers.append(server)
        return server, f"127.0.0.1:{port}"

    yield starting
    for server in servers:
        await server.stop(0)


async def call(channel, method, kind="unary_unary"):
    multicallable = getattr(channel, kind)(
        f"/{SERVICE}/{method}",
        request_serializer=Empty.SerializeToString,
        response_deserializer=Empty.FromString,
    )
    request = iter([Empty()]) if kind.startswith("stream") else Empty()
    if kind.endswith("stream"):
        return [answer async for answer in multicallable(request, timeout=10)]
    return await multicallable(request, timeout=10)


async def health_of(channel, service=SERVICE):
    request = health_pb2.HealthCheckRequest(service=service)
    answer = await health_pb2_grpc.HealthStub(channel).Check(request, timeout=10)
    return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)


async def test_a_taken_port_is_an_error_with_its_own_exit_code(start):
    _, address = await start()
    host, port = address.split(":")
    with pytest.raises(PortTaken, match=address) as error:
        await start(host=host, port=int(port))
    assert error.value.exit_code == ExitCode.PORT_TAKEN


async def test_health_follows_what_the_service_says(start):
    server, address = await start()
    async with open_channel(address) as channel:
        assert await health_of(channel) == "NOT_SERVING"
        await server.set_serving(True)
        assert await health_of(channel) == await health_of(channel, "") == "SERVING"
        await server.set_serving(False)
        assert await health_of(channel) == "NOT_SERVING"


async def test_stopping_tells_watchers_before_it_hangs_up(start):
    server, address = await start()
    await server.set_serving(True)
    async with open_channel(address) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=SERVICE))
        statuses = [(await watch.read()).status]
        stopping = asyncio.create_task(server.stop(5))
        statuses.append((await watch.read()).status)
        watch.cancel()
        await stopping
    assert statuses == [health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING]


async def test_reflection_lists_the_service(start):
    _, address = await start()
    async with open_channel(address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        [answer] = [answer async for answer in stub.ServerReflectionInfo(iter([request]))]
    assert SERVICE in [service.name for service in answer.list_services_response.service]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("token", [None, "wrong", "the token "])
async def test_without_the_peer_token_every_kind_of_call_is_refused(start, kind, token):
    _, address = await start(peer_token="the token")
    async with open_channel(address, peer_token=token) as channel:
        with pytest.raises(grpc.RpcError) as error:
            await call(channel, kind, kind)
    assert parse_error(error.value).reason == "UNAUTHENTICATED"


@pytest.mark.parametrize("kind", KINDS)
async def test_with_the_peer_token_every_kind_of_call_passes(start, kind):
    _, address = await start(peer_token="the token")
    async with open_channel(address, peer_token="the token") as channel:
        assert await call(channel, kind, kind) in (Empty(), [Empty()])


async def test_probes_need_no_token(start):
    server, address = await start(peer_token="the token")
    await server.set_serving(True)
    async with open_channel(address) as channel:
        assert await health_of(channel) == "SERVING"


async def test_a_refusal_arrives_with_its_details(start):
    _, address = await start()
    async with open_channel(address) as channel:
        with pytest.raises(grpc.RpcError) as error:
            await call(channel, "refuse")
    failure = parse_error(error.value)
    assert (failure.code, failure.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
    assert (failure.message, failure.limit, failure.retry_after_s) == ("full", "8", 1.5)


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
async def test_a_message_above_the_limit_reaches_no_handler(start, compression):
    """Also one that is small until it is decompressed; the server goes on."""
    _, address = await start(request_bytes_max=100_000)
    async with open_channel(address) as channel:
        send = channel.unary_unary(f"/{SERVICE}/unary_unary", response_deserializer=Empty.FromString)
        with pytest.raises(grpc.RpcError) as error:
            await send(bytes(100_001), compression=compression, timeout=10)
        assert await call(channel, "unary_unary") == Empty()
    assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "larger than max" in error.value.details()


SCHEDULER, PROGRAMS = "autellix.scheduler.v1.SchedulerService", "autellix.program.v1.ProgramService"
READS = {
    f"/{SCHEDULER}/{method}" for method in ("GetProgram", "ListPrograms", "ListExecutors", "GetStatistics")
}
READS |= {f"/{PROGRAMS}/GetProgram", f"/{PROGRAMS}/ListPrograms", "/grpc.health.v1.Health/Check"}


class Faulty(grpc.GenericRpcHandler):
    """Answers every method with the statuses of a script, then well; counts the attempts."""

    def __init__(self, *script):
        self.attempts = 0
        self._script = list(script)

    def service(self, _details):
        return grpc.unary_unary_rpc_method_handler(self._handle, *CODEC)

    async def _handle(self, _request, context):
        self.attempts += 1
        if self._script:
            await context.abort(self._script.pop(0), "as scripted")
        return Empty()


def unary_methods():
    """Full names of all unary methods of our services, and the health check."""
    for module in (program_pb2, scheduler_pb2):
        for service in module.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                if not (method.client_streaming or method.server_streaming):
                    yield f"/{service.full_name}/{method.name}"
    yield "/grpc.health.v1.Health/Check"


async def attempts_at(start, method, *script):
    """How often one call of `method` is sent to a server that fails as scripted."""
    faulty = Faulty(*script)
    _, address = await start(register=lambda server: server.add_generic_rpc_handlers((faulty,)))
    async with open_channel(address, peer_token="a token") as channel:
        with suppress(grpc.RpcError):
            await channel.unary_unary(method, *reversed(CODEC))(Empty(), timeout=10)
    return faulty.attempts


@pytest.mark.parametrize("method", sorted(set(unary_methods()) - {"/grpc.health.v1.Health/Check"}))
async def test_reads_and_only_reads_are_tried_again(start, method):
    unavailable = [grpc.StatusCode.UNAVAILABLE] * 2
    assert await attempts_at(start, method, *unavailable) == (3 if method in READS else 1)


async def test_tries_are_limited_and_only_for_what_may_pass(start):
    read = f"/{SCHEDULER}/GetStatistics"
    assert await attempts_at(start, read, *[grpc.StatusCode.UNAVAILABLE] * 9) == 4
    assert await attempts_at(start, read, grpc.StatusCode.INTERNAL) == 1


def test_the_methods_that_are_tried_again_exist():
    config = json.loads(dict(CHANNEL_OPTIONS)["grpc.service_config"])
    (methods,) = [entry["name"] for entry in config["methodConfig"]]
    named = {f"/{name['service']}/{name['method']}" for name in methods}
    assert named == READS
    assert named <= set(unary_methods())


async def test_the_health_check_command_tells_serving_from_not(start, capsys):
    server, address = await start()
    assert await asyncio.to_thread(healthcheck.main, [address]) == ExitCode.FAILED
    await server.set_serving(True)
    assert await asyncio.to_thread(healthcheck.main, [address, SERVICE]) == ExitCode.OK
    await server.stop(0)
    assert await asyncio.to_thread(healthcheck.main, [address]) == ExitCode.FAILED
    assert capsys.readouterr().out.split() == ["NOT_SERVING", "SERVING", "UNAVAILABLE"]


def test_the_health_check_command_wants_an_address(capsys):
    assert healthcheck.main([]) == ExitCode.USAGE
    assert "HOST:PORT" in capsys.readouterr().err


# ── peers that say nothing ──────────────────────────────────────────────────────────────────────────


@pytest.fixture
async def frozen_peer():
    """host:port of one whose connections stand, and that answers nothing but the greeting: no PING either."""
    gone = asyncio.Event()

    async def listen(reader, writer):
        writer.write(bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))  # SETTINGS without content
        await reader.read()
        writer.close()
        gone.set()

    async with await asyncio.start_server(listen, "127.0.0.1", 0) as server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        await gone.wait()


async def test_a_frozen_peer_is_found_by_its_silence(frozen_peer):
    soon = dict(CHANNEL_OPTIONS) | {"grpc.keepalive_time_ms": 50, "grpc.http2.ping_timeout_ms": 50}
    async with grpc.aio.insecure_channel(frozen_peer, options=list(soon.items())) as channel:
        call = channel.stream_stream(f"/{SERVICE}/stream_stream", *reversed(CODEC))()
        with pytest.raises(grpc.aio.AioRpcError) as lost:
            await call.read()
    assert lost.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("options", [SERVER_OPTIONS, CHANNEL_OPTIONS], ids=["server", "channel"])
def test_frozen_and_vanished_peers_have_the_same_time_to_answer(options):
    limits = dict(options)
    assert limits["grpc.http2.ping_timeout_ms"] == limits["grpc.keepalive_timeout_ms"] == 5_000


BUSY_S = 3
BUSY_PEER = f"""
import asyncio, ctypes, os, signal, sys
from svc_runtime.grpc_aio import open_channel

def hold_the_gil():
    ctypes.PyDLL(None).sleep({BUSY_S})

def freeze():
    os.kill(os.getpid(), signal.SIGSTOP)

async def main(address, pause):
    async with open_channel(address) as channel:
        call = channel.stream_stream("/{SERVICE}/echo")()
        await call.write(b"before")
        await call.read()
        globals()[pause]()
        await call.write(b"after")
        await call.read()

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.parametrize("pause", ["hold_the_gil", "freeze"])
async def test_a_peer_whose_python_stands_still_keeps_its_stream_and_a_frozen_one_does_not(
    start, monkeypatch, pause
):
    """gRPC answers pings on a thread of its own that needs no GIL: a model may load for any time."""
    heard, over = [], asyncio.Event()

    async def echo(requests, context):
        try:
            async for request in requests:
                heard.append(request)
                await context.write(request)
        finally:
            over.set()

    soon = {
        "grpc.keepalive_time_ms": 100,
        "grpc.keepalive_timeout_ms": 1000,
        "grpc.http2.ping_timeout_ms": 1000,
    }
    monkeypatch.setattr(grpc_aio, "SERVER_OPTIONS", list((dict(SERVER_OPTIONS) | soon).items()))
    handlers = {"echo": grpc.stream_stream_rpc_method_handler(echo)}
    handler = grpc.method_handlers_generic_handler(SERVICE, handlers)
    _, address = await start(register=lambda server: server.add_generic_rpc_handlers((handler,)))
    peer = await asyncio.create_subprocess_exec(
        sys.executable, "-c", BUSY_PEER, address, pause, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        await over.wait()
        assert heard == ([b"before", b"after"] if pause == "hold_the_gil" else [b"before"])
    finally:
        os.kill(peer.pid, signal.SIGKILL)
        await peer.wait()
