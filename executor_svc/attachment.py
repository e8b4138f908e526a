"""One stream to the scheduler, from registration to its end.

Theory of operation: a reader takes announcements and plans off the stream and hands them to the stepper; a
writer puts results, prepared calls and the wish to drain onto it. There is no resynchronisation: a gap in
step numbers, too many plans, a malformed message, or whatever the stepper reports as a violation ends the
attachment, and the session registers anew. The attachment holds no state of calls.

    registering --accepted--> attached --stream ended by the scheduler--> over
         |                        |-- PlanViolation, grpc error ----------> over, by exception
         +-- refused: grpc error -+
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import grpc
import structlog

from executor_svc import wire
from executor_svc.metrics import ExecutorMetrics
from executor_svc.runner import PlanViolation, RunnerInfo
from executor_svc.stepper import Outcome, Prepared, RunnerFailed, Stepped, Steps, Violated
from protos.autellix.executor.v1 import executor_pb2 as pb
from protos.autellix.executor.v1.executor_pb2_grpc import ExecutorServiceStub

log = structlog.get_logger("autellix.attachment")

Call = grpc.aio.StreamStreamCall[pb.AttachRequest, pb.AttachResponse]


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who registers."""

    executor_id: str
    epoch: int
    info: RunnerInfo


class Attachment:
    """One registration and the stream that follows it."""

    def __init__(
        self,
        identity: Identity,
        stepper: Steps,
        metrics: ExecutorMetrics,
        *,
        accept_timeout_s: float,
        on_accepted: Callable[[], None],
    ) -> None:
        self._identity = identity
        self._stepper = stepper
        self._metrics = metrics
        self._accept_timeout_s = accept_timeout_s
        self._on_accepted = on_accepted
        self._outbox: asyncio.Queue[pb.AttachRequest | Exception] = asyncio.Queue()
        self._plans = wire.PlanReader()
        self._results = wire.ResultWriter()
        self._last_step = 0
        self._plans_in_flight = 0

    @property
    def epoch(self) -> int:
        """The epoch of this registration."""
        return self._identity.epoch

    async def run(self, channel: grpc.aio.Channel) -> None:
        """Registers, then obeys until the scheduler ends the stream.

        Raises:
            grpc.aio.AioRpcError: refused, lost, or closed by the scheduler with an error.
            TimeoutError: no answer to the registration.
            PlanViolation: the scheduler sent what it must not.
            Exception: whatever the runner raised.
        """
        call = ExecutorServiceStub(channel).Attach()
        try:
            async with asyncio.timeout(self._accept_timeout_s):
                await self._register(call)
            self._on_accepted()
            await self._exchange(call)
        finally:
            call.cancel()

    def take(self, outcome: Outcome) -> None:
        """Passes on an outcome of this epoch."""
        match outcome:
            case Stepped(_, result):
                self._plans_in_flight -= 1
                self._metrics.stepped(result)
                self._outbox.put_nowait(self._results.write(result))
            case Prepared(_, handle, error):
                self._outbox.put_nowait(wire.call_prepared(handle, error))
            case Violated(_, violation):
                self._outbox.put_nowait(violation)
            case RunnerFailed(_, error):
                self._outbox.put_nowait(error)

    def request_drain(self, reason: str) -> None:
        """Asks the scheduler for no further calls; it ends the stream when none is left here."""
        self._outbox.put_nowait(wire.drain_requested(reason))

    async def _register(self, call: Call) -> None:
        identity = self._identity
        await call.write(
            wire.registration(identity.info, executor_id=identity.executor_id, epoch=identity.epoch)
        )
        answer = await _next(call)
        if answer is None:
            raise PlanViolation("the scheduler ended the stream without accepting the registration")
        if answer.WhichOneof("message") != "accepted":
            raise PlanViolation("the scheduler's first message is not RegistrationAccepted")
        if answer.accepted.epoch != identity.epoch:
            raise PlanViolation(f"epoch {answer.accepted.epoch} was accepted, {identity.epoch} was asked for")
        log.info(
            "registered",
            scheduler_id=answer.accepted.scheduler_id,
            executor_id=identity.executor_id,
            epoch=identity.epoch,
        )

    async def _exchange(self, call: Call) -> None:
        """Reads and writes until the stream ends or something breaks; the first to break decides."""
        reader = asyncio.create_task(self._read(call))
        writer = asyncio.create_task(self._write(call))
        try:
            await asyncio.wait({reader, writer}, return_when=asyncio.FIRST_COMPLETED)
            if writer.done():
                await writer
            await reader
        finally:
            reader.cancel()
            writer.cancel()
            await asyncio.gather(reader, writer, return_exceptions=True)

    async def _write(self, call: Call) -> None:
        """Returns when the stream is over: the reader learns why."""
        while True:
            message = await self._outbox.get()
            if isinstance(message, Exception):
                raise message
            try:
                await call.write(message)
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                return

    async def _read(self, call: Call) -> None:
        while (message := await _next(call)) is not None:
            match message.WhichOneof("message"):
                case "plan":
                    self._take_plan(message.plan)
                case "announced":
                    calls = [wire.announced_call(announcement) for announcement in message.announced.calls]
                    self._stepper.announce(self.epoch, calls)
                case other:
                    raise PlanViolation(f"unexpected message {other or 'without content'}")

    def _take_plan(self, message: pb.StepPlan) -> None:
        if message.step != self._last_step + 1:
            raise PlanViolation(f"step {message.step} follows step {self._last_step}")
        limit = self._identity.info.max_plans_in_flight
        if self._plans_in_flight >= limit:
            raise PlanViolation(f"step {message.step} exceeds {limit} plans in flight")
        plan = self._plans.read(message)
        self._last_step = message.step
        self._plans_in_flight += 1
        self._metrics.planned(len(plan.handles))
        self._stepper.execute(self.epoch, plan)


async def _next(call: Call) -> pb.AttachResponse | None:
    """The next message; None when the scheduler ended the stream in good order."""
    message = await call.read()
    if message is grpc.aio.EOF:
        return None
    if not isinstance(message, pb.AttachResponse):  # grpc returns None for what it cannot decode
        raise PlanViolation("the scheduler sent bytes that are no AttachResponse")
    return message
