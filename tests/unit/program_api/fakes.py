"""The two things the program API stands on, in memory: a scheduler's programs and a model that counts."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from frontend_svc.call_context import CallContext
from frontend_svc.errors import Refused, refusal
from frontend_svc.program_calls import CallRequest, Finish, Piece, TokenPrompt, Usage
from protos.autellix.scheduler.v1 import scheduler_pb2 as pb

PROMPT_TOKENS_MAX = 16


class FakePrograms:
    """Programs by (tenant, id), with the scheduler's answers."""

    def __init__(self) -> None:
        self.records: dict[tuple[str, str], pb.ProgramRecord] = {}
        self.single_call: set[str] = set()
        self.changed = asyncio.Event()
        self.watchers_closed = 0

    async def open_program(
        self, *, tenant: str, program_id: str, session_key: str, class_name: str, single_call: bool
    ) -> tuple[pb.ProgramRecord, bool]:
        for (owner, _), record in self.records.items():
            live = record.state not in (pb.PROGRAM_STATE_ENDED, pb.PROGRAM_STATE_CANCELLED)
            if session_key and owner == tenant and record.session_key == session_key and live:
                return record, False
        record = pb.ProgramRecord(
            program_id=program_id,
            tenant=tenant,
            session_key=session_key,
            class_name=class_name,
            state=pb.PROGRAM_STATE_IDLE,
        )
        self.records[tenant, program_id] = record
        if single_call:
            self.single_call.add(program_id)
        return record, True

    async def end_program(self, *, tenant: str, program_id: str) -> pb.ProgramRecord:
        return self._set_state(tenant, program_id, pb.PROGRAM_STATE_ENDED)

    async def cancel_program(self, *, tenant: str, program_id: str) -> pb.ProgramRecord:
        return self._set_state(tenant, program_id, pb.PROGRAM_STATE_CANCELLED)

    async def get_program(self, *, tenant: str, program_id: str) -> pb.ProgramRecord:
        return self._find(tenant, program_id)

    async def list_programs(self, *, tenant: str) -> Sequence[pb.ProgramRecord]:
        return self._of(tenant)

    async def watch_programs(
        self, *, tenant: str, interval_s: float
    ) -> AsyncGenerator[Sequence[pb.ProgramRecord], None]:
        try:
            while True:
                self.changed.clear()
                yield [pb.ProgramRecord.FromString(r.SerializeToString()) for r in self._of(tenant)]
                await self.changed.wait()
        finally:
            self.watchers_closed += 1

    def _of(self, tenant: str) -> list[pb.ProgramRecord]:
        return [record for (owner, _), record in self.records.items() if owner == tenant]

    def _set_state(self, tenant: str, program_id: str, state: pb.ProgramState) -> pb.ProgramRecord:
        record = self._find(tenant, program_id)
        record.state = state
        self.changed.set()
        return record

    def _find(self, tenant: str, program_id: str) -> pb.ProgramRecord:
        record = self.records.get((tenant, program_id))
        if record is None:
            raise Refused(refusal("PROGRAM_UNKNOWN", "no such program", field="program_id"))
        return record


@dataclass
class FakeModel:
    """Generates 0, 1, 2, ... up to `max_tokens`; before token `pause_at` it waits for `resume`."""

    pause_at: int | None = None
    resume: asyncio.Event = field(default_factory=asyncio.Event)
    paused: asyncio.Event = field(default_factory=asyncio.Event)
    fails_with: Exception | None = None
    contexts: list[CallContext] = field(default_factory=list)
    cancelled: dict[str, str] = field(default_factory=dict)
    """Cause of every call whose iterator was closed early."""
    stopping: set[str] = field(default_factory=set)

    async def prepare(self, request: CallRequest) -> CallRequest:
        if isinstance(request.prompt, TokenPrompt) and len(request.prompt.token_ids) > PROMPT_TOKENS_MAX:
            length = len(request.prompt.token_ids)
            raise Refused(
                refusal("PROMPT_TOO_LONG", "too long", field="prompt", limit=PROMPT_TOKENS_MAX, value=length)
            )
        return request

    async def generate(self, prepared: CallRequest, context: CallContext) -> AsyncGenerator[Piece, None]:
        self.contexts.append(context)
        ended = False
        try:
            for token in range(prepared.sampling.max_tokens or 1):
                if token == self.pause_at:
                    self.paused.set()
                    await self.resume.wait()
                if context.call_id in self.stopping:
                    break
                if self.fails_with is not None:
                    ended = True
                    raise self.fails_with
                yield Piece(text=f"{token} ", token_ids=(token,))
            ended = True
            cut = context.call_id in self.stopping
            finish = Finish.CANCELLED if cut else Finish.LENGTH
            yield Piece(finish=finish, usage=Usage(3, token if cut else token + 1, 1))
        finally:
            if not ended:
                self.cancelled[context.call_id] = context.cancel_cause().value

    async def cancel(self, call_id: str) -> None:
        self.stopping.add(call_id)
        self.resume.set()


async def wait_until(condition: Callable[[], object], timeout_s: float = 5.0) -> None:
    """Waits for a condition of this event loop; fails after `timeout_s`."""
    with suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            while not condition():  # noqa: ASYNC110 (any condition, also one that nobody announces)
                await asyncio.sleep(0)
    assert condition()
