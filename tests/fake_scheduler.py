"""A scheduler that obeys scheduler/v1 and schedules nothing: tests see what a frontend sends, and say what it
gets.

By default every call is answered at once with as many tokens as it asks for (`TOKEN` each), one message a
token. `script` decides otherwise, call by call.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import grpc

from protos.autellix.scheduler.v1 import scheduler_pb2 as pb
from protos.autellix.scheduler.v1 import scheduler_pb2_grpc as pb_grpc
from svc_runtime.columns import pack_i32, unpack_i32
from svc_runtime.grpc_aio import GrpcServer
from svc_runtime.rpc_errors import abort

TOKEN = 300


@dataclass
class Connection:
    """One frontend's stream, seen from the scheduler."""

    hello: pb.Hello
    outbox: asyncio.Queue[pb.ConnectResponse] = field(default_factory=asyncio.Queue)

    async def taken(self) -> None:
        """Wait until gRPC has taken everything that was sent."""
        await self.outbox.join()

    def send(self, **message: object) -> None:
        self.outbox.put_nowait(pb.ConnectResponse(**message))

    def outputs(self, handles: Sequence[int] = (), tokens: Sequence[int] = (), **rest: object) -> None:
        self.send(outputs=pb.StepOutputs(handles=pack_i32(handles), tokens=pack_i32(tokens), **rest))

    def finish(self, handle: int, reason: pb.FinishReason = pb.FINISH_REASON_LENGTH, **rest: object) -> None:
        self.outputs(finished=[pb.CallFinished(handle=handle, reason=reason, **rest)])

    def refuse(self, handle: int, **refusal: object) -> None:
        self.send(refused=pb.CallRefused(handle=handle, refusal=pb.Refusal(**refusal)))


Script = Callable[[Connection, pb.Submit], Awaitable[None]]


async def answer(connection: Connection, call: pb.Submit) -> None:
    """The default script: `max_tokens` tokens, then the end."""
    connection.outputs(started=[pb.CallStarted(handle=call.handle, cached_tokens=1, queued_s=0.001)])
    for _ in range(call.max_tokens):
        connection.outputs([call.handle], [TOKEN])
        await asyncio.sleep(0)
    connection.finish(call.handle)


class FakeScheduler(pb_grpc.SchedulerServiceServicer):
    """Serves one model; remembers everything it was sent."""

    def __init__(self, model: pb.ModelInfo | None = None, script: Script = answer) -> None:
        self.model = model or pb.ModelInfo(model="tiny", max_model_len=512, block_size=32, executors=1)
        self.script = script
        self.connections: list[Connection] = []
        self.submits: list[pb.Submit] = []
        self.cancels: list[tuple[list[int], int]] = []
        self.acknowledged: list[int] = []
        self.programs: dict[str, pb.ProgramRecord] = {}
        self._seen = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()
        self._running: dict[int, asyncio.Task[None]] = {}

    async def until(self, condition: Callable[[], object], timeout_s: float = 10.0) -> None:
        """Wait until something that the frontend sends makes `condition` true."""
        async with asyncio.timeout(timeout_s), self._seen:
            await self._seen.wait_for(condition)

    async def _tell(self) -> None:
        async with self._seen:
            self._seen.notify_all()

    # ── the stream ──────────────────────────────────────────────────────────────────────────────────

    async def Connect(
        self, requests: AsyncIterator[pb.ConnectRequest], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.ConnectResponse]:
        first = await anext(requests)
        connection = Connection(first.hello)
        connection.send(welcome=pb.Welcome(scheduler_id="fake", models=[self.model], policy="fcfs"))
        self.connections.append(connection)
        await self._tell()
        reader = self._spawn(self._read(connection, requests))
        try:
            while True:
                yield await connection.outbox.get()
                connection.outbox.task_done()
        finally:
            reader.cancel()

    async def _read(self, connection: Connection, requests: AsyncIterator[pb.ConnectRequest]) -> None:
        async for request in requests:
            match request.WhichOneof("message"):
                case "submit":
                    self._submit(connection, request.submit)
                case "cancel":
                    self._cancel(connection, request.cancel)
                case "acknowledge":
                    self.acknowledged.extend(unpack_i32(request.acknowledge.handles))
            await self._tell()

    def _submit(self, connection: Connection, call: pb.Submit) -> None:
        self.submits.append(call)
        program = self.programs.get(call.program_id)
        if program is None or program.tenant != call.tenant:
            connection.refuse(
                call.handle, reason="PROGRAM_UNKNOWN", message="no such program", field="program_id"
            )
        elif program.state == pb.PROGRAM_STATE_ENDED:
            connection.refuse(call.handle, reason="PROGRAM_ENDED", message="it has ended", field="program_id")
        else:
            self._running[call.handle] = self._spawn(self.script(connection, call))

    def _cancel(self, connection: Connection, cancel: pb.Cancel) -> None:
        handles = unpack_i32(cancel.handles)
        self.cancels.append((handles, cancel.reason))
        for handle in handles:
            task = self._running.pop(handle, None)
            if task is not None and not task.done():
                task.cancel()
                connection.finish(handle, pb.FINISH_REASON_ABORT)

    def _spawn(self, coroutine: object) -> asyncio.Task[None]:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # ── programs ────────────────────────────────────────────────────────────────────────────────────

    async def OpenProgram(
        self, request: pb.OpenProgramRequest, context: grpc.aio.ServicerContext
    ) -> pb.OpenProgramResponse:
        for program in self.programs.values():
            same = (program.tenant, program.session_key) == (request.tenant, request.session_key)
            if request.session_key and same and program.state == pb.PROGRAM_STATE_IDLE:
                return pb.OpenProgramResponse(program=program, created=False)
        program = pb.ProgramRecord(
            program_id=request.program_id,
            tenant=request.tenant,
            session_key=request.session_key,
            class_name=request.class_name,
            state=pb.PROGRAM_STATE_IDLE,
        )
        self.programs[program.program_id] = program
        return pb.OpenProgramResponse(program=program, created=True)

    async def EndProgram(
        self, request: pb.EndProgramRequest, context: grpc.aio.ServicerContext
    ) -> pb.EndProgramResponse:
        program = await self._program(request, context)
        program.state = pb.PROGRAM_STATE_ENDED
        await self._tell()
        return pb.EndProgramResponse(program=program)

    async def GetProgram(
        self, request: pb.GetProgramRequest, context: grpc.aio.ServicerContext
    ) -> pb.GetProgramResponse:
        return pb.GetProgramResponse(program=await self._program(request, context))

    async def ListPrograms(
        self, request: pb.ListProgramsRequest, context: grpc.aio.ServicerContext
    ) -> pb.ListProgramsResponse:
        programs = [p for p in self.programs.values() if p.tenant == request.tenant]
        return pb.ListProgramsResponse(programs=programs)

    async def _program(
        self, request: pb.GetProgramRequest | pb.EndProgramRequest, context: grpc.aio.ServicerContext
    ) -> pb.ProgramRecord:
        program = self.programs.get(request.program_id)
        if program is None or program.tenant != request.tenant:
            await abort(context, None, "PROGRAM_UNKNOWN", "no such program", field="program_id")
        return program


def server(fake: FakeScheduler, port: int = 0, peer_token: str | None = None) -> GrpcServer:
    """A server for the fake, not started."""
    return GrpcServer(
        host="127.0.0.1",
        port=port,
        peer_token=peer_token,
        register=lambda grpc_server: pb_grpc.add_SchedulerServiceServicer_to_server(fake, grpc_server),
        service_names=["autellix.scheduler.v1.SchedulerService"],
    )
