"""Programs: the scheduler's unary operations with typed errors and deadlines.

Every method raises `Refused` (reason PROGRAM_UNKNOWN, PROGRAM_ENDED, PROGRAM_LIMIT, ...) or
`SchedulerLost`, never `grpc.RpcError`. Reads wait for a scheduler that is just restarting, within their
deadline; writes fail at once, since only the caller knows whether to repeat them.
"""

from collections.abc import AsyncGenerator, Awaitable, Sequence
from typing import TypeVar

import grpc

from frontend_svc.errors import refused_from_rpc
from protos.autellix.scheduler.v1 import scheduler_pb2 as pb
from protos.autellix.scheduler.v1 import scheduler_pb2_grpc as pb_grpc

T = TypeVar("T")
DEADLINE_S = 5.0
"""Seconds one unary call may take."""


class ProgramClient:
    """The programs of all tenants, as the scheduler keeps them.

    Args:
        channel: an open channel to the scheduler; stays the caller's.
        deadline_s: seconds each unary call may take.
    """

    def __init__(self, channel: grpc.aio.Channel, *, deadline_s: float = DEADLINE_S) -> None:
        self._stub = pb_grpc.SchedulerServiceStub(channel)
        self._deadline_s = deadline_s

    async def open_program(
        self,
        *,
        tenant: str,
        program_id: str,
        session_key: str = "",
        class_name: str = "",
        single_call: bool = False,
    ) -> tuple[pb.ProgramRecord, bool]:
        """Open a program under `program_id`, or return the live one of (tenant, session key).

        Returns: the program, and True when it is new.
        """
        request = pb.OpenProgramRequest(
            tenant=tenant,
            program_id=program_id,
            session_key=session_key,
            class_name=class_name,
            single_call=single_call,
        )
        response = await _typed(self._stub.OpenProgram(request, timeout=self._deadline_s))
        return response.program, response.created

    async def end_program(self, *, tenant: str, program_id: str) -> pb.ProgramRecord:
        """End a program: its running calls finish, new ones are refused."""
        request = pb.EndProgramRequest(tenant=tenant, program_id=program_id)
        return (await _typed(self._stub.EndProgram(request, timeout=self._deadline_s))).program

    async def cancel_program(self, *, tenant: str, program_id: str) -> pb.ProgramRecord:
        """Cancel a program's live calls and end it."""
        request = pb.CancelProgramRequest(tenant=tenant, program_id=program_id)
        return (await _typed(self._stub.CancelProgram(request, timeout=self._deadline_s))).program

    async def get_program(self, *, tenant: str, program_id: str) -> pb.ProgramRecord:
        """One program, live or recently ended."""
        request = pb.GetProgramRequest(tenant=tenant, program_id=program_id)
        call = self._stub.GetProgram(request, timeout=self._deadline_s, wait_for_ready=True)
        return (await _typed(call)).program

    async def list_programs(self, *, tenant: str) -> Sequence[pb.ProgramRecord]:
        """The tenant's live and recently ended programs, oldest first."""
        request = pb.ListProgramsRequest(tenant=tenant)
        call = self._stub.ListPrograms(request, timeout=self._deadline_s, wait_for_ready=True)
        return (await _typed(call)).programs

    async def watch_programs(
        self, *, tenant: str, interval_s: float = 0.0
    ) -> AsyncGenerator[Sequence[pb.ProgramRecord], None]:
        """The tenant's programs, again whenever they changed; runs until closed or the scheduler is lost.

        Args:
            interval_s: least seconds between two lists; 0: the scheduler's default.
        """
        stream = self._stub.WatchPrograms(pb.WatchProgramsRequest(tenant=tenant, interval_s=interval_s))
        try:
            async for response in stream:
                yield response.programs
        except grpc.RpcError as error:
            raise refused_from_rpc(error) from error
        finally:
            stream.cancel()


async def _typed(call: Awaitable[T]) -> T:
    try:
        return await call
    except grpc.RpcError as error:
        raise refused_from_rpc(error) from error
