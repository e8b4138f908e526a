"""Our side of one executor's stream: what is to be sent, in order, and its end.

The core's effects go into an outbox as they are; the writer task encodes them one message at a time.
Announcements that follow one another share a message. The outbox is bounded: at most `max_plans_in_flight`
plans are in it, and an executor that does not read its announcements is cut off.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from protos.autellix.executor.v1 import executor_pb2 as pb
from scheduler_svc.core.effects import AnnounceCall, Plan
from scheduler_svc.core.errors import Refusal
from scheduler_svc.core.events import ExecutorSpec
from scheduler_svc.shell import executor_wire
from scheduler_svc.shell.streams import StreamEnd

Write = Callable[[pb.AttachResponse], Awaitable[None]]

ANNOUNCED_BYTES_MAX = 8 * 1024 * 1024
"""About the most one CallsAnnounced message carries; a single larger call still goes alone."""


class ExecutorSession:
    """One attached executor."""

    def __init__(self, spec: ExecutorSpec, *, scheduler_id: str, outbox_max: int) -> None:
        """
        Args:
            outbox_max: messages that may wait for the executor to read, before it is cut off.
        """
        self.spec = spec
        self.end = StreamEnd()
        self.asked_to_drain = False
        """Whether the executor wants to leave by itself; otherwise an operator drains it."""
        self._scheduler_id = scheduler_id
        self._outbox: deque[AnnounceCall | Plan] = deque()
        self._outbox_max = outbox_max
        self._filled = asyncio.Event()

    def send(self, item: AnnounceCall | Plan) -> None:
        """Enqueues an announcement or a plan."""
        if len(self._outbox) >= self._outbox_max:
            self._cut_off()
            return
        self._outbox.append(item)
        self._filled.set()

    def end_drained(self) -> None:
        """Nothing is left on it: lets an executor go that asked for it; tells another not to come back."""
        if self.asked_to_drain:
            self.end.close()
        else:
            self.end.refuse(Refusal(reason="EXECUTOR_DRAINED", message="an operator drained this executor"))

    async def write_to(self, write: Write) -> None:
        """Sends the acceptance, then whatever is enqueued, for ever."""
        accepted = pb.RegistrationAccepted(scheduler_id=self._scheduler_id, epoch=self.spec.epoch)
        await write(pb.AttachResponse(accepted=accepted))
        while True:
            await self._filled.wait()
            self._filled.clear()
            while self._outbox:
                await write(self._next_message())

    def _next_message(self) -> pb.AttachResponse:
        item = self._outbox.popleft()
        if isinstance(item, Plan):
            return executor_wire.plan_response(item)
        announcements = [item]
        room_bytes = ANNOUNCED_BYTES_MAX - _announced_bytes(item)
        while self._outbox and isinstance(following := self._outbox[0], AnnounceCall):
            room_bytes -= _announced_bytes(following)
            if room_bytes < 0:
                break
            announcements.append(following)
            self._outbox.popleft()
        return executor_wire.calls_announced(announcements)

    def _cut_off(self) -> None:
        self._outbox.clear()
        self.end.refuse(
            Refusal(
                reason="PEER_TOO_SLOW",
                message="the executor does not read its stream",
                limit=f"{self._outbox_max} messages",
            )
        )


def _announced_bytes(effect: AnnounceCall) -> int:
    tokens = len(effect.call.prompt_token_ids) + len(effect.output_token_ids)
    return 4 * tokens + len(effect.call.params)
