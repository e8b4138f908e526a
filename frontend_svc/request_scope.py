"""One HTTP request as the engine-core client sees it: its program, its calls, how it failed.

Theory of operation. vLLM's routes make between zero calls (the request is invalid) and many (n > 1, a list
of prompts) out of one request, in tasks of their own, and pass nothing of ours through. So the door puts a
`RequestScope` into a context variable, which asyncio copies into those tasks; the engine-core client takes
the call's context from there. The program is opened by the first call, not by the request: what vLLM
refuses leaves no program behind. The scope also remembers the first typed refusal, from which the door
makes the HTTP error.
"""

import asyncio
import time
from collections.abc import Sequence
from contextlib import ExitStack
from contextvars import ContextVar
from typing import Protocol

from frontend_svc.call_context import CallContext, CallRegistry
from frontend_svc.identity import Identity
from frontend_svc.ids import new_id
from protos.autellix.scheduler.v1 import scheduler_pb2 as pb

current_scope: ContextVar["RequestScope | None"] = ContextVar("current_scope", default=None)
"""The request that the running task works for; None outside of HTTP."""


class OpensPrograms(Protocol):
    """The part of `ProgramClient` needed here."""

    async def open_program(
        self,
        *,
        tenant: str,
        program_id: str,
        session_key: str = "",
        class_name: str = "",
        single_call: bool = False,
    ) -> tuple[pb.ProgramRecord, bool]: ...

    async def end_program(self, *, tenant: str, program_id: str) -> pb.ProgramRecord: ...


class RequestScope:
    """One request between its door and the engine-core client.

    Args:
        tenant: owner of the program.
        identity: what the request says about its program.
        programs: where programs are opened and ended.
        calls: live calls of this frontend; those of this request are in it until `finish`.
    """

    def __init__(self, tenant: str, identity: Identity, programs: OpensPrograms, calls: CallRegistry) -> None:
        self.tenant = tenant
        self.identity = identity
        self.program_id = identity.program_id
        """Empty until the program is open."""
        self.refusal: pb.Refusal | None = None
        """Why the request cannot be served; the first refusal of its calls."""
        self.answered = False
        """True once a call of the request brought its first output or failed."""
        self._call_ids: list[str] = []
        self._programs = programs
        self._calls = calls
        self._registered = ExitStack()
        self._opening = asyncio.Lock()
        self._opened = False
        self._deadline = None if identity.deadline_s is None else time.monotonic() + identity.deadline_s

    @property
    def call_ids(self) -> Sequence[str]:
        """Its calls so far. The first is a UUIDv7, further ones append -1, -2, ..."""
        return self._call_ids

    async def next_call(self) -> CallContext:
        """Name one more call; the first one opens the program.

        Raises:
            Refused: the program cannot be opened.
        """
        async with self._opening:
            await self._open()
            count = len(self._call_ids)
            call_id = f"{self._call_ids[0]}-{count}" if count else new_id()
            self._call_ids.append(call_id)
        context = CallContext(
            call_id=call_id,
            tenant=self.tenant,
            program_id=self.program_id,
            thread_id=self.identity.thread_id,
            parent_call_ids=self.identity.parent_call_ids,
            deadline=self._deadline,
        )
        return self._registered.enter_context(self._calls.registered(context))

    def refuse(self, refusal: pb.Refusal) -> None:
        """Remember why a call of this request failed."""
        self.answered = True
        self.refusal = self.refusal or refusal

    async def finish(self) -> None:
        """The request is over: its calls cannot be cancelled any more; its program ends if it was for this
        request
        only, or if the client said so.

        Raises:
            Refused: the program could not be ended; it will idle out.
        """
        self._registered.close()
        if self.program_id and self._opened and self._ends_here:
            await self._programs.end_program(tenant=self.tenant, program_id=self.program_id)

    @property
    def _ends_here(self) -> bool:
        by_itself = self.identity.single and self.refusal is None  # ends with its call, if it ever had one
        return self.identity.final or (self.identity.anonymous and not by_itself)

    async def _open(self) -> None:
        if self._opened:
            return
        if not self.identity.program_id:
            program, _ = await self._programs.open_program(
                tenant=self.tenant,
                program_id=new_id(),
                session_key=self.identity.session_key,
                class_name=self.identity.class_name,
                single_call=self.identity.anonymous and self.identity.single,
            )
            self.program_id = program.program_id
        self._opened = True
