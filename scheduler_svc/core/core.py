"""The core: one object, one method that changes it (`handle`), and accessors that only look.

(Skeleton: signatures are final, bodies follow.)
"""

from scheduler_svc.core.config import CoreConfig
from scheduler_svc.core.effects import Effect
from scheduler_svc.core.events import Event
from scheduler_svc.core.ids import FrontendId, ProgramId, TenantId
from scheduler_svc.core.snapshots import (
    EngineSnapshot,
    ExecutorSnapshot,
    ModelSnapshot,
    ProgramSnapshot,
    StatisticsSnapshot,
)


class Core:
    """The scheduler without its surroundings: same events, same effects."""

    def __init__(self, config: CoreConfig) -> None:
        raise NotImplementedError

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Takes one event in.

        A submitted call that is refused comes back as a `RefuseCall` effect. `PlanDue` alone returns plans.

        Args:
            event: What happened.
            now: Monotonic seconds; an earlier value than the last one counts as the last one.

        Returns: what to do, in order.
        Raises:
            Refused: by ProgramOpened (PROGRAM_LIMIT, PROGRAM_ENDED), ProgramEnded and ProgramCancelled
                (PROGRAM_UNKNOWN; PROGRAM_ENDED is not raised: ending twice is fine), ExecutorJoined
                (MODEL_MISMATCH, UNSUPPORTED_EXECUTOR) and ExecutorDrainRequested (NO_EXECUTOR).
                Nothing was changed. No other event raises.
        """
        raise NotImplementedError

    def find_program(self, tenant: TenantId, session_key: str) -> ProgramSnapshot | None:
        """The open program of a tenant's session key."""
        raise NotImplementedError

    def program(self, tenant: TenantId, program_id: ProgramId) -> ProgramSnapshot | None:
        """An open or recently ended program; None when unknown, or another tenant's."""
        raise NotImplementedError

    def programs(self, tenant: TenantId | None = None) -> list[ProgramSnapshot]:
        """Open and recently ended programs, oldest first; None: of all tenants."""
        raise NotImplementedError

    def executors(self) -> list[ExecutorSnapshot]:
        """Attached executors by id."""
        raise NotImplementedError

    def models(self) -> list[ModelSnapshot]:
        """Models with at least one executor, by name."""
        raise NotImplementedError

    def statistics(self) -> StatisticsSnapshot:
        """Counters since start."""
        raise NotImplementedError

    def engine_status(self, frontend_id: FrontendId) -> EngineSnapshot:
        """Gauges to send along with a frontend's outputs."""
        raise NotImplementedError
