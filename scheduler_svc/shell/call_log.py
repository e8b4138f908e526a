"""One canonical log line, and one count, for each call that ended or was refused.

A line costs more than the plan of a whole step, so lines are not written while effects are carried out: plans
and outputs leave first, then the lines follow, a few in each turn of the event loop.
"""

import asyncio
from collections import deque

import structlog

from scheduler_svc.core.effects import FinishCall
from scheduler_svc.core.errors import Refusal
from scheduler_svc.shell.frontend_session import CallEntry
from scheduler_svc.shell.metrics import SchedulerMetrics

log = structlog.get_logger(__name__)

LINES_AT_ONCE = 8
"""About a millisecond."""


class CallLog:
    """Writes calls down."""

    def __init__(self, metrics: SchedulerMetrics) -> None:
        self._metrics = metrics
        self._unwritten: deque[tuple[CallEntry, FinishCall]] = deque()

    def finished(self, entry: CallEntry, effect: FinishCall) -> None:
        """A call ended; its line is written soon."""
        self._metrics.call_ended(entry.model, effect)
        if not self._unwritten:
            asyncio.get_running_loop().call_soon(self._begin_to_write)
        self._unwritten.append((entry, effect))

    def refused(self, program_id: str, call_id: str, refusal: Refusal) -> None:
        """A call was not accepted, at the door or by the core."""
        self._metrics.call_refused(refusal.reason)
        log.info(
            "call_refused",
            program_id=program_id,
            call_id=call_id,
            reason=refusal.reason,
            field=refusal.field,
            limit=refusal.limit,
            value=refusal.value,
        )

    def write_all(self) -> None:
        """Writes the lines that are left, at the end of the process."""
        while self._unwritten:
            _write(*self._unwritten.popleft())

    def _begin_to_write(self) -> None:
        """Runs among the writers that the same effects woke: the last of them goes first, too."""
        asyncio.get_running_loop().call_soon(self._write_some)

    def _write_some(self) -> None:
        """Arranges for the rest first: no line that fails may keep the others back for good."""
        count = min(LINES_AT_ONCE, len(self._unwritten))
        lines = [self._unwritten.popleft() for _ in range(count)]
        if self._unwritten:
            asyncio.get_running_loop().call_soon(self._write_some)
        for entry, effect in lines:
            _write(entry, effect)


def _write(entry: CallEntry, effect: FinishCall) -> None:
    log.info(
        "call_finished",
        program_id=entry.program_id,
        call_id=entry.call_id,
        tenant=entry.tenant,
        model=entry.model,
        reason=effect.reason.value,
        error=effect.error.reason if effect.error else None,
        prompt_tokens=entry.prompt_tokens,
        tokens=effect.output_tokens,
        service_s=round(effect.service_s, 6),
        waiting_s=round(effect.waiting_s, 6),
        preemptions=effect.preemptions,
    )
