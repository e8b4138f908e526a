"""SchedulerService as gRPC sees it: each method delegates, and a refusal becomes a typed gRPC error."""

from collections.abc import AsyncIterator, Awaitable
from typing import Any, TypeVar

import grpc

from protos.autellix.scheduler.v1 import scheduler_pb2 as pb
from protos.autellix.scheduler.v1 import scheduler_pb2_grpc as pb_grpc
from scheduler_svc.core.errors import Refused
from scheduler_svc.shell.frontend_streams import FrontendStreams
from scheduler_svc.shell.program_desk import ProgramDesk
from scheduler_svc.shell.streams import abort_with

R = TypeVar("R")
Context = grpc.aio.ServicerContext[Any, Any]


class SchedulerServicer(pb_grpc.SchedulerServiceServicer):
    """Frontends and operators talk to this."""

    def __init__(self, streams: FrontendStreams, desk: ProgramDesk) -> None:
        self._streams = streams
        self._desk = desk

    async def Connect(self, request_iterator: AsyncIterator[pb.ConnectRequest], context: Context) -> None:
        """A frontend's calls."""
        await _answer(self._streams.serve(request_iterator, context), context)

    async def OpenProgram(self, request: pb.OpenProgramRequest, context: Context) -> pb.OpenProgramResponse:
        """Opens or reopens a program."""
        return await _answer(self._desk.open(request), context)

    async def EndProgram(self, request: pb.EndProgramRequest, context: Context) -> pb.EndProgramResponse:
        """Ends a program."""
        return await _answer(self._desk.end(request), context)

    async def CancelProgram(
        self, request: pb.CancelProgramRequest, context: Context
    ) -> pb.CancelProgramResponse:
        """Cancels a program's calls and ends it."""
        return await _answer(self._desk.cancel(request), context)

    async def GetProgram(self, request: pb.GetProgramRequest, context: Context) -> pb.GetProgramResponse:
        """One program."""
        return await _answer(_now(self._desk.get, request), context)

    async def ListPrograms(
        self, request: pb.ListProgramsRequest, context: Context
    ) -> pb.ListProgramsResponse:
        """Live and recently ended programs."""
        return self._desk.list(request.tenant)

    async def WatchPrograms(self, request: pb.WatchProgramsRequest, context: Context) -> None:
        """The list of programs, whenever it changed."""
        await _answer(self._watch(request, context), context)

    async def _watch(self, request: pb.WatchProgramsRequest, context: Context) -> None:
        async for response in self._desk.watch(request):
            await context.write(response)

    async def ListExecutors(
        self, request: pb.ListExecutorsRequest, context: Context
    ) -> pb.ListExecutorsResponse:
        """Executors attached now."""
        return self._desk.list_executors()

    async def GetStatistics(
        self, request: pb.GetStatisticsRequest, context: Context
    ) -> pb.GetStatisticsResponse:
        """Counters and gauges."""
        return self._desk.statistics()

    async def DrainExecutor(
        self, request: pb.DrainExecutorRequest, context: Context
    ) -> pb.DrainExecutorResponse:
        """Stops placing calls on an executor."""
        return await _answer(self._desk.drain_executor(request), context)

    async def SetPolicy(self, request: pb.SetPolicyRequest, context: Context) -> pb.SetPolicyResponse:
        """Changes the scheduling policy while calls live."""
        return await _answer(self._desk.set_policy(request), context)


async def _answer(work: Awaitable[R], context: Context) -> R:
    try:
        return await work
    except Refused as refused:
        await abort_with(context, refused.refusal)


async def _now(work: Any, request: Any) -> Any:
    return work(request)
