"""SchedulerService.Connect: one stream a frontend; submissions up, tokens of all its calls down.

When a stream ends its calls live on for the grace time, then the core hears `FrontendLost` and they are
cancelled. The same frontend saying Hello again ends the grace at once: outputs of a lost stream cannot be
replayed, so it submits its calls anew, from the tokens it has.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from itertools import count

import grpc
import structlog

from protos.autellix.scheduler.v1 import scheduler_pb2 as pb
from scheduler_svc.core.errors import ProtocolBroken, Refusal, Refused
from scheduler_svc.core.events import CallAcknowledged, CallCancelled, CallSubmitted, FrontendLost
from scheduler_svc.core.ids import FrontendId, StreamHandle
from scheduler_svc.core.snapshots import EngineSnapshot, ModelSnapshot
from scheduler_svc.shell import frontend_wire
from scheduler_svc.shell.call_log import CallLog
from scheduler_svc.shell.clock import Clock
from scheduler_svc.shell.core_loop import CoreLoop, Turn
from scheduler_svc.shell.door import Door
from scheduler_svc.shell.frontend_registry import FrontendRegistry
from scheduler_svc.shell.frontend_session import FrontendSession
from scheduler_svc.shell.streams import first_message, run_stream

log = structlog.get_logger(__name__)
Context = grpc.aio.ServicerContext[pb.ConnectRequest, pb.ConnectResponse]

FRONTEND_ID_CHARS_MAX = 256


class FrontendStreams:
    """Serves frontends.

    Args:
        door: checks submitted calls.
        call_log: hears of the calls it refused.
        policy: the active policy.
        models: the models served now.
        engine_status: gauges for one frontend.
        grace_s: seconds that calls outlive their stream.
    """

    def __init__(
        self,
        loop: CoreLoop,
        registry: FrontendRegistry,
        door: Door,
        call_log: CallLog,
        clock: Clock,
        *,
        scheduler_id: str,
        policy: Callable[[], str],
        models: Callable[[], Sequence[ModelSnapshot]],
        engine_status: Callable[[FrontendId], EngineSnapshot],
        hello_timeout_s: float,
        grace_s: float,
        backlog_bytes_max: int,
    ) -> None:
        self._loop = loop
        self._registry = registry
        self._door = door
        self._clock = clock
        self._scheduler_id = scheduler_id
        self._policy = policy
        self._models = models
        self._engine_status = engine_status
        self._call_log = call_log
        self._hello_timeout_s = hello_timeout_s
        self._grace_s = grace_s
        self._backlog_bytes_max = backlog_bytes_max
        self._stream_numbers = count(1)
        self._graces: set[asyncio.Task[None]] = set()

    async def serve(self, request_iterator: AsyncIterator[pb.ConnectRequest], context: Context) -> None:
        """Serves one frontend until its stream ends.

        Raises: Refused when the stream does not open with a Hello that we can take, or is ended by us.
        """
        requests = aiter(request_iterator)
        request = await first_message(context, requests, timeout_s=self._hello_timeout_s, expected="hello")
        session = self._open(_checked_hello(request))
        try:
            refusal = await run_stream(
                read=self._read(requests, session), write=session.write_to(context.write), end=session.end
            )
        finally:
            self._ended(session)
        if refusal is not None:
            raise Refused(refusal)

    # ── coming and going ────────────────────────────────────────────────────────────────────────────

    def _open(self, hello: pb.Hello) -> FrontendSession:
        session = FrontendSession(
            frontend_id=FrontendId(f"{hello.frontend_id}#{next(self._stream_numbers)}"),
            name=hello.frontend_id,
            backlog_bytes_max=self._backlog_bytes_max,
            status=lambda frontend_id: frontend_wire.engine_status(self._engine_status(frontend_id)),
            clock=self._clock,
        )
        older = self._registry.add(session)
        if older is not None:
            self._forget(older)
        models = [frontend_wire.model_info(model) for model in self._models()]
        welcome = pb.Welcome(scheduler_id=self._scheduler_id, models=models, policy=self._policy())
        session.tell(pb.ConnectResponse(welcome=welcome))
        log.info("frontend_connected", frontend_id=session.name)
        return session

    def _ended(self, session: FrontendSession) -> None:
        cause = session.end.cause
        session.end.close()
        session.discard()
        live_calls = sum(not entry.ended for entry in session.calls.values())
        log.info("frontend_disconnected", frontend_id=session.name, cause=cause, live_calls=live_calls)
        grace = asyncio.create_task(self._grace(session), name=f"grace of {session.frontend_id}")
        self._graces.add(grace)
        grace.add_done_callback(self._graces.discard)

    async def _grace(self, session: FrontendSession) -> None:
        if session.calls:
            await self._clock.sleep(self._grace_s)
        self._forget(session)

    def _forget(self, session: FrontendSession) -> None:
        self._loop.enqueue(lambda turn: self._lose(session, turn))

    def _lose(self, session: FrontendSession, turn: Turn) -> None:
        if self._registry.get(session.frontend_id) is not session:
            return
        turn.apply(FrontendLost(frontend_id=session.frontend_id))
        turn.flush()  # the ends of its calls are counted and logged while it is still known
        self._registry.remove(session)
        for entry in session.calls.values():
            turn.apply(CallAcknowledged(call_id=entry.call_id))

    # ── what it says ────────────────────────────────────────────────────────────────────────────────

    async def _read(self, requests: AsyncIterator[pb.ConnectRequest], session: FrontendSession) -> None:
        async for request in requests:
            if session.end.decided:
                return
            self._receive(request, session)

    def _receive(self, request: pb.ConnectRequest, session: FrontendSession) -> None:
        match request.WhichOneof("message"):
            case "submit":
                self._submit(request.submit, session)
            case "cancel":
                self._cancel(request.cancel, session)
            case "acknowledge":
                self._acknowledge(request.acknowledge, session)
            case other:
                raise ProtocolBroken(f"unexpected message {other!r} from frontend {session.name}")

    def _submit(self, submit: pb.Submit, session: FrontendSession) -> None:
        handle = StreamHandle(submit.handle)
        session.check_free(handle)
        try:
            call = self._door.admit(submit, session.frontend_id, len(session.calls))
        except Refused as refused:
            session.tell(frontend_wire.call_refused(handle, refused.refusal))
            self._call_log.refused(submit.program_id, submit.call_id, refused.refusal)
            return
        session.remember(call)
        self._loop.post(CallSubmitted(call=call))

    def _cancel(self, cancel: pb.Cancel, session: FrontendSession) -> None:
        reason = frontend_wire.cancel_reason(cancel.reason)
        for handle in frontend_wire.handle_column(cancel.handles):
            entry = session.calls.get(handle)
            if entry is not None and not entry.ended:
                self._loop.post(CallCancelled(call_id=entry.call_id, reason=reason))

    def _acknowledge(self, acknowledge: pb.Acknowledge, session: FrontendSession) -> None:
        for handle in frontend_wire.handle_column(acknowledge.handles):
            call_id = session.forget(handle)
            if call_id is not None:
                self._loop.post(CallAcknowledged(call_id=call_id))


def _checked_hello(request: pb.ConnectRequest) -> pb.Hello:
    if not request.HasField("hello"):
        raise Refused(Refusal(reason="PROTOCOL_BROKEN", message="the first message must be a hello"))
    hello = request.hello
    if hello.protocol_version != frontend_wire.PROTOCOL_VERSION:
        raise Refused(_wrong_version(hello.protocol_version))
    if not 0 < len(hello.frontend_id) <= FRONTEND_ID_CHARS_MAX:
        limit = f"1 to {FRONTEND_ID_CHARS_MAX} characters"
        raise Refused(
            Refusal(
                reason="PARAMETER_OUT_OF_RANGE",
                message=f"frontend_id must have {limit}",
                field="frontend_id",
                limit=limit,
                value=f"{len(hello.frontend_id)} characters",
            )
        )
    return hello


def _wrong_version(theirs: int) -> Refusal:
    ours = frontend_wire.PROTOCOL_VERSION
    return Refusal(
        reason="PROTOCOL_MISMATCH",
        message=f"the frontend speaks scheduler/v1 protocol version {theirs}, this scheduler version {ours}: "
        "run the same release on both",
        field="protocol_version",
        limit=str(ours),
        value=str(theirs),
    )
