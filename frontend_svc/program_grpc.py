"""The gRPC door: `autellix.program.v1.ProgramService`.

Theory of operation. Each RPC turns its message into values, asks `ProgramService`, and turns the answer
back; whatever goes wrong leaves as one typed error (`_typed`), and what is our own fault as INTERNAL with
nothing of its cause. Streams are written with `context.write`, so that a slow reader slows its own call's
pieces (which coalesce upstream) and a reader that has gone closes the iterator at once, which cancels the
call.

Run it with `svc_runtime.grpc_aio.GrpcServer(register=register_programs(service),
interceptors=[TenantGuard(...)])`.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any

import grpc
import structlog

from frontend_svc.errors import Refused
from frontend_svc.program_auth import current_tenant
from frontend_svc.program_messages import call_request, piece_message, program_message
from frontend_svc.program_service import ProgramService
from protos.autellix.program.v1 import program_pb2 as pb
from protos.autellix.program.v1 import program_pb2_grpc as pb_grpc
from protos.autellix.scheduler.v1 import scheduler_pb2 as scheduler_pb
from svc_runtime.rpc_errors import abort

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["ProgramService"].full_name

log = structlog.get_logger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]


def register_programs(service: ProgramService) -> Callable[[grpc.aio.Server], None]:
    """What `GrpcServer(register=...)` takes."""

    def register(server: grpc.aio.Server) -> None:
        pb_grpc.add_ProgramServiceServicer_to_server(ProgramServicer(service), server)

    return register


class ProgramServicer(pb_grpc.ProgramServiceServicer):
    """One RPC a method; the contract is protos/autellix/program/v1/program.proto."""

    def __init__(self, service: ProgramService) -> None:
        self._service = service

    async def StartProgram(
        self, request: pb.StartProgramRequest, context: Context
    ) -> pb.StartProgramResponse:
        async with _typed(context):
            record, created = await self._service.start_program(
                current_tenant(), session=request.session, class_name=request.class_name
            )
            return pb.StartProgramResponse(program=program_message(record), created=created)

    async def EndProgram(self, request: pb.EndProgramRequest, context: Context) -> pb.EndProgramResponse:
        async with _typed(context):
            record = await self._service.end_program(current_tenant(), request.program_id)
            return pb.EndProgramResponse(program=program_message(record))

    async def CancelProgram(
        self, request: pb.CancelProgramRequest, context: Context
    ) -> pb.CancelProgramResponse:
        async with _typed(context):
            record = await self._service.cancel_program(current_tenant(), request.program_id)
            return pb.CancelProgramResponse(program=program_message(record))

    async def GetProgram(self, request: pb.GetProgramRequest, context: Context) -> pb.GetProgramResponse:
        async with _typed(context):
            record = await self._service.get_program(current_tenant(), request.program_id)
            return pb.GetProgramResponse(program=program_message(record))

    async def ListPrograms(
        self, request: pb.ListProgramsRequest, context: Context
    ) -> pb.ListProgramsResponse:
        async with _typed(context):
            records = await self._service.list_programs(current_tenant())
            return pb.ListProgramsResponse(programs=_messages(records))

    async def WatchPrograms(self, request: pb.WatchProgramsRequest, context: Context) -> None:
        async with _typed(context):
            looks = self._service.watch_programs(current_tenant(), request.interval_s)
            async with aclosing(looks):
                async for records in looks:
                    await context.write(pb.WatchProgramsResponse(programs=_messages(records)))

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> None:
        async with _typed(context):
            call = call_request(request, context.time_remaining())
            async with aclosing(self._service.generate(current_tenant(), call)) as pieces:
                async for piece in pieces:
                    await context.write(piece_message(piece))

    async def CancelCall(self, request: pb.CancelCallRequest, context: Context) -> pb.CancelCallResponse:
        async with _typed(context):
            cancelled = await self._service.cancel_call(current_tenant(), request.call_id)
            return pb.CancelCallResponse(cancelled=cancelled)


def _messages(records: Sequence[scheduler_pb.ProgramRecord]) -> list[pb.Program]:
    return [program_message(record) for record in records]


@asynccontextmanager
async def _typed(context: Context) -> AsyncIterator[None]:
    """Ends the RPC with a typed error when its body fails. Cancellation passes through."""
    try:
        yield
    except Refused as error:
        refused = error.refusal
        log.info("rpc_refused", reason=refused.reason, field=refused.field)
        await abort(
            context,
            None,
            refused.reason,
            refused.message,
            field=refused.field,
            limit=refused.limit,
            value=refused.value,
            retry_after_s=refused.retry_after_s if refused.HasField("retry_after_s") else None,
        )
    except Exception:
        log.exception("rpc_failed")
        await abort(context, None, "INTERNAL", "the server failed; the cause is in its log")
