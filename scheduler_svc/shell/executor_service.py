"""ExecutorService: one stream an executor; registration, then announcements and plans down, results up.

An executor is attached inside a turn of the core loop, in one piece: the core takes it or refuses it, an
older session of the same id ends, and from then on the core's effects reach the new session. However its
stream ends (its own wish, a lost connection, a broken protocol), the core hears `ExecutorLost` once.
"""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import grpc
import structlog

from protos.autellix.executor.v1 import executor_pb2 as pb
from protos.autellix.executor.v1 import executor_pb2_grpc as pb_grpc
from scheduler_svc.core.errors import CoreError, ProtocolBroken, Refusal, Refused
from scheduler_svc.core.events import ExecutorDrainRequested, ExecutorJoined, ExecutorLost
from scheduler_svc.shell import executor_wire
from scheduler_svc.shell.core_loop import CoreLoop, Turn
from scheduler_svc.shell.executor_registry import ExecutorRegistry
from scheduler_svc.shell.executor_session import ExecutorSession
from scheduler_svc.shell.streams import abort_with, first_message, run_stream

log = structlog.get_logger(__name__)
Context = grpc.aio.ServicerContext[pb.AttachRequest, pb.AttachResponse]


@dataclass(frozen=True, slots=True)
class _Stream:
    """One stream as the speaker of its events. The core knows executors by id alone: what an older stream
    said must not meet the newer one's plans. A stream ends when the core does not take what its peer sent."""

    session: ExecutorSession
    registry: ExecutorRegistry

    def still_counts(self) -> bool:
        attached = self.registry.get(self.session.spec.executor_id)
        return attached is self.session or attached is None

    def not_taken(self, error: CoreError) -> None:
        self.session.end.protocol_broken(error)


class ExecutorServicer(pb_grpc.ExecutorServiceServicer):
    """Attaches executors.

    Args:
        on_membership: called inside a turn after an executor was attached or lost.
        on_step: gets the model and the seconds of each completed step, for metrics.
    """

    def __init__(
        self,
        loop: CoreLoop,
        registry: ExecutorRegistry,
        *,
        scheduler_id: str,
        max_plans_in_flight: int,
        outbox_max: int,
        registration_timeout_s: float,
        on_membership: Callable[[], None],
        on_step: Callable[[str, float], None],
    ) -> None:
        self._loop = loop
        self._registry = registry
        self._scheduler_id = scheduler_id
        self._max_plans_in_flight = max_plans_in_flight
        self._outbox_max = outbox_max
        self._registration_timeout_s = registration_timeout_s
        self._on_membership = on_membership
        self._on_step = on_step

    async def Attach(self, request_iterator: AsyncIterator[pb.AttachRequest], context: Context) -> None:
        """Serves one executor until its stream ends."""
        requests = aiter(request_iterator)
        try:
            session = await self._register(requests, context)
            refusal = await self._serve(session, requests, context)
        except Refused as refused:
            log.warning("executor_refused", peer=context.peer(), **_refusal_keys(refused))
            refusal = refused.refusal
        if refusal is not None:
            await abort_with(context, refusal)

    async def _serve(
        self, session: ExecutorSession, requests: AsyncIterator[pb.AttachRequest], context: Context
    ) -> Refusal | None:
        """Returns: what the executor is to be told at the end.

        Raises: Refused when the core does not take it.
        """
        try:
            await self._loop.request(lambda turn: self._attach(session, turn))
            return await run_stream(
                read=self._read(requests, _Stream(session, self._registry)),
                write=session.write_to(context.write),
                end=session.end,
            )
        finally:
            self._detach(session)

    # ── joining and leaving ─────────────────────────────────────────────────────────────────────────

    async def _register(self, requests: AsyncIterator[pb.AttachRequest], context: Context) -> ExecutorSession:
        request = await first_message(
            context, requests, timeout_s=self._registration_timeout_s, expected="registration"
        )
        spec = executor_wire.executor_spec(request, max_plans_in_flight=self._max_plans_in_flight)
        return ExecutorSession(spec, scheduler_id=self._scheduler_id, outbox_max=self._outbox_max)

    def _attach(self, session: ExecutorSession, turn: Turn) -> None:
        spec = session.spec
        self._registry.check_epoch(spec)
        turn.flush()  # effects so far mean the older session of this id
        turn.apply(ExecutorJoined(executor=spec))
        self._registry.add(session)
        self._on_membership()
        log.info(
            "executor_joined",
            executor_id=spec.executor_id,
            epoch=spec.epoch,
            model=spec.model,
            runner=spec.runner,
            device=spec.device,
            simulated=spec.simulated,
            num_blocks=spec.num_blocks,
            block_size=spec.block_size,
            max_num_seqs=spec.max_num_seqs,
            max_num_batched_tokens=spec.max_num_batched_tokens,
        )

    def _detach(self, session: ExecutorSession) -> None:
        if self._registry.remove(session):
            self._loop.enqueue(lambda turn: self._lose(session, turn))
            spec = session.spec
            log.info(
                "executor_left", executor_id=spec.executor_id, epoch=spec.epoch, reason=session.end.cause
            )

    def _lose(self, session: ExecutorSession, turn: Turn) -> None:
        turn.apply(ExecutorLost(executor_id=session.spec.executor_id, epoch=session.spec.epoch))
        self._on_membership()

    # ── what it says ────────────────────────────────────────────────────────────────────────────────

    async def _read(self, requests: AsyncIterator[pb.AttachRequest], stream: _Stream) -> None:
        end = stream.session.end
        async for request in requests:
            if end.decided:
                return
            self._receive(request, stream)

    def _receive(self, request: pb.AttachRequest, stream: _Stream) -> None:
        session = stream.session
        executor_id = session.spec.executor_id
        match request.WhichOneof("message"):
            case "result":
                completed = executor_wire.step_completed(executor_id, request.result)
                self._on_step(session.spec.model, completed.step_s)
                self._loop.post(completed, stream)
            case "prepared":
                self._loop.post(executor_wire.call_prepared(executor_id, request.prepared), stream)
            case "drain":
                log.info("executor_drain_requested", executor_id=executor_id, reason=request.drain.reason)
                session.asked_to_drain = True
                self._loop.post(ExecutorDrainRequested(executor_id=executor_id), stream)
            case other:
                raise ProtocolBroken(f"unexpected message {other!r} from executor {executor_id}")


def _refusal_keys(refused: Refused) -> dict[str, Any]:
    refusal = refused.refusal
    return {
        "reason": refusal.reason,
        "problem": refusal.message,
        "field": refusal.field,
        "limit": refusal.limit,
        "value": refusal.value,
    }
