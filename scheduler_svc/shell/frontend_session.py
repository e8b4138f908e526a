"""Our side of one frontend's stream: its calls, and what it is to be told.

Theory of operation. Effects are only collected here. Whenever the writer is free it takes everything
collected as one `StepOutputs` and encodes it, after the plans of the same turn have left. Outputs leave at
once when none did for a millisecond; else they wait one (`OUTPUTS_APART_S`), and what many executors generate
meanwhile shares a message. A frontend that reads slowly gets still fewer, larger messages; one that does not
read is cut off when what is collected passes `backlog_bytes_max`. So memory is bounded whatever a frontend
does. Nothing is done token by token: what a call generated is told at its end, by the core.

The engine's gauges go along whenever a call started or ended, else with each `STATUS_EVERY`-th message: to
make them up means to look at every executor.

Each stream has a `FrontendId` of its own for the core. Outputs of calls of an earlier stream of the same
frontend can thus never reach a call that happens to reuse a handle.
"""

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from protos.autellix.scheduler.v1 import scheduler_pb2 as pb
from scheduler_svc.core.effects import EmitTokens, FinishCall, ReportStarted
from scheduler_svc.core.errors import ProtocolBroken, Refusal
from scheduler_svc.core.events import CallSpec
from scheduler_svc.core.ids import CallId, FrontendId, ProgramId, StreamHandle, TenantId
from scheduler_svc.shell import frontend_wire
from scheduler_svc.shell.clock import Clock
from scheduler_svc.shell.output_columns import RECORD_BYTES, OutputColumns
from scheduler_svc.shell.streams import StreamEnd

Write = Callable[[pb.ConnectResponse], Awaitable[None]]

STATUS_EVERY = 16
OUTPUTS_APART_S = 1e-3
"""Seconds between two messages of outputs. A message costs each side far more than the tokens in it, and 32
executors with steps of 10 ms have three results a millisecond."""


@dataclass(slots=True)
class CallEntry:
    """A call of this stream, from its submission to its acknowledgement."""

    call_id: CallId
    tenant: TenantId
    program_id: ProgramId
    model: str
    prompt_tokens: int
    ended: bool = False


class FrontendSession:
    """One connected frontend, or one whose stream has ended and whose calls live on for the grace time."""

    def __init__(
        self,
        *,
        frontend_id: FrontendId,
        name: str,
        backlog_bytes_max: int,
        status: Callable[[FrontendId], pb.EngineStatus],
        clock: Clock,
    ) -> None:
        """
        Args:
            frontend_id: the core's name for this stream.
            name: the frontend's own, stable name.
            backlog_bytes_max: what may be collected before the frontend is cut off.
            status: gauges to send along with outputs.
            clock: tells when outputs are due.
        """
        self.frontend_id = frontend_id
        self.name = name
        self.end = StreamEnd()
        self.calls: dict[StreamHandle, CallEntry] = {}
        self._backlog_bytes_max = backlog_bytes_max
        self._status = status
        self._clock = clock
        self._outputs_due_s = -math.inf
        """From when on outputs leave at once."""
        self._messages: deque[pb.ConnectResponse] = deque()
        self._columns = OutputColumns()
        self._without_status = STATUS_EVERY
        """Messages since the gauges were sent."""
        self._filled = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    # ── calls ───────────────────────────────────────────────────────────────────────────────────────

    def check_free(self, handle: StreamHandle) -> None:
        """Raises: ProtocolBroken when a handle is negative or in use."""
        if handle < 0 or handle in self.calls:
            raise ProtocolBroken(f"handle {handle} is negative, or names a call that was not acknowledged")

    def remember(self, call: CallSpec) -> None:
        """Takes a submitted call in."""
        self.calls[call.stream_handle] = CallEntry(
            call_id=call.call_id,
            tenant=call.tenant,
            program_id=call.program_id,
            model=call.model,
            prompt_tokens=len(call.prompt_token_ids),
        )

    def forget(self, handle: StreamHandle) -> CallId | None:
        """Drops an acknowledged call; None when there is none.

        Raises: ProtocolBroken when the call has not ended.
        """
        entry = self.calls.get(handle)
        if entry is None:
            return None
        if not entry.ended:
            raise ProtocolBroken(f"handle {handle} was acknowledged before its call ended")
        del self.calls[handle]
        return entry.call_id

    # ── what it is told ─────────────────────────────────────────────────────────────────────────────

    def tell(self, message: pb.ConnectResponse) -> None:
        """Enqueues a message of its own; it goes before collected outputs."""
        self._messages.append(message)
        self._grown()

    def refuse(self, handle: StreamHandle, refusal: Refusal) -> CallEntry:
        """The core did not accept a call: nothing of it is kept. Returns what was known of it."""
        self.tell(frontend_wire.call_refused(handle, refusal))
        return self.calls.pop(handle)

    def emit(self, effect: EmitTokens) -> None:
        """One step's tokens."""
        self._columns.emit(effect)
        self._grown()

    def started(self, effect: ReportStarted) -> None:
        """The start of a call."""
        self._columns.started(effect)
        self._grown()

    def finished(self, effect: FinishCall) -> CallEntry:
        """The end of a call; returns what is known of it."""
        entry = self.calls[effect.handle]
        entry.ended = True
        self._columns.finished(effect)
        self._grown()
        return entry

    @property
    def backlog_bytes(self) -> int:
        """About what is collected and not yet taken by the writer."""
        return self._columns.cost_bytes + RECORD_BYTES * len(self._messages)

    def _grown(self) -> None:
        backlog_bytes = self.backlog_bytes
        if backlog_bytes > self._backlog_bytes_max:
            self.end.refuse(_too_slow(backlog_bytes, self._backlog_bytes_max))
        if self.end.decided:  # nobody will read it
            self.discard()
            return
        self._idle.clear()
        self._filled.set()

    # ── writing ─────────────────────────────────────────────────────────────────────────────────────

    async def write_to(self, write: Write) -> None:
        """Sends what is collected whenever the transport takes it, for ever."""
        while True:
            await self._filled.wait()
            self._filled.clear()
            while self._messages or self._columns:
                if self._messages:
                    await write(self._messages.popleft())
                elif self._clock.now() < self._outputs_due_s:
                    await self._clock.sleep(OUTPUTS_APART_S)
                    self._outputs_due_s = -math.inf  # also if the timer rang a little early
                else:
                    await write(self._take_outputs())
            if not self._filled.is_set():
                self._idle.set()

    async def wait_written(self) -> None:
        """Returns when all that was collected has been handed to the transport."""
        await self._idle.wait()

    def discard(self) -> None:
        """Forgets what is collected: the stream has ended."""
        self._messages.clear()
        self._columns = OutputColumns()
        self._idle.set()

    def _take_outputs(self) -> pb.ConnectResponse:
        self._outputs_due_s = self._clock.now() + OUTPUTS_APART_S
        return self._columns.take(self._due_status())

    def _due_status(self) -> pb.EngineStatus | None:
        self._without_status += 1
        if self._without_status < STATUS_EVERY and not self._columns.changes_gauges:
            return None
        self._without_status = 0
        return self._status(self.frontend_id)


def _too_slow(backlog_bytes: int, limit_bytes: int) -> Refusal:
    return Refusal(
        reason="PEER_TOO_SLOW",
        message="the frontend does not read its stream: its outputs piled up",
        field="backlog",
        limit=f"{limit_bytes} bytes",
        value=f"{backlog_bytes} bytes",
    )
