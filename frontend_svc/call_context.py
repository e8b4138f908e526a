"""What the engine-core client must know of a call that vLLM's request object does not carry.

Theory of operation. A call enters through a door (OpenAI HTTP route, public gRPC), which resolves tenant,
program, thread and parents and then calls `AsyncLLM.generate(..., request_id=call_id)`. vLLM keeps that
name as `EngineCoreRequest.external_req_id`; with n > 1 several engine requests share it. The door therefore
registers a `CallContext` under the call's id before `generate()`, the engine-core client looks it up by
`external_req_id` when it submits or cancels, and the door releases it when the stream has ended, however it
ended.

One event loop owns the registry: no locks. Imports nothing of vllm.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum

from protos.autellix.scheduler.v1 import scheduler_pb2 as pb

DEADLINE_SLACK_S = 0.1
"""A cancel this close to the deadline is the deadline's: each end of a connection has its own clock."""


class CancelCause(Enum):
    """Who ended a call before its model did."""

    CLIENT = "client"
    DEADLINE = "deadline"


@dataclass(slots=True, kw_only=True)
class CallContext:
    """One live call as its door knows it."""

    call_id: str
    """Globally unique; `request_id` of `AsyncLLM.generate`."""
    tenant: str
    program_id: str
    """An open program of the tenant."""
    thread_id: str = ""
    """Empty: the main thread."""
    parent_call_ids: tuple[str, ...] = ()
    """Calls of the same program that this one depends on; empty: unknown."""
    deadline: float | None = None
    """`time.monotonic()` after which the call is worthless; None: never."""
    cancel_requested: bool = False
    """Somebody asked for its end; matters only before the engine knows the call."""
    refusal: pb.Refusal | None = None
    """Why the call failed; set by the engine-core client, whose own interface has no room for it."""

    def remaining_s(self) -> float | None:
        """Seconds until the deadline, never negative; None without one."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    def cancel_cause(self) -> CancelCause:
        """Whom to blame for a cancel that happens now."""
        remaining_s = self.remaining_s()
        if remaining_s is not None and remaining_s <= DEADLINE_SLACK_S:
            return CancelCause.DEADLINE
        return CancelCause.CLIENT


@dataclass(slots=True)
class CallRegistry:
    """The live calls of this frontend by call id."""

    _by_call_id: dict[str, CallContext] = field(default_factory=dict)

    def get(self, call_id: str) -> CallContext | None:
        """The live call of that id."""
        return self._by_call_id.get(call_id)

    def __len__(self) -> int:
        return len(self._by_call_id)

    @contextmanager
    def registered(self, context: CallContext) -> Iterator[CallContext]:
        """Keeps `context` in the registry for the length of the block.

        Raises:
            KeyError: a call of that id is live.
        """
        if context.call_id in self._by_call_id:
            raise KeyError(context.call_id)
        self._by_call_id[context.call_id] = context
        try:
            yield context
        finally:
            del self._by_call_id[context.call_id]
