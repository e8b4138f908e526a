"""One canonical log line, and one count, for each call that ended or was refused."""

import structlog

from scheduler_svc.core.effects import FinishCall
from scheduler_svc.core.errors import Refusal
from scheduler_svc.shell.frontend_session import CallEntry
from scheduler_svc.shell.metrics import SchedulerMetrics

log = structlog.get_logger(__name__)


class CallLog:
    """Writes calls down."""

    def __init__(self, metrics: SchedulerMetrics) -> None:
        self._metrics = metrics

    def finished(self, entry: CallEntry, effect: FinishCall) -> None:
        """A call ended."""
        self._metrics.call_ended(entry.model, effect)
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
