"""The live calls of one frontend: pure bookkeeping between scheduler messages and whoever waits for tokens.

Theory of operation. A call gets a small int (its *handle*) that names it in the columns of the stream. The
table hands out handles, keeps every live call together with the tokens received so far (a later frontend
resubmits from them after a lost scheduler), and splits the columns of `StepOutputs` into one `CallDelta` a
call. It does no I/O.

Guarantees: a handle is not given out again while its call is live; tokens of a call come in order and
before its end; nothing is delivered for a call after it was dropped or has ended. Memory is bounded by
`limit` calls and their `max_tokens`.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from frontend_svc.errors import ProtocolBroken, Refused, refusal
from protos.autellix.scheduler.v1 import scheduler_pb2 as pb
from svc_runtime.columns import unpack_i32

MAX_HANDLE = 2**31 - 1


@dataclass(slots=True, eq=False)
class LiveCall:
    """One submitted call that has not ended."""

    submit: pb.Submit
    """What was sent, `handle` included."""
    tag: str
    """The submitter's own name for it, returned with every delta."""
    token_ids: list[int] = field(default_factory=list)
    """Tokens received so far. Invariant: len <= submit.max_tokens."""
    cancelled: bool = False
    """True once its cancellation was sent: nothing more is delivered, its end is awaited silently."""


@dataclass(slots=True)
class CallDelta:
    """What one message said about one call."""

    call: LiveCall
    token_ids: list[int] = field(default_factory=list)
    payloads: list[bytes] = field(default_factory=list)
    """Serialised `autellix.executor.v1.Logprobs`, in token order."""
    started: pb.CallStarted | None = None
    finished: pb.CallFinished | None = None
    """Set when this is the call's last delta."""


@dataclass(frozen=True, slots=True)
class StepDelta:
    """One scheduler message, by call, in the order of first mention."""

    calls: list[CallDelta]
    status: pb.EngineStatus | None = None


class CallTable:
    """Live calls by handle.

    Args:
        limit: most live calls at once; further ones are refused with QUEUE_FULL.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._calls: dict[int, LiveCall] = {}
        self._next = 0

    def __len__(self) -> int:
        return len(self._calls)

    def add(self, submit: pb.Submit, tag: str) -> LiveCall:
        """Give the call a handle (written into `submit`) and keep it.

        Raises:
            Refused: QUEUE_FULL, the table holds `limit` calls.
        """
        if len(self._calls) >= self._limit:
            raise Refused(_queue_full(self._limit))
        submit.handle = self._free_handle()
        call = LiveCall(submit, tag)
        self._calls[submit.handle] = call
        return call

    def remove(self, handle: int) -> LiveCall | None:
        """Forget a call; None when it is not live (it may just have ended)."""
        return self._calls.pop(handle, None)

    def clear(self) -> list[LiveCall]:
        """Forget all calls and return those whose submitter still waits."""
        calls = [call for call in self._calls.values() if not call.cancelled]
        self._calls.clear()
        return calls

    def apply(self, outputs: pb.StepOutputs) -> StepDelta:
        """Split a message by call, append its tokens, and forget the calls that ended.

        Raises:
            ProtocolBroken: columns of different length, or a handle that is not live.
        """
        deltas: dict[int, CallDelta] = {}
        for started in outputs.started:
            self._delta(deltas, started.handle).started = started
        self._apply_tokens(deltas, outputs)
        for finished in outputs.finished:
            self._delta(deltas, finished.handle).finished = finished
            del self._calls[finished.handle]
        status = outputs.status if outputs.HasField("status") else None
        return StepDelta([d for d in deltas.values() if not d.call.cancelled], status)

    def _apply_tokens(self, deltas: dict[int, CallDelta], outputs: pb.StepOutputs) -> None:
        handles, tokens = unpack_i32(outputs.handles), unpack_i32(outputs.tokens)
        if len(handles) != len(tokens):
            raise ProtocolBroken(f"columns differ: {len(handles)} handles, {len(tokens)} tokens")
        for handle, token in zip(handles, tokens, strict=True):
            delta = self._delta(deltas, handle)
            delta.token_ids.append(token)
            delta.call.token_ids.append(token)
        for payload in sorted(outputs.payloads, key=lambda p: p.index):
            if payload.index >= len(handles):
                raise ProtocolBroken(f"payload of token {payload.index} of {len(handles)}")
            deltas[handles[payload.index]].payloads.append(payload.payload)

    def _delta(self, deltas: dict[int, CallDelta], handle: int) -> CallDelta:
        delta = deltas.get(handle)
        if delta is None:
            call = self._calls.get(handle)
            if call is None:
                raise ProtocolBroken(f"handle {handle} is not live")
            delta = deltas[handle] = CallDelta(call)
        return delta

    def _free_handle(self) -> int:
        while self._next in self._calls:
            self._next = (self._next + 1) % (MAX_HANDLE + 1)
        handle = self._next
        self._next = (handle + 1) % (MAX_HANDLE + 1)
        return handle


def handles_of(calls: Iterable[LiveCall]) -> list[int]:
    """Their handles, in order."""
    return [call.submit.handle for call in calls]


def _queue_full(limit: int) -> pb.Refusal:
    message = f"this frontend has {limit} live calls, its limit; try again shortly"
    return refusal("QUEUE_FULL", message, limit=limit, retry_after_s=1.0)
