"""Who is attached: executors by id, and what submitted calls are checked against.

Guarantees: one session an executor id, the one of the highest epoch. What was learnt of a model outlives its
last executor, so that calls which wait for an executor to come back are still checked at the door.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from scheduler_svc.core.errors import Refusal, Refused
from scheduler_svc.core.events import ExecutorSpec
from scheduler_svc.core.ids import ExecutorId
from scheduler_svc.shell.executor_session import ExecutorSession


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What every executor of a model can take."""

    vocab_size: int
    """Token ids are in [0, vocab_size)."""
    params_formats: frozenset[str]


class ExecutorRegistry:
    """The attached executors."""

    def __init__(self) -> None:
        self._sessions: dict[ExecutorId, ExecutorSession] = {}
        self._facts: dict[str, ModelFacts] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def get(self, executor_id: ExecutorId) -> ExecutorSession | None:
        """The session of an attached executor."""
        return self._sessions.get(executor_id)

    def check_epoch(self, spec: ExecutorSpec) -> None:
        """Raises: Refused with EPOCH_STALE unless `spec` is newer than the attached executor of its id."""
        attached = self._sessions.get(spec.executor_id)
        if attached is not None and spec.epoch <= attached.spec.epoch:
            raise Refused(_stale(spec, attached.spec))

    def add(self, session: ExecutorSession) -> None:
        """Attaches a session; the older one of the same id is ended."""
        older = self._sessions.get(session.spec.executor_id)
        if older is not None:
            older.end.refuse(_superseded(session.spec))
        self._sessions[session.spec.executor_id] = session
        self._learn(session.spec.model)

    def remove(self, session: ExecutorSession) -> bool:
        """Detaches a session; False when it is not, or no longer, the one attached."""
        if self._sessions.get(session.spec.executor_id) is not session:
            return False
        del self._sessions[session.spec.executor_id]
        self._learn(session.spec.model)
        return True

    def facts(self, model: str) -> ModelFacts | None:
        """What is known of a model; None when no executor has ever served it."""
        return self._facts.get(model)

    def count_by_model(self) -> dict[str, int]:
        """Attached executors of each model ever served."""
        counts = dict.fromkeys(self._facts, 0)
        for session in self._sessions.values():
            counts[session.spec.model] += 1
        return counts

    def end_all(self) -> None:
        """Ends every stream in good order."""
        for session in self._sessions.values():
            session.end.close()

    def _learn(self, model: str) -> None:
        specs = [session.spec for session in self._sessions.values() if session.spec.model == model]
        if specs:
            self._facts[model] = _facts(specs)


def _facts(specs: Sequence[ExecutorSpec]) -> ModelFacts:
    return ModelFacts(
        vocab_size=min(spec.vocab_size for spec in specs),
        params_formats=frozenset.intersection(*(frozenset(spec.params_formats) for spec in specs)),
    )


def _stale(spec: ExecutorSpec, attached: ExecutorSpec) -> Refusal:
    return Refusal(
        reason="EPOCH_STALE",
        message=f"executor {spec.executor_id} is attached with epoch {attached.epoch}: register with a "
        "higher one, or give this process another executor id",
        field="epoch",
        limit=f"> {attached.epoch}",
        value=str(spec.epoch),
    )


def _superseded(spec: ExecutorSpec) -> Refusal:
    return Refusal(
        reason="STREAM_SUPERSEDED",
        message=f"executor {spec.executor_id} registered again with epoch {spec.epoch}",
    )
