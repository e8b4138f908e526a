"""A scheduler that says what a test tells it to, over real gRPC on port 0."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc

from executor_svc.runner import AnnouncedCall, StepPlan, StepResult
from protos.autellix.executor.v1 import executor_pb2 as pb
from protos.autellix.executor.v1 import executor_pb2_grpc as rpc
from svc_runtime.rpc_errors import abort
from tests.unit.executor_svc.plan_writer import call_message, plan_message, read_result
from tests.unit.executor_svc.waiting import PATIENCE_S


class FakeAttachment:
    """The scheduler's side of one stream; every wait has a time limit."""

    def __init__(self, registration: pb.Registration, context: Any) -> None:
        self.registration = registration
        self._context = context
        self.end: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.gone = asyncio.Event()

    async def accept(self, *, epoch: int | None = None) -> None:
        """Accepts the registration, with another epoch if told so."""
        accepted = pb.RegistrationAccepted(scheduler_id="fake", epoch=epoch or self.registration.epoch)
        await self.send(pb.AttachResponse(accepted=accepted))

    async def send(self, response: pb.AttachResponse) -> None:
        """Sends any message."""
        await self._context.write(response)

    async def announce(self, *calls: AnnouncedCall) -> None:
        """Announces calls."""
        messages = [call_message(call) for call in calls]
        await self.send(pb.AttachResponse(announced=pb.CallsAnnounced(calls=messages)))

    async def plan(self, plan: StepPlan) -> None:
        """Sends a plan."""
        await self.send(pb.AttachResponse(plan=plan_message(plan)))

    async def receive(self) -> pb.AttachRequest:
        """The executor's next message."""
        async with asyncio.timeout(PATIENCE_S):
            message = await self._context.read()
        assert isinstance(message, pb.AttachRequest), "the executor ended the stream"
        return message

    async def result(self) -> StepResult:
        """The executor's next message, a result."""
        message = await self.receive()
        assert message.WhichOneof("message") == "result"
        return read_result(message.result)

    def finish(self, reason: str = "") -> None:
        """Ends the stream: in good order, or with a typed error."""
        self.end.set_result(reason)

    async def until_gone(self) -> None:
        """Returns when the executor has left the stream."""
        async with asyncio.timeout(PATIENCE_S):
            await self.gone.wait()


class FakeScheduler(rpc.ExecutorServiceServicer):
    """Hands each registration to the test."""

    def __init__(self) -> None:
        self._attachments: asyncio.Queue[FakeAttachment] = asyncio.Queue()
        self._server: grpc.aio.Server | None = None
        self.port = 0

    @property
    def target(self) -> str:
        """host:port."""
        return f"127.0.0.1:{self.port}"

    async def start(self, port: int = 0) -> None:
        """Listens."""
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        rpc.add_ExecutorServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        await self._server.start()

    async def stop(self) -> None:
        """Ends all streams and stops listening."""
        if self._server is not None:
            await self._server.stop(0)
            self._server = None

    async def Attach(self, _requests: object, context: Any) -> None:
        """One stream, until the test finishes it or the executor leaves."""
        first = await context.read()
        attachment = FakeAttachment(first.registration, context)
        await self._attachments.put(attachment)
        try:
            reason = await attachment.end
            if reason:
                await abort(context, None, reason, f"fake: {reason}")
        finally:
            attachment.gone.set()

    async def attached(self, *, accept: bool = True) -> FakeAttachment:
        """The next registration."""
        async with asyncio.timeout(PATIENCE_S):
            attachment = await self._attachments.get()
        if accept:
            await attachment.accept()
        return attachment


class GarbageScheduler(grpc.GenericRpcHandler):
    """Answers any stream with bytes that are no message."""

    def __init__(self, answers: Sequence[bytes]) -> None:
        self._answers = answers
        self.streams = 0

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        """Whatever is asked."""
        return grpc.stream_stream_rpc_method_handler(self._answer)

    async def _answer(self, _requests: object, _context: object) -> AsyncIterator[bytes]:
        self.streams += 1
        for answer in self._answers:
            yield answer


@asynccontextmanager
async def fake_scheduler(port: int = 0) -> AsyncIterator[FakeScheduler]:
    """A fake scheduler for as long as the block runs."""
    scheduler = FakeScheduler()
    await scheduler.start(port)
    try:
        yield scheduler
    finally:
        await scheduler.stop()
