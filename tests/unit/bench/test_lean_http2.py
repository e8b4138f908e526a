"""The load generator's own gRPC client, against a real gRPC server."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import cast

import grpc
import pytest
import uvloop

from bench.lean_http2 import LeanCall, LeanChannel

LoopFactory = Callable[[], asyncio.AbstractEventLoop]
Handler = Callable[[AsyncIterator[bytes], grpc.aio.ServicerContext], object]
SIZES = [0, 1, 3000, 16_379, 16_380, 100_000, 3_000_000]
"""Around the size of a frame, and far beyond what may be sent before the peer has taken it."""


class Peer:
    """A server with one method, and a call to it."""

    def __init__(self, handler: Handler) -> None:
        self.server = grpc.aio.server()
        methods = {"Do": grpc.stream_stream_rpc_method_handler(handler)}
        self.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("probe", methods),))

    async def __aenter__(self) -> LeanCall:
        port = self.server.add_insecure_port("127.0.0.1:0")
        await self.server.start()
        self.channel = LeanChannel(f"127.0.0.1:{port}", metadata=[("who", "me")])
        return self.channel.stream_stream("/probe/Do")()

    async def __aexit__(self, *exc_info: object) -> None:
        await self.channel.close()
        await self.server.stop(0)


async def echo(requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> None:
    async for request in requests:
        await context.write(request)


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def loop_factory(request: pytest.FixtureRequest) -> LoopFactory:
    return cast(LoopFactory, request.param)


async def exchange() -> None:
    messages = [bytes([number]) * size for number, size in enumerate(SIZES)]
    async with Peer(echo) as call, asyncio.timeout(10):
        for message in messages:
            await call.write(message)
        assert [await call.read() for _ in messages] == messages


def test_messages_of_any_size_come_back_whole_and_in_order(loop_factory: LoopFactory) -> None:
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(exchange())


async def exchange_at_once(count: int) -> None:
    peer = Peer(echo)
    async with peer, asyncio.timeout(10):
        calls = [peer.channel.stream_stream("/probe/Do")() for _ in range(count)]
        await asyncio.gather(*(call.write(b"x") for call in calls))
        assert [await call.read() for call in calls] == [b"x"] * count


def test_many_connect_at_once(loop_factory: LoopFactory) -> None:
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(exchange_at_once(64))


async def test_more_than_a_window_can_be_exchanged_over_time() -> None:
    async with Peer(echo) as call, asyncio.timeout(10):
        for number in range(40):
            message = bytes([number]) * 50_000
            await call.write(message)
            assert await call.read() == message


async def test_a_peer_that_does_not_read_holds_the_writer_back() -> None:
    async def deaf(_requests: AsyncIterator[bytes], _context: grpc.aio.ServicerContext) -> None:
        await asyncio.Event().wait()

    async with Peer(deaf) as call, asyncio.timeout(10):
        await call.write(b"")
        writing = asyncio.create_task(call.write(bytes(30_000_000)))
        while call.room:  # noqa: ASYNC110 - the peer's word, not ours to notify
            await asyncio.sleep(0.001)
        assert not writing.done()
        call.cancel()
        with pytest.raises(grpc.aio.AioRpcError):
            await writing


async def test_metadata_reaches_the_peer() -> None:
    async def who(_requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> None:
        await context.write(str(dict(context.invocation_metadata() or ())["who"]).encode())

    async with Peer(who) as call, asyncio.timeout(10):
        await call.write(b"")
        assert await call.read() == b"me"


async def test_a_stream_that_the_peer_ends_is_over() -> None:
    async def once(requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> None:
        await context.write(await anext(aiter(requests)))

    async with Peer(once) as call, asyncio.timeout(10):
        await call.write(b"x")
        assert await call.read() == b"x"
        assert await call.read() is grpc.aio.EOF
        with pytest.raises(asyncio.InvalidStateError):
            await call.write(b"y")


async def test_a_lost_connection_is_an_error_to_reader_and_writer() -> None:
    peer = Peer(echo)
    async with peer as call, asyncio.timeout(10):
        await call.write(b"x")
        assert await call.read() == b"x"
        await peer.server.stop(0)
        with pytest.raises(grpc.aio.AioRpcError) as lost:
            await call.read()
        with pytest.raises(grpc.aio.AioRpcError):
            await call.write(b"y")
    assert lost.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_nobody_listens() -> None:
    async with Peer(echo):
        pass
    call = LeanChannel("127.0.0.1:1").stream_stream("/probe/Do")()
    with pytest.raises(grpc.aio.AioRpcError):
        await call.write(b"x")


async def test_a_call_that_is_cancelled_while_it_connects_leaves_no_connection() -> None:
    left = asyncio.Event()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.read() == b""
        writer.close()
        left.set()

    async with await asyncio.start_server(listen, "127.0.0.1", 0) as server, asyncio.timeout(10):
        call = LeanChannel(f"127.0.0.1:{server.sockets[0].getsockname()[1]}").stream_stream("/probe/Do")()
        writing = asyncio.create_task(call.write(b"x"))
        await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(grpc.aio.AioRpcError):
            await writing
        await left.wait()
        with pytest.raises(grpc.aio.AioRpcError):
            await call.write(b"y")
