"""The frontend's one long-lived stream to its scheduler. Imports neither vllm nor torch.

Theory of operation. One task keeps the stream: it connects, says Hello, waits for Welcome, then reads. A
second task writes what `submit` and `cancel` queue, so that neither of them ever waits. Each `StepOutputs`
message is split by call (`call_table`) and handed to the listener, which may apply back-pressure: while it
waits, nothing is read, and HTTP/2 flow control holds the scheduler back. Ended calls are acknowledged once
a message.

When the stream is lost every live call ends with SCHEDULER_UNAVAILABLE, `up` turns False and new calls are
refused at once; the link reconnects with growing, jittered pauses for as long as it lives.
`LiveCall.token_ids` holds what each call had received: resubmission needs nothing more.

To submit a call:

    link = SchedulerLink("127.0.0.1:50051", listener, frontend_id="frontend-1") await link.start() await
    link.wait_up(timeout_s=10) program, created = await link.programs.open_program(tenant="",
    program_id=new_id()) call = link.submit(pb.Submit(call_id=..., program_id=program.program_id, ...),
    tag="my name for it") ... listener.on_step(StepDelta) brings tokens and the end,
    listener.on_failed(call, refusal) its failure ... link.cancel([call], pb.CANCEL_REASON_CLIENT)
"""

import asyncio
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Protocol

import grpc
import structlog

from frontend_svc.call_table import CallTable, LiveCall, StepDelta, handles_of
from frontend_svc.errors import FrontendError, ProtocolBroken, Refused, SchedulerLost, refused_from_rpc
from frontend_svc.program_client import ProgramClient
from protos.autellix.scheduler.v1 import scheduler_pb2 as pb
from protos.autellix.scheduler.v1 import scheduler_pb2_grpc as pb_grpc
from svc_runtime.columns import pack_i32
from svc_runtime.grpc_aio import open_channel

PROTOCOL_VERSION = 1
BACKOFF_FIRST_S = 0.2
BACKOFF_MAX_S = 5.0
WELCOME_TIMEOUT_S = 10.0
UNWELCOME = frozenset({"PROTOCOL_MISMATCH", "UNAUTHENTICATED"})
"""Refusals of the stream itself that waiting does not cure."""

log = structlog.get_logger(__name__)


class CallListener(Protocol):
    """Whoever waits for the calls of a link. Called from the link's reading task."""

    async def on_step(self, step: StepDelta) -> None:
        """Tokens and ends; returning late slows the stream down."""

    def on_failed(self, call: LiveCall, refusal: pb.Refusal) -> None:
        """The call was refused or lost; no delta of it follows. Must not raise."""


class SchedulerLink:
    """One frontend's stream to one scheduler, kept up.

    Args:
        target: `host:port` of the scheduler.
        listener: receives what happens to calls.
        frontend_id: stable name of this process, unique among the scheduler's frontends.
        peer_token: shared token of the peers, None when the scheduler asks for none.
        max_live_calls: further calls are refused with QUEUE_FULL; bounds the memory of the link.
        rng: jitter of the pauses between attempts.
    """

    def __init__(
        self,
        target: str,
        listener: CallListener,
        *,
        frontend_id: str,
        peer_token: str | None = None,
        max_live_calls: int = 4096,
        rng: random.Random | None = None,
    ) -> None:
        self._target = target
        self._listener = listener
        self._frontend_id = frontend_id
        self._peer_token = peer_token
        self._rng = rng or random.Random()
        self._calls = CallTable(max_live_calls)
        self._outbox: asyncio.Queue[pb.ConnectRequest] = asyncio.Queue()
        self._models: dict[str, pb.ModelInfo] = {}
        self._changed = asyncio.Condition()
        self._task: asyncio.Task[None] | None = None
        self._channel: grpc.aio.Channel | None = None
        self._programs: ProgramClient | None = None
        self._cause: FrontendError | None = None
        self._up = False

    # ── life ────────────────────────────────────────────────────────────────────────────────────────

    async def start(self) -> None:
        """Begin to connect; returns at once."""
        self._channel = open_channel(self._target, peer_token=self._peer_token)
        self._programs = ProgramClient(self._channel)
        self._task = asyncio.create_task(self._keep_connected(), name="scheduler-link")

    async def close(self) -> None:
        """End the stream; live calls fail with SCHEDULER_UNAVAILABLE."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._channel is not None:
            await self._channel.close()

    async def wait_closed(self) -> None:
        """Wait until the link has ended, which it does by `close` only.

        Raises:
            Exception: it ended by an error of ours.
        """
        assert self._task is not None, "wait_closed before start"
        await asyncio.shield(self._task)

    async def wait_up(self, timeout_s: float) -> None:
        """Wait for the scheduler's welcome.

        Raises:
            SchedulerLost: not within `timeout_s` seconds.
            Refused: the scheduler will not have this frontend (PROTOCOL_MISMATCH, UNAUTHENTICATED).
        """
        try:
            async with asyncio.timeout(timeout_s), self._changed:
                await self._changed.wait_for(lambda: self._up or self._unwelcome)
        except TimeoutError:
            raise SchedulerLost(f"no scheduler at {self._target} within {timeout_s:g} s") from None
        if not self._up and self._cause is not None:
            raise self._cause

    async def wait_models_changed(self, timeout_s: float) -> bool:
        """Wait until models, or the state of the link, changed; False when `timeout_s` passed first."""
        try:
            async with asyncio.timeout(timeout_s), self._changed:
                await self._changed.wait()
        except TimeoutError:
            return False
        return True

    # ── state ───────────────────────────────────────────────────────────────────────────────────────

    @property
    def up(self) -> bool:
        """True while calls can be submitted."""
        return self._up

    @property
    def _unwelcome(self) -> bool:
        """True when the scheduler answered, and refused this frontend."""
        return isinstance(self._cause, Refused) and self._cause.refusal.reason in UNWELCOME

    @property
    def models(self) -> Mapping[str, pb.ModelInfo]:
        """Served models by name, as last announced."""
        return self._models

    @property
    def live_calls(self) -> int:
        """Submitted calls that have not ended, cancelled ones included."""
        return len(self._calls)

    @property
    def programs(self) -> ProgramClient:
        """Program operations on the same channel."""
        assert self._programs is not None, "programs before start"
        return self._programs

    # ── calls ───────────────────────────────────────────────────────────────────────────────────────

    def submit(self, submit: pb.Submit, tag: str) -> LiveCall:
        """Send a call to the scheduler, without waiting.

        Args:
            submit: the call; its `handle` is set here.
            tag: the caller's name for it, found again as `LiveCall.tag`.

        Raises:
            SchedulerLost: the scheduler is not connected.
            Refused: QUEUE_FULL.
        """
        if not self._up:
            raise SchedulerLost
        call = self._calls.add(submit, tag)
        self._outbox.put_nowait(pb.ConnectRequest(submit=submit))
        return call

    def cancel(self, calls: Sequence[LiveCall], reason: pb.CancelReason) -> None:
        """Stop calls; nothing more of them is delivered. Ended or already cancelled ones are ignored."""
        calls = [call for call in calls if not call.cancelled]
        for call in calls:
            call.cancelled = True
        if calls and self._up:
            cancel = pb.Cancel(handles=pack_i32(handles_of(calls)), reason=reason)
            self._outbox.put_nowait(pb.ConnectRequest(cancel=cancel))

    # ── the stream ──────────────────────────────────────────────────────────────────────────────────

    async def _keep_connected(self) -> None:
        backoff_s = BACKOFF_FIRST_S
        while True:
            cause: FrontendError = SchedulerLost("this frontend is shutting down")
            try:
                await self._session()
                cause = SchedulerLost("the scheduler ended the stream")
            except grpc.RpcError as error:
                cause = refused_from_rpc(error)
            except FrontendError as error:
                cause = error
            finally:
                backoff_s = BACKOFF_FIRST_S if self._up else min(2 * backoff_s, BACKOFF_MAX_S)
                await self._disconnected(cause)
            await asyncio.sleep(backoff_s * self._rng.uniform(0.5, 1.0))

    async def _session(self) -> None:
        """One life of the stream: returns when the scheduler ends it, raises when it breaks."""
        assert self._channel is not None
        self._outbox = asyncio.Queue()
        stream = pb_grpc.SchedulerServiceStub(self._channel).Connect(self._requests(self._outbox))
        try:
            async with asyncio.timeout(WELCOME_TIMEOUT_S):
                first = await stream.read()
            if first is grpc.aio.EOF or first.WhichOneof("message") != "welcome":
                raise ProtocolBroken("the scheduler's first message is not a welcome")
            await self._welcome(first.welcome)
            while (message := await stream.read()) is not grpc.aio.EOF:
                await self._handle(message)
        except TimeoutError:
            raise SchedulerLost(f"no welcome within {WELCOME_TIMEOUT_S:g} s") from None
        finally:
            stream.cancel()

    async def _requests(self, outbox: asyncio.Queue[pb.ConnectRequest]) -> AsyncIterator[pb.ConnectRequest]:
        yield pb.ConnectRequest(
            hello=pb.Hello(protocol_version=PROTOCOL_VERSION, frontend_id=self._frontend_id)
        )
        while True:
            yield await outbox.get()

    async def _welcome(self, welcome: pb.Welcome) -> None:
        log.info(
            "scheduler_connected",
            scheduler_id=welcome.scheduler_id,
            policy=welcome.policy,
            models=[model.model for model in welcome.models],
        )
        async with self._changed:
            self._up = True
            self._models = {model.model: model for model in welcome.models}
            self._changed.notify_all()

    async def _handle(self, message: pb.ConnectResponse) -> None:
        match message.WhichOneof("message"):
            case "outputs":
                await self._outputs(message.outputs)
            case "refused":
                self._refused(message.refused)
            case "models_changed":
                await self._models_changed(message.models_changed)
            case other:
                raise ProtocolBroken(f"unexpected message {other!r} from the scheduler")

    async def _outputs(self, outputs: pb.StepOutputs) -> None:
        step = self._calls.apply(outputs)
        if outputs.finished:
            ended = pack_i32(finished.handle for finished in outputs.finished)
            self._outbox.put_nowait(pb.ConnectRequest(acknowledge=pb.Acknowledge(handles=ended)))
        await self._listener.on_step(step)

    def _refused(self, refused: pb.CallRefused) -> None:
        call = self._calls.remove(refused.handle)
        if call is not None and not call.cancelled:
            self._listener.on_failed(call, refused.refusal)

    async def _models_changed(self, changed: pb.ModelsChanged) -> None:
        log.info("models_changed", models=[model.model for model in changed.models])
        async with self._changed:
            self._models = {model.model: model for model in changed.models}
            self._changed.notify_all()

    async def _disconnected(self, cause: FrontendError) -> None:
        was_up, self._up = self._up, False  # before anything waits: a call submitted now would never end
        lost = self._calls.clear()
        if was_up or str(cause) != str(self._cause):
            log.warning("scheduler_disconnected", target=self._target, cause=str(cause), lost_calls=len(lost))
        for call in lost:
            self._listener.on_failed(call, SchedulerLost("the scheduler was lost while the call ran").refusal)
        async with self._changed:
            self._cause = cause
            self._changed.notify_all()
