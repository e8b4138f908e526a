"""Typed errors on the wire: google.rpc.Status with ErrorInfo, BadRequest details and RetryInfo.

Every refusal has a stable reason; one table says which gRPC status and HTTP code it becomes. The field,
the limit and the value that broke it travel as ErrorInfo metadata: a client in any language can read them.

    server:  await abort(context, None, "PROMPT_TOO_LONG", "...", field="prompt", limit="2048", value="3000")
    client:  except grpc.RpcError as error: failure = parse_error(error)
"""

from collections.abc import Iterable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, NoReturn, cast

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode

DOMAIN = "autellix"
DETAILS_KEY = "grpc-status-details-bin"
TEXT_LIMIT_CHARS = 500
"""Longer messages and values are cut: they travel in a trailer that HTTP/2 limits to about 8 KiB."""

_TABLE: dict[str, tuple[StatusCode, HTTPStatus]] = {
    "PROGRAM_UNKNOWN": (StatusCode.NOT_FOUND, HTTPStatus.NOT_FOUND),
    "PROGRAM_ENDED": (StatusCode.FAILED_PRECONDITION, HTTPStatus.CONFLICT),
    "PROGRAM_LIMIT": (StatusCode.RESOURCE_EXHAUSTED, HTTPStatus.TOO_MANY_REQUESTS),
    "ROUTE_UNKNOWN": (StatusCode.NOT_FOUND, HTTPStatus.NOT_FOUND),
    "MODEL_UNKNOWN": (StatusCode.NOT_FOUND, HTTPStatus.NOT_FOUND),
    "PROMPT_TOO_LONG": (StatusCode.INVALID_ARGUMENT, HTTPStatus.BAD_REQUEST),
    "PROMPT_EMPTY": (StatusCode.INVALID_ARGUMENT, HTTPStatus.BAD_REQUEST),
    "PARAMETER_OUT_OF_RANGE": (StatusCode.INVALID_ARGUMENT, HTTPStatus.BAD_REQUEST),
    "PARAMETER_INVALID": (StatusCode.INVALID_ARGUMENT, HTTPStatus.BAD_REQUEST),
    "PARAMS_FORMAT_UNKNOWN": (StatusCode.INVALID_ARGUMENT, HTTPStatus.BAD_REQUEST),
    "INVALID_TOKEN_ID": (StatusCode.INVALID_ARGUMENT, HTTPStatus.BAD_REQUEST),
    "MESSAGE_TOO_LARGE": (StatusCode.INVALID_ARGUMENT, HTTPStatus.REQUEST_ENTITY_TOO_LARGE),
    "PREPARATION_FAILED": (StatusCode.INVALID_ARGUMENT, HTTPStatus.BAD_REQUEST),
    "CALL_DUPLICATE": (StatusCode.ALREADY_EXISTS, HTTPStatus.CONFLICT),
    "QUEUE_FULL": (StatusCode.RESOURCE_EXHAUSTED, HTTPStatus.TOO_MANY_REQUESTS),
    "DEADLINE_EXCEEDED": (StatusCode.DEADLINE_EXCEEDED, HTTPStatus.GATEWAY_TIMEOUT),
    "EXECUTOR_FAILED": (StatusCode.INTERNAL, HTTPStatus.INTERNAL_SERVER_ERROR),
    "INTERNAL": (StatusCode.INTERNAL, HTTPStatus.INTERNAL_SERVER_ERROR),
    "SCHEDULER_UNAVAILABLE": (StatusCode.UNAVAILABLE, HTTPStatus.SERVICE_UNAVAILABLE),
    "NO_EXECUTOR": (StatusCode.UNAVAILABLE, HTTPStatus.SERVICE_UNAVAILABLE),
    "SHUTTING_DOWN": (StatusCode.UNAVAILABLE, HTTPStatus.SERVICE_UNAVAILABLE),
    "PROTOCOL_MISMATCH": (StatusCode.FAILED_PRECONDITION, HTTPStatus.CONFLICT),
    "MODEL_MISMATCH": (StatusCode.FAILED_PRECONDITION, HTTPStatus.CONFLICT),
    "UNSUPPORTED_EXECUTOR": (StatusCode.FAILED_PRECONDITION, HTTPStatus.CONFLICT),
    "PROTOCOL_BROKEN": (StatusCode.FAILED_PRECONDITION, HTTPStatus.BAD_REQUEST),
    "EXECUTOR_DRAINED": (StatusCode.FAILED_PRECONDITION, HTTPStatus.CONFLICT),
    "EPOCH_STALE": (StatusCode.FAILED_PRECONDITION, HTTPStatus.CONFLICT),
    "STREAM_SUPERSEDED": (StatusCode.ABORTED, HTTPStatus.CONFLICT),
    "PEER_TOO_SLOW": (StatusCode.RESOURCE_EXHAUSTED, HTTPStatus.TOO_MANY_REQUESTS),
    "UNAUTHENTICATED": (StatusCode.UNAUTHENTICATED, HTTPStatus.UNAUTHORIZED),
}
STATUS_OF_REASON: dict[str, StatusCode] = {reason: row[0] for reason, row in _TABLE.items()}
HTTP_OF_REASON: dict[str, HTTPStatus] = {reason: row[1] for reason, row in _TABLE.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class RpcFailure:
    """What a failed RPC said. Errors of other software have an empty reason."""

    code: StatusCode
    reason: str
    message: str
    field: str = ""
    limit: str = ""
    value: str = ""
    retry_after_s: float | None = None


def rich_error(
    code: StatusCode | None,
    reason: str,
    message: str,
    *,
    field: str = "",
    limit: str = "",
    value: str = "",
    retry_after_s: float | None = None,
) -> status_pb2.Status:
    """Builds the google.rpc.Status of a refusal.

    Args:
        code: None takes it from the table of reasons (unknown reasons: UNKNOWN).
        field, limit, value: which input broke which limit, as the client named it.
        retry_after_s: when trying again may succeed.
    """
    code = code or STATUS_OF_REASON.get(reason, StatusCode.UNKNOWN)
    named = {"field": field, "limit": limit, "value": value}
    details: list[Any] = [
        error_details_pb2.ErrorInfo(
            reason=reason, domain=DOMAIN, metadata={key: _cut(text) for key, text in named.items() if text}
        )
    ]
    if retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(round(retry_after_s * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    status = status_pb2.Status(code=code.value[0], message=_cut(message))
    for detail in details:
        status.details.append(_packed(detail))
    return status


async def abort(
    context: grpc.aio.ServicerContext,
    code: StatusCode | None,
    reason: str,
    message: str,
    *,
    field: str = "",
    limit: str = "",
    value: str = "",
    retry_after_s: float | None = None,
) -> NoReturn:
    """Ends an RPC with a typed error; arguments as for `rich_error`. Never returns."""
    status = rich_error(
        code, reason, message, field=field, limit=limit, value=value, retry_after_s=retry_after_s
    )
    grpc_code = code or STATUS_OF_REASON.get(reason, StatusCode.UNKNOWN)
    await context.abort(grpc_code, status.message, ((DETAILS_KEY, status.SerializeToString()),))
    raise AssertionError("abort returned")


def parse_error(error: grpc.RpcError) -> RpcFailure:
    """Reads an error back, ours or anyone's; never raises for what a server may send."""
    code = error.code() or StatusCode.UNKNOWN
    message = error.details() or ""
    info, retry_after_s = _details(error)
    return RpcFailure(
        code=code,
        reason=info.reason if info.domain == DOMAIN else "",
        message=message,
        field=info.metadata.get("field", ""),
        limit=info.metadata.get("limit", ""),
        value=info.metadata.get("value", ""),
        retry_after_s=retry_after_s,
    )


def _details(error: grpc.RpcError) -> tuple[error_details_pb2.ErrorInfo, float | None]:
    """ErrorInfo and seconds to wait; empty for whatever is not a google.rpc.Status with such details."""
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    retry_after_s = None
    trailers = dict(cast("Iterable[tuple[str, bytes]]", error.trailing_metadata() or ()))
    try:
        for detail in status_pb2.Status.FromString(trailers.get(DETAILS_KEY, b"")).details:
            detail.Unpack(info)  # unpacks only its own type
            if detail.Unpack(retry):
                retry_after_s = retry.retry_delay.ToNanoseconds() / 1e9
    except DecodeError:
        return error_details_pb2.ErrorInfo(), None
    return info, retry_after_s


def _packed(message: Any) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed


def _cut(text: str) -> str:
    return text if len(text) <= TEXT_LIMIT_CHARS else text[: TEXT_LIMIT_CHARS - 1] + "…"
