"""Errors of the frontend.

    FrontendError
    ├── Refused               refused at the door, or ended later by the scheduler: carries a typed `Refusal`
    │   └── SchedulerLost     there is no scheduler to ask; trying again makes sense
    └── ProtocolBroken        the scheduler sent what it must not send; the stream is closed

`grpc.RpcError` never leaves this package: `refused_from_rpc` turns it into `Refused`. The HTTP code and the
gRPC status of a refusal come from the one table in `svc_runtime.rpc_errors`, looked up by `reason`.
"""

import grpc

from protos.autellix.scheduler.v1 import scheduler_pb2 as pb
from svc_runtime.rpc_errors import parse_error

RETRY_AFTER_S = 1.0
"""Seconds after which a client may ask again while the scheduler is away."""


class FrontendError(Exception):
    """Base of all errors that the frontend raises on purpose."""


class Refused(FrontendError):
    """A call or a program operation that cannot be served.

    Args:
        refusal: what is wrong; `reason` is UPPER_SNAKE and stable, `retry_after_s` is absent when trying
        again
            makes no sense.
    """

    def __init__(self, refusal: pb.Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


class SchedulerLost(Refused):
    """The scheduler is not connected."""

    def __init__(self, message: str = "the scheduler is not connected; try again shortly") -> None:
        super().__init__(refusal("SCHEDULER_UNAVAILABLE", message, retry_after_s=RETRY_AFTER_S))


class ProtocolBroken(FrontendError):
    """The scheduler's message contradicts what this frontend knows."""


def refusal(
    reason: str,
    message: str,
    *,
    field: str = "",
    limit: object = "",
    value: object = "",
    retry_after_s: float | None = None,
) -> pb.Refusal:
    """Build a refusal; `limit` and `value` are written as text."""
    return pb.Refusal(
        reason=reason,
        message=message,
        field=field,
        limit=str(limit),
        value=str(value),
        retry_after_s=retry_after_s,
    )


def refused_from_rpc(error: grpc.RpcError) -> Refused:
    """The typed form of a failed RPC; a peer that cannot be reached becomes `SchedulerLost`."""
    failure = parse_error(error)
    if not failure.reason:
        return SchedulerLost(f"the scheduler did not answer: {failure.message or failure.code.name}")
    return Refused(
        refusal(
            failure.reason,
            failure.message,
            field=failure.field,
            limit=failure.limit,
            value=failure.value,
            retry_after_s=failure.retry_after_s,
        )
    )
