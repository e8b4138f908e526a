"""Every error that leaves by HTTP has a reason: what vLLM's routes answer is put into our form here.

Theory of operation. One ASGI layer around vLLM's application looks at responses with an error status, and at
the events of a stream that hold an error. vLLM says what is wrong in words (message, param, status);
`refusal_of` finds the reason from them. A stream whose very first event is an error has not begun for the
client: it becomes an HTTP status. Errors that have a reason pass as they are. What went wrong inside of us is
logged, not told.
"""

import json
import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import structlog
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from frontend_svc.errors import refusal
from frontend_svc.http_errors import error_body, error_response
from frontend_svc.program_limits import shown
from frontend_svc.request_scope import current_scope
from protos.autellix.scheduler.v1 import scheduler_pb2 as pb

log = structlog.get_logger(__name__)

MESSAGE_CHARS_MAX = 1000

REASONS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (reason, re.compile(pattern))
    for reason, pattern in (
        ("MODEL_UNKNOWN", r"^The model `.*` does not exist"),
        ("PROMPT_TOO_LONG", r"maximum context length|exceeds the max_model_len"),
        (
            "PROMPT_EMPTY",
            r"empty conversation|provided and non-empty|at least one prompt|prompt cannot be empty",
        ),
        ("INVALID_TOKEN_ID", r"out of vocabulary|out-of-vocab"),
        (
            "PARAMETER_OUT_OF_RANGE",
            r"must be (at least|at most|in [\[(]|non-negative|positive|greater|less|a finite|>|<)"
            r"|cannot be greater than|greater than max allowed"
            r"|'type': '(greater_than|less_than|too_long|too_short|finite_number)",
        ),
    )
)
"""What a message of vLLM means; the first row that matches. No row: PARAMETER_INVALID."""

_BOUND = re.compile(r"^(?P<field>\w+) must be (?P<limit>.+?), got (?P<value>\S{1,64}?)\.?(?: |$)")
_CONTEXT = re.compile(r"maximum context length is (?P<limit>\d+) tokens")
_PARAMETER = re.compile(r" \(parameter=(?P<field>\w+)(?:, value=(?P<value>.*))?\)$", re.DOTALL)
_PLACE_IN_SOURCE = re.compile(r"\[\d\d:\d\d:\d\d\] <path>:\d+: ")
_FIELD_OF_PARAM = {"input_tokens": "prompt", "input_text": "prompt", "0": "body"}
_FIELD_OF_REASON = {"MODEL_UNKNOWN": "model", "PROMPT_TOO_LONG": "prompt", "PROMPT_EMPTY": "prompt"}


class TypedErrors:
    """The layer. Inside of `ProgramDoor`, so that the door sees the final status."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        return await self._app(scope, receive, _TypedResponse(scope, receive, send).send)


class _TypedResponse:
    """Passes one response on; its start is held back while it may turn out to be an error."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._held: list[Message] = []
        self._is_error = self._is_stream = self._replaced = False

    async def send(self, message: Message) -> None:
        """The application's `send`."""
        if message["type"] == "http.response.start":
            await self._begin(message)
        elif self._is_error:
            await self._collect(message)
        elif self._is_stream:
            await self._event(message)
        else:
            await self._send(message)

    async def _begin(self, message: Message) -> None:
        self._is_error = message["status"] >= HTTPStatus.BAD_REQUEST
        content_type = Headers(raw=message["headers"]).get("content-type", "")
        self._is_stream = content_type.startswith("text/event-stream")
        if self._is_error or self._is_stream:
            self._held.append(message)
        else:
            await self._send(message)

    async def _collect(self, message: Message) -> None:
        self._held.append(message)
        if message.get("more_body"):
            return
        start, *parts = self._held
        body = b"".join(part.get("body", b"") for part in parts)
        error = _error_in(body)
        if body and "reason" not in error:
            await self._replace(start["status"], error, Headers(raw=start["headers"]))
        else:
            await self._release()

    async def _event(self, message: Message) -> None:
        if self._replaced:
            return
        before, error, after = _split_event(message.get("body", b""))
        if error and self._held and "code" in error:
            self._replaced = True
            return await self._replace(int(error["code"]), error, Headers())
        await self._release()
        if error and "reason" not in error:
            status = int(error.get("code", HTTPStatus.INTERNAL_SERVER_ERROR))
            body = error_body(self._why(status, error), self._scope["path"], HTTPStatus(status))
            message["body"] = before + json.dumps(body).encode() + after
        await self._send(message)

    async def _replace(self, status: int, error: Mapping[str, Any], headers: Headers) -> None:
        self._held.clear()
        why = self._why(status, error)
        log.info("request_refused", path=self._scope["path"], reason=why.reason, field=why.field)
        response = error_response(why, self._scope["path"], HTTPStatus(status))
        if "allow" in headers:
            response.headers["Allow"] = headers["allow"]
        await response(self._scope, self._receive, self._send)

    async def _release(self) -> None:
        for message in self._held:
            await self._send(message)
        self._held.clear()

    def _why(self, status: int, error: Mapping[str, Any]) -> pb.Refusal:
        """The refusal of the request's calls if there was one, else what vLLM's words mean."""
        request = current_scope.get()
        if request is not None and request.refusal is not None:
            return request.refusal
        why = refusal_of(status, error)
        if why.reason == "INTERNAL":
            log.error("request_failed", path=self._scope["path"], status=status, problem=error.get("message"))
        return why


def refusal_of(status: int, error: Mapping[str, Any]) -> pb.Refusal:
    """What an error of vLLM means.

    Args:
        error: its `message` and `param`; empty for the errors of the router itself.
    """
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR and status != HTTPStatus.NOT_IMPLEMENTED:
        return refusal("INTERNAL", "a fault of the server; its log has the cause")
    if "message" not in error:
        return refusal("ROUTE_UNKNOWN", "there is no such path, or it does not take this method")
    text = str(error["message"])
    message = _PARAMETER.sub("", _PLACE_IN_SOURCE.sub("", text))[:MESSAGE_CHARS_MAX]
    reason = next((reason for reason, pattern in REASONS if pattern.search(message)), "PARAMETER_INVALID")
    named = _named(text) | ({"field": str(error["param"])} if error.get("param") else {})
    field = named.get("field", "").removeprefix("body.") or _FIELD_OF_REASON.get(reason, "")
    return refusal(
        reason,
        message,
        field=_FIELD_OF_PARAM.get(field, field),
        limit=named.get("limit", ""),
        value=shown(named.get("value", "")),
    )


def _named(text: str) -> dict[str, str]:
    """Field, limit and value, as far as a message names them."""
    found = [match.groupdict("") for p in (_CONTEXT, _PARAMETER, _BOUND) if (match := p.search(text))]
    return {key: value for named in found for key, value in named.items() if value}


def _error_in(body: bytes) -> dict[str, Any]:
    """The error object of a body; empty when there is none."""
    try:
        document = json.loads(body)
    except ValueError:
        return {}
    error = document.get("error") if isinstance(document, dict) else None
    return error if isinstance(error, dict) else {}


def _split_event(chunk: bytes) -> tuple[bytes, dict[str, Any], bytes]:
    """A chunk of a stream as (before, error, after); the error is empty when the chunk holds none."""
    if not chunk.startswith((b'data: {"error"', b"event: error\n")):
        return chunk, {}, b""
    before, mark, rest = chunk.partition(b"data: ")
    data, end, after = rest.partition(b"\n")
    return before + mark, _error_in(data), end + after
