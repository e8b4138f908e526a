"""Can this frontend serve a call just now? One answer for /health, the doors, gRPC health and AsyncLLM."""

from collections.abc import Mapping
from typing import Protocol

from frontend_svc.errors import RETRY_AFTER_S, SchedulerLost, refusal
from protos.autellix.scheduler.v1 import scheduler_pb2 as pb


class KnowsScheduler(Protocol):
    """What readiness needs of the link."""

    @property
    def up(self) -> bool:
        """Whether the scheduler is connected."""
        ...

    @property
    def models(self) -> Mapping[str, pb.ModelInfo]:
        """Served models by name, as last announced."""
        ...


class Readiness:
    """The state of the frontend as its doors see it.

    Args:
        model: what the executors said of the model when it was checked against this frontend's files.
    """

    def __init__(self, link: KnowsScheduler, model: pb.ModelInfo) -> None:
        self._link = link
        self._model = model
        self._draining = False

    def drain(self) -> None:
        """From now on no new call is accepted."""
        self._draining = True

    def unavailable(self) -> pb.Refusal | None:
        """Why no call can be accepted; None when all is well."""
        if self._draining:
            message = "this frontend is shutting down; use another one"
            return refusal("SHUTTING_DOWN", message, retry_after_s=RETRY_AFTER_S)
        if not self._link.up:
            return SchedulerLost().refusal
        served = self._link.models.get(self._model.model)
        if served is not None and served.tokenizer_fingerprint != self._model.tokenizer_fingerprint:
            return _replaced(self._model, served)
        return None


def _replaced(model: pb.ModelInfo, served: pb.ModelInfo) -> pb.Refusal:
    """Executors came back with other files under the same name: our tokens mean something else there."""
    return refusal(
        "MODEL_MISMATCH",
        f"the executors now serve another tokenizer or configuration as {model.model!r}; "
        "restart this frontend with the same model files",
        field="tokenizer_fingerprint",
        limit=served.tokenizer_fingerprint,
        value=model.tokenizer_fingerprint,
    )
