"""Can this frontend serve a call just now? One answer for /health, the doors, gRPC health and AsyncLLM."""

from frontend_svc.errors import RETRY_AFTER_S, SchedulerLost, refusal
from frontend_svc.scheduler_link import SchedulerLink
from protos.autellix.scheduler.v1 import scheduler_pb2 as pb


class Readiness:
    """The state of the frontend as its doors see it."""

    def __init__(self, link: SchedulerLink) -> None:
        self._link = link
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
        return None
