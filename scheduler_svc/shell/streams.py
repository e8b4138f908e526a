"""What both kinds of streams share: two directions that live and die together, and a typed end.

A stream ends because the peer ended it or vanished (its reader returns, or the handler is cancelled), or
because we say so: `StreamEnd.refuse` carries the typed error, `StreamEnd.close` ends in good order.
"""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Any, NoReturn, TypeVar

import grpc

from scheduler_svc.core.errors import CoreError, ProtocolBroken, Refusal, Refused
from svc_runtime.rpc_errors import abort

M = TypeVar("M")


class StreamEnd:
    """Whether, and why, we end a stream. The first reason wins."""

    def __init__(self) -> None:
        self._decided: asyncio.Future[Refusal | None] = asyncio.get_running_loop().create_future()

    @property
    def decided(self) -> bool:
        """True when we want the stream to end."""
        return self._decided.done()

    @property
    def cause(self) -> str:
        """Who ended it and why, for logs."""
        if not self._decided.done():
            return "peer gone"
        refusal = self._decided.result()
        return f"{refusal.reason}: {refusal.message}" if refusal else "in good order"

    def close(self) -> None:
        """Ends the stream in good order."""
        if not self._decided.done():
            self._decided.set_result(None)

    def refuse(self, refusal: Refusal) -> None:
        """Ends the stream with a typed error."""
        if not self._decided.done():
            self._decided.set_result(refusal)

    def protocol_broken(self, error: CoreError) -> None:
        """Ends the stream of a peer whose message made no sense."""
        self.refuse(Refusal(reason="PROTOCOL_BROKEN", message=str(error)))

    async def wait(self) -> Refusal | None:
        """Returns when the end is decided: the typed error, or None for an end in good order."""
        return await asyncio.shield(self._decided)


async def first_message(
    context: grpc.aio.ServicerContext[Any, Any],
    requests: AsyncIterator[M],
    *,
    timeout_s: float,
    expected: str,
) -> M:
    """Opens a stream: answers with metadata, returns the peer's opening message.

    Raises: Refused with PROTOCOL_BROKEN when it does not come, or does not come in time.
    """
    # Sent apart from our first message: a stream whose first write is cut short could not be aborted any
    # more, because gRPC would send the metadata again along with the status.
    await context.send_initial_metadata(())
    try:
        async with asyncio.timeout(timeout_s):
            return await anext(requests)
    except TimeoutError:
        message = f"no {expected} within {timeout_s:g} s of opening the stream"
    except StopAsyncIteration:
        message = f"the stream ended before its {expected}"
    raise Refused(Refusal(reason="PROTOCOL_BROKEN", message=message))


async def run_stream(
    *, read: Coroutine[Any, Any, None], write: Coroutine[Any, Any, None], end: StreamEnd
) -> Refusal | None:
    """Runs both directions until the peer has ended its side or `end` is decided.

    ProtocolBroken of `read` becomes a typed error.

    Returns: the typed error that the peer is to be told; None: nothing. Tell everybody else first that the
        peer is gone: one that does not read may take for ever to hear it.
    """
    ended = asyncio.create_task(end.wait())
    tasks = [asyncio.create_task(read), asyncio.create_task(write), ended]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done - {ended}:
            _note_failure(task, end)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    return await end.wait() if end.decided else None


def _note_failure(task: "asyncio.Task[Any]", end: StreamEnd) -> None:
    error = task.exception()
    if isinstance(error, ProtocolBroken):
        end.protocol_broken(error)
    elif error is not None and not isinstance(error, grpc.aio.BaseError):
        raise error


async def abort_with(context: grpc.aio.ServicerContext[Any, Any], refusal: Refusal) -> NoReturn:
    """Ends an RPC with a refusal; never returns. A peer that has gone meanwhile is not told."""
    try:
        await abort(
            context,
            None,
            refusal.reason,
            refusal.message,
            field=refusal.field,
            limit=refusal.limit,
            value=refusal.value,
            retry_after_s=refusal.retry_after_s,
        )
    except grpc.aio.InternalError as error:
        raise asyncio.CancelledError("the peer has gone") from error
