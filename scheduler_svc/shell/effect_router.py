"""Carries out the core's effects: hands each to the session it is for. Plans first.

Order is kept on each stream. Across streams, everything for executors goes before anything for frontends, so
that the next step starts before the last one's tokens are encoded. An effect for a stream that has gone is
dropped: the core hears of the loss in its own event.
"""

from collections.abc import Callable, Sequence
from typing import Any

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


class EffectRouter:
    """Knows where each effect goes."""

    def __init__(self, executors: ExecutorRegistry, frontends: FrontendRegistry, call_log: CallLog) -> None:
        self._executors = executors
        self._frontends = frontends
        self._call_log = call_log
        self._for_executors: dict[type, Callable[[Any], None]] = {
            AnnounceCall: self._announce,
            SendPlan: self._send_plan,
            CloseExecutor: self._close,
        }
        self._for_frontends: dict[type, Callable[[Any], None]] = {
            EmitTokens: self._emit,
            ReportStarted: self._started,
            FinishCall: self._finished,
            RefuseCall: self._refuse,
        }

    def carry_out(self, effects: Sequence[Effect]) -> None:
        """Hands effects to sessions; never blocks, encodes nothing."""
        for_frontends: list[Effect] = []
        for effect in effects:
            hand_over = self._for_executors.get(type(effect))
            if hand_over is None:
                for_frontends.append(effect)
            else:
                hand_over(effect)
        for effect in for_frontends:
            self._for_frontends[type(effect)](effect)

    # ── to executors ────────────────────────────────────────────────────────────────────────────────

    def _announce(self, effect: AnnounceCall) -> None:
        session = self._executors.get(effect.executor_id)
        if session is not None:
            session.send(effect)

    def _send_plan(self, effect: SendPlan) -> None:
        session = self._executors.get(effect.executor_id)
        if session is not None:
            session.send(effect.plan)

    def _close(self, effect: CloseExecutor) -> None:
        session = self._executors.get(effect.executor_id)
        if session is None:
            return
        if effect.drained:
            session.end_drained()
            return
        log.warning("executor_closed", executor_id=effect.executor_id, reason=effect.reason)
        session.end.refuse(Refusal(reason="PROTOCOL_BROKEN", message=effect.reason))

    # ── to frontends ────────────────────────────────────────────────────────────────────────────────

    def _emit(self, effect: EmitTokens) -> None:
        session = self._frontends.get(effect.frontend_id)
        if session is not None:
            session.emit(effect)

    def _started(self, effect: ReportStarted) -> None:
        session = self._frontends.get(effect.frontend_id)
        if session is not None:
            session.started(effect)

    def _finished(self, effect: FinishCall) -> None:
        session = self._frontends.get(effect.frontend_id)
        if session is not None:
            self._call_log.finished(session.finished(effect), effect)

    def _refuse(self, effect: RefuseCall) -> None:
        session = self._frontends.get(effect.frontend_id)
        if session is not None:
            entry = session.refuse(effect.handle, effect.refusal)
            self._call_log.refused(entry.program_id, entry.call_id, effect.refusal)
