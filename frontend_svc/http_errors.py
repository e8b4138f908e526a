"""Typed errors over HTTP, in the shape that OpenAI clients (and, on its routes, Anthropic clients) expect.

    {"error": {"message": ..., "type": ..., "param": field, "code": 404,
               "reason": "PROGRAM_UNKNOWN", "field": ..., "limit": ..., "value": ...}}

The status comes from the table in `svc_runtime.rpc_errors`; `Retry-After` is set when trying again makes
sense.
"""

import math
from http import HTTPStatus

from fastapi import Request
from fastapi.responses import JSONResponse

from frontend_svc.errors import Refused
from protos.autellix.scheduler.v1 import scheduler_pb2 as pb
from svc_runtime.rpc_errors import HTTP_OF_REASON

ANTHROPIC_PREFIX = "/v1/messages"
_ANTHROPIC_TYPES = {
    HTTPStatus.BAD_REQUEST: "invalid_request_error",
    HTTPStatus.UNAUTHORIZED: "authentication_error",
    HTTPStatus.NOT_FOUND: "not_found_error",
    HTTPStatus.CONFLICT: "invalid_request_error",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "request_too_large",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
    HTTPStatus.SERVICE_UNAVAILABLE: "overloaded_error",
}


def http_status(reason: str) -> HTTPStatus:
    """The HTTP status of a refusal; reasons without a row are our fault."""
    return HTTP_OF_REASON.get(reason, HTTPStatus.INTERNAL_SERVER_ERROR)


def error_body(refusal: pb.Refusal, path: str, status: HTTPStatus) -> dict[str, object]:
    """The JSON object for a refused request; arguments as for `error_response`."""
    error = {
        "message": refusal.message,
        "type": status.phrase.replace(" ", ""),
        "param": refusal.field or None,
        "code": status.value,
        "reason": refusal.reason,
        "field": refusal.field,
        "limit": refusal.limit,
        "value": refusal.value,
    }
    body: dict[str, object] = {"error": error}
    if path.startswith(ANTHROPIC_PREFIX):
        error["type"] = _ANTHROPIC_TYPES.get(status, "api_error")
        body["type"] = "error"
    return body


def error_response(refusal: pb.Refusal, path: str, status: HTTPStatus | None = None) -> JSONResponse:
    """The response for a refused request.

    Args:
        path: of the request; Anthropic routes have their own shape.
        status: None: that of the reason.
    """
    status = status or http_status(refusal.reason)
    headers = {}
    if refusal.HasField("retry_after_s"):
        headers["Retry-After"] = str(max(1, math.ceil(refusal.retry_after_s)))
    if status is HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(error_body(refusal, path, status), status, headers)


async def refused_handler(request: Request, error: Exception) -> JSONResponse:
    """FastAPI's handler for `Refused`."""
    assert isinstance(error, Refused)
    return error_response(error.refusal, request.url.path)
