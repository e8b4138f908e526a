"""The program API behind both of its doors, gRPC and HTTP: programs, and calls of programs.

Theory of operation. A program lives in the scheduler; each operation is one question to it under the
caller's tenant, so a foreign program answers exactly like one that never was. A call is checked against the
limits, then rendered by the model's tokenizer, and only then touches a program: what is refused leaves no
trace in the process table. Its id is known before it runs and is the first thing the client hears; the
`CallRegistry` holds it while it lives, for `cancel_call` and for the engine-core client.

How a call ends, and who says so:

    finished, stop string    the generator's last piece
    deadline                 this module's timer or the scheduler's, whichever is first: DEADLINE_EXCEEDED
    client gone              the door closes the iterator; the generator cancels the call in the scheduler
    CancelCall, CancelProgram   the generator ends with `Finish.CANCELLED`

Every method raises `Refused` and nothing else that a client could have caused.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

import structlog

from frontend_svc import program_limits as limits
from frontend_svc.call_context import CallContext, CallRegistry
from frontend_svc.errors import FrontendError, Refused, refusal
from frontend_svc.program_calls import CallRequest, Finish, Generator, Piece, ProgramLink, Usage
from protos.autellix.scheduler.v1 import scheduler_pb2 as pb

WATCH_INTERVAL_S = 1.0

log = structlog.get_logger(__name__)


class ProgramService:
    """Programs and their calls, for one frontend.

    Args:
        programs: the scheduler's programs.
        generator: the model.
        calls: live calls of this frontend, shared with the OpenAI routes.
        new_id: makes unguessable ids, unique for ever (UUIDv7).
    """

    def __init__(
        self, programs: ProgramLink, generator: Generator, calls: CallRegistry, new_id: Callable[[], str]
    ) -> None:
        self._programs = programs
        self._generator = generator
        self._calls = calls
        self._new_id = new_id

    async def start_program(
        self, tenant: str, *, session: str = "", class_name: str = ""
    ) -> tuple[pb.ProgramRecord, bool]:
        """Starts a program, or finds the live one of that session key.

        Args:
            session: the client's own key; empty: always a new program.
            class_name: groups programs in statistics; of a program that is found it stays as it was.

        Returns:
            The program, and whether it is new.
        """
        limits.check_session(session)
        limits.check_class_name(class_name)
        return await self._programs.open_program(
            tenant=tenant,
            program_id=self._new_id(),
            session_key=session,
            class_name=class_name,
            single_call=False,
        )

    async def end_program(self, tenant: str, program_id: str) -> pb.ProgramRecord:
        """Ends a program: running calls finish, new ones are refused. Raises PROGRAM_UNKNOWN."""
        limits.check_program_id(program_id)
        return await self._programs.end_program(tenant=tenant, program_id=program_id)

    async def cancel_program(self, tenant: str, program_id: str) -> pb.ProgramRecord:
        """Cancels a program's live calls and ends it. Raises PROGRAM_UNKNOWN."""
        limits.check_program_id(program_id)
        return await self._programs.cancel_program(tenant=tenant, program_id=program_id)

    async def get_program(self, tenant: str, program_id: str) -> pb.ProgramRecord:
        """One program as it stands. Raises PROGRAM_UNKNOWN."""
        limits.check_program_id(program_id)
        return await self._programs.get_program(tenant=tenant, program_id=program_id)

    async def list_programs(self, tenant: str) -> Sequence[pb.ProgramRecord]:
        """The tenant's live and recently ended programs, oldest first."""
        return await self._programs.list_programs(tenant=tenant)

    def watch_programs(
        self, tenant: str, interval_s: float = 0.0
    ) -> AsyncGenerator[Sequence[pb.ProgramRecord], None]:
        """The same list, again whenever it changed, at most once in `interval_s` (0: every second)."""
        limits.check_interval_s(interval_s)
        return self._programs.watch_programs(tenant=tenant, interval_s=interval_s or WATCH_INTERVAL_S)

    async def cancel_call(self, tenant: str, call_id: str) -> bool:
        """Cancels a live call of the tenant on this frontend.

        Returns:
            Whether it was live; False as well for a call of somebody else.
        """
        limits.check_call_id(call_id)
        context = self._calls.get(call_id)
        if context is None or context.tenant != tenant:
            return False
        log.info("call_cancel_requested", call_id=call_id, program_id=context.program_id)
        context.cancel_requested = True
        await self._generator.cancel(call_id)
        return True

    async def generate(self, tenant: str, request: CallRequest) -> AsyncGenerator[Piece, None]:
        """Runs one call. Close the iterator to cancel it.

        Yields:
            First a piece with the ids alone, as soon as the call may run; then what is generated.
        """
        started, finished = time.monotonic(), False
        limits.check_call(request)
        prepared = await self._generator.prepare(request)
        context = CallContext(
            call_id=self._new_id(),
            tenant=tenant,
            program_id=request.program_id or await self._open_single_call(tenant),
            thread_id=request.thread_id,
            parent_call_ids=request.parent_call_ids,
            deadline=None if request.deadline_s is None else started + request.deadline_s,
        )
        try:
            with self._calls.registered(context):
                yield Piece(call_id=context.call_id, program_id=context.program_id)
                if context.cancel_requested:
                    yield Piece(finish=Finish.CANCELLED, usage=Usage(prompt_tokens=0, completion_tokens=0))
                    return
                async with aclosing(self._generator.generate(prepared, context)) as pieces:
                    while (piece := await _next_piece(pieces, context)) is not None:
                        finished = piece.finish is not None
                        yield piece
        finally:
            if not (finished or request.program_id):
                await self._end_single_call(context)

    async def _open_single_call(self, tenant: str) -> str:
        program, _ = await self._programs.open_program(
            tenant=tenant, program_id=self._new_id(), session_key="", class_name="", single_call=True
        )
        return program.program_id

    async def _end_single_call(self, context: CallContext) -> None:
        """Ends a program whose only call may never have reached the scheduler, which would wait for it."""
        try:
            await self._programs.end_program(tenant=context.tenant, program_id=context.program_id)
        except FrontendError as error:
            log.info("single_call_left_to_idle_out", program_id=context.program_id, cause=str(error))


async def _next_piece(pieces: AsyncGenerator[Piece, None], context: CallContext) -> Piece | None:
    """The next piece, None after the last; DEADLINE_EXCEEDED, and the call cancelled, when its time is up."""
    try:
        async with asyncio.timeout(context.remaining_s()):
            return await anext(pieces, None)
    except TimeoutError:
        message = "the call's deadline passed before it was finished"
        raise Refused(refusal("DEADLINE_EXCEEDED", message, field="deadline")) from None
