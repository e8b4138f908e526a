"""Two directions that live and die together, over real gRPC."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from scheduler_svc.core.errors import ProtocolBroken, Refusal
from scheduler_svc.shell.streams import StreamEnd, abort_with, first_message, run_stream
from svc_runtime.rpc_errors import parse_error
from tests.unit.scheduler_shell.waiting import LIMIT_S, read_to_end

LARGE = bytes(3 << 20)
"""More than flow control lets through to a peer that does not read, less than a message may have."""
Handler = Callable[[Any, Any], Awaitable[None]]


@asynccontextmanager
async def stream_to(handler: Handler) -> AsyncIterator[Any]:
    """A stream whose server side is `handler`, opened with one message."""
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    methods = {"Stream": grpc.stream_stream_rpc_method_handler(handler)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test", methods),))
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield channel.stream_stream("/test/Stream")(iter([b"hello"]))
    finally:
        await server.stop(0)


async def nothing() -> None:
    await asyncio.Event().wait()


async def broken() -> None:
    await asyncio.sleep(0)  # the first write is under way
    raise ProtocolBroken("nonsense")


async def test_a_stream_can_be_aborted_while_its_first_write_is_under_way() -> None:
    aborting = asyncio.Event()

    async def handler(requests: Any, context: Any) -> None:
        await first_message(context, aiter(requests), timeout_s=5, expected="hello")
        refusal = await run_stream(read=broken(), write=context.write(LARGE), end=StreamEnd())
        assert refusal is not None
        aborting.set()
        await abort_with(context, refusal)

    async with stream_to(handler) as stream:
        await asyncio.wait_for(aborting.wait(), LIMIT_S)
        with pytest.raises(grpc.RpcError) as ended:
            await read_to_end(stream)
    failure = parse_error(ended.value)
    assert (failure.reason, failure.message) == ("PROTOCOL_BROKEN", "nonsense")


async def test_the_first_reason_to_end_wins() -> None:
    end = StreamEnd()
    end.refuse(Refusal(reason="PEER_TOO_SLOW", message="slow"))
    end.close()
    end.protocol_broken(ProtocolBroken("late"))
    refusal = await run_stream(read=nothing(), write=nothing(), end=end)
    assert refusal is not None
    assert refusal.reason == "PEER_TOO_SLOW"
    assert end.cause == "PEER_TOO_SLOW: slow"


async def test_a_peer_that_ends_its_side_is_told_nothing() -> None:
    async def done() -> None:
        return

    end = StreamEnd()
    assert await run_stream(read=done(), write=nothing(), end=end) is None
    assert end.cause == "peer gone"


async def test_a_bug_in_a_direction_is_not_hidden() -> None:
    async def bug() -> None:
        raise KeyError("ours")

    with pytest.raises(KeyError):
        await run_stream(read=bug(), write=nothing(), end=StreamEnd())
