"""Carries out the core's effects: hands each to the session it is for. Plans first.

Order is kept on each stream. Across streams, everything for executors goes before anything for frontends, so
that the next step starts before the last one's tokens are encoded. An effect for a stream that has gone is
dropped: the core hears of the loss in its own event.
"""

from collections.abc import Sequence

import structlog

from scheduler_svc.core.effects import (
    AnnounceCall,
    CloseExecutor,
    Effect,
    EmitTokens,
    FinishCall,
    RefuseCall,
    ReportStarted,
    SendPlan,
)
from scheduler_svc.core.errors import Refusal
from scheduler_svc.shell.call_log import CallLog
from scheduler_svc.shell.executor_registry import ExecutorRegistry
from scheduler_svc.shell.frontend_registry import FrontendRegistry

log = structlog.get_logger(__name__)

ExecutorEffect = AnnounceCall | SendPlan | CloseExecutor
FrontendEffect = EmitTokens | ReportStarted | FinishCall | RefuseCall


class EffectRouter:
    """Knows where each effect goes."""

    def __init__(self, executors: ExecutorRegistry, frontends: FrontendRegistry, call_log: CallLog) -> None:
        self._executors = executors
        self._frontends = frontends
        self._call_log = call_log

    def carry_out(self, effects: Sequence[Effect]) -> None:
        """Hands effects to sessions; never blocks, encodes nothing."""
        for_frontends: list[FrontendEffect] = []
        for effect in effects:
            if isinstance(effect, ExecutorEffect):
                self._to_executor(effect)
            else:
                for_frontends.append(effect)
        for frontend_effect in for_frontends:
            self._to_frontend(frontend_effect)

    def _to_executor(self, effect: ExecutorEffect) -> None:
        session = self._executors.get(effect.executor_id)
        if session is None:
            return
        match effect:
            case AnnounceCall():
                session.send(effect)
            case SendPlan():
                session.send(effect.plan)
            case CloseExecutor(drained=True):
                session.end_drained()
            case CloseExecutor():
                log.warning("executor_closed", executor_id=effect.executor_id, reason=effect.reason)
                session.end.refuse(Refusal(reason="PROTOCOL_BROKEN", message=effect.reason))

    def _to_frontend(self, effect: FrontendEffect) -> None:
        session = self._frontends.get(effect.frontend_id)
        if session is None:
            return
        match effect:
            case EmitTokens():
                session.emit(effect)
            case ReportStarted():
                session.started(effect)
            case FinishCall():
                self._call_log.finished(session.finished(effect), effect)
            case RefuseCall():
                entry = session.refuse(effect.handle, effect.refusal)
                self._call_log.refused(entry.program_id, entry.call_id, effect.refusal)
