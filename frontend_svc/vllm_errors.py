"""The one exception by which a refusal reaches vLLM's routes.

`CallRefused` derives from both of vLLM's exceptions that its routes know: the first decides the HTTP status
before a response has started, the second becomes an error event inside a running stream (without a stack
trace in the log).
"""

from vllm.exceptions import GenerationError, GracefulHTTPError

from frontend_svc.http_errors import http_status
from protos.autellix.scheduler.v1 import scheduler_pb2 as pb


class CallRefused(GracefulHTTPError, GenerationError):
    """A call that was refused or failed, as vLLM's routes understand it. `refusal` says why."""

    def __init__(self, refusal: pb.Refusal) -> None:
        status = http_status(refusal.reason)
        GracefulHTTPError.__init__(self, f"{refusal.message} [{refusal.reason}]", status)
        self.status_code = status
        self.refusal = refusal
