"""Who is connected: frontend streams by the core's id, the newest one of a frontend by its own name."""

from collections.abc import Iterator, Sequence

from protos.autellix.scheduler.v1 import scheduler_pb2 as pb
from scheduler_svc.core.errors import Refusal
from scheduler_svc.core.ids import FrontendId
from scheduler_svc.core.snapshots import ModelSnapshot
from scheduler_svc.shell import frontend_wire
from scheduler_svc.shell.frontend_session import FrontendSession


class FrontendRegistry:
    """Streams that are connected, and ended ones whose calls live on for the grace time."""

    def __init__(self) -> None:
        self._sessions: dict[FrontendId, FrontendSession] = {}
        self._newest: dict[str, FrontendSession] = {}
        self._announced: list[pb.ModelInfo] = []

    def __iter__(self) -> Iterator[FrontendSession]:
        return iter(list(self._sessions.values()))

    @property
    def connected(self) -> int:
        """Streams that have not ended."""
        return sum(not session.end.decided for session in self._sessions.values())

    def get(self, frontend_id: FrontendId) -> FrontendSession | None:
        """The session of a stream."""
        return self._sessions.get(frontend_id)

    def add(self, session: FrontendSession) -> FrontendSession | None:
        """Takes a stream in; an older one of the same frontend is ended and returned."""
        older = self._newest.get(session.name)
        if older is not None:
            older.end.refuse(
                Refusal(reason="STREAM_SUPERSEDED", message=f"frontend {session.name} connected again")
            )
        self._sessions[session.frontend_id] = session
        self._newest[session.name] = session
        return older

    def remove(self, session: FrontendSession) -> None:
        """Forgets a stream."""
        self._sessions.pop(session.frontend_id, None)
        if self._newest.get(session.name) is session:
            del self._newest[session.name]

    def announce_models(self, models: Sequence[ModelSnapshot]) -> None:
        """Tells every connected frontend the served models, if they changed."""
        infos = [frontend_wire.model_info(model) for model in models]
        if infos == self._announced:
            return
        self._announced = infos
        message = pb.ConnectResponse(models_changed=pb.ModelsChanged(models=infos))
        for session in self._sessions.values():
            session.tell(message)

    def end_all(self) -> None:
        """Ends every stream in good order."""
        for session in self._sessions.values():
            session.end.close()
