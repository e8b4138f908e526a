"""What every HTTP request passes before vLLM's routes: size, key, program.

Theory of operation. Three plain ASGI layers, outermost first:

    Authentication   /health is open; everything else needs a key when there are keys. Sets the tenant.
    BodyLimit        reads the body, bounded, and replays it.
    ProgramDoor      on the generation routes: resolves the program, puts a `RequestScope` in place, answers
                     503 while nothing can be served, and finishes the program if the request says so.

vLLM starts a streamed response before the scheduler has seen the call, so `ProgramDoor` holds the first
messages of a response back until a call of the request has answered or the response ends. A call refused in
between becomes a real HTTP status, and the response headers can name the program.
"""

import asyncio
import time
from collections.abc import Callable

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from frontend_svc.auth import ApiKeys
from frontend_svc.call_context import CallRegistry
from frontend_svc.errors import Refused, refusal
from frontend_svc.http_errors import error_response
from frontend_svc.identity import body_keys, resolve
from frontend_svc.request_scope import OpensPrograms, RequestScope, current_scope
from protos.autellix.scheduler.v1 import scheduler_pb2 as pb

GENERATION_PATHS = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"})
OPEN_PATHS = frozenset({"/health"})

Served = Callable[[str, int | None, str], None]

log = structlog.get_logger(__name__)


class Authentication:
    """Refuses callers without a known key and sets `scope["state"]["tenant"]`."""

    def __init__(self, app: ASGIApp, *, keys: ApiKeys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        tenant = self._keys.tenant_of_headers(Headers(scope=scope))
        if tenant is None and scope["path"] not in OPEN_PATHS:
            return await _refuse(UNAUTHENTICATED, scope, receive, send)
        scope.setdefault("state", {})["tenant"] = tenant
        return await self._app(scope, receive, send)


class BodyLimit:
    """Reads each request body up to a limit, keeps it in `scope["state"]["body"]`, and replays it to the app.

    Args:
        max_bytes: larger bodies are refused with MESSAGE_TOO_LARGE (413).
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            return await self._app(scope, receive, send)
        body = await self._read(scope, receive)
        if body is None:
            return await _refuse(_too_large(self._max_bytes), scope, receive, send)
        scope.setdefault("state", {})["body"] = body
        return await self._app(scope, _replayed(body, receive), send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        """The whole body; None when it is larger than allowed."""
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdecimal() and int(announced) > self._max_bytes:
            return None
        body = bytearray()
        while True:
            message = await receive()
            body += message.get("body", b"")
            if len(body) > self._max_bytes:
                return None
            if not message.get("more_body"):  # also on http.disconnect: nobody is left to answer
                return bytes(body)


class ProgramDoor:
    """Resolves the program of each generation request.

    Args:
        programs: where programs are opened and ended. unavailable: why nothing can be served just now, None
        when all is well. calls: live calls of this frontend, so that they can be cancelled by id. served:
        told (path, status, source of the identity) of every request; status None: the client had gone.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        programs: OpensPrograms,
        unavailable: Callable[[], pb.Refusal | None],
        calls: CallRegistry,
        served: Served = lambda path, status, source: None,
    ) -> None:
        self._app = app
        self._programs = programs
        self._unavailable = unavailable
        self._calls = calls
        self._served = served
        self._finishing: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] not in GENERATION_PATHS:
            return await self._app(scope, receive, send)
        if (why_not := self._unavailable()) is not None:
            return await _refuse(why_not, scope, receive, send)
        try:
            identity = resolve(Headers(scope=scope), body_keys(scope["state"]["body"]))
        except Refused as error:
            return await _refuse(error.refusal, scope, receive, send)
        request = RequestScope(scope["state"]["tenant"], identity, self._programs, self._calls)
        return await self._serve(request, scope, receive, send)

    async def _serve(self, request: RequestScope, scope: Scope, receive: Receive, send: Send) -> None:
        started, response = time.monotonic(), HeldResponse(request, scope, receive, send)
        token = current_scope.set(request)
        try:
            await self._app(scope, receive, response.send)
        except Exception:
            if request.refusal is None:
                raise
            await response.fail(request.refusal)
        finally:
            current_scope.reset(token)
            self._finish(request)
            self._served(scope["path"], response.status, request.identity.source)
            log.info(
                "request_served",
                path=scope["path"],
                status=response.status,
                tenant=request.tenant,
                program_id=request.program_id,
                call_id=(*request.call_ids, "")[0],
                calls=len(request.call_ids),
                source=request.identity.source,
                duration_s=round(time.monotonic() - started, 6),
            )

    def _finish(self, request: RequestScope) -> None:
        task = asyncio.create_task(_finish(request))
        self._finishing.add(task)
        task.add_done_callback(self._finishing.discard)


class HeldResponse:
    """Passes a response on, its beginning only once a call has answered.

    A response whose call was refused before anything was sent is replaced by the typed error.
    """

    def __init__(self, request: RequestScope, scope: Scope, receive: Receive, send: Send) -> None:
        self.status: int | None = None
        """What was sent; None: nothing, the client had gone."""
        self._request = request
        self._scope = scope
        self._receive = receive
        self._send = send
        self._held: list[Message] = []
        self._replaced = False

    async def send(self, message: Message) -> None:
        """The app's `send`."""
        if self._replaced:
            return
        if self.status is not None:
            return await self._send(message)
        self._held.append(message)
        ended = message["type"] == "http.response.body" and not message.get("more_body")
        if self._request.refusal is not None:
            await self._replace(self._request.refusal)
        elif ended or (self._request.answered and len(self._held) > 1):
            await self._release()

    async def fail(self, why: pb.Refusal) -> None:
        """The app raised because of a refusal: answer in its place, or end the running stream with an
        event."""
        if self.status is None:
            await self._replace(why)
        elif not self._replaced:
            event = b"event: error\ndata: " + error_response(why, self._scope["path"]).body + b"\n\n"
            await self._send({"type": "http.response.body", "body": event, "more_body": False})

    async def _replace(self, why: pb.Refusal) -> None:
        self._replaced = True
        response = error_response(why, self._scope["path"])
        self.status = response.status_code
        self._name(response.headers)
        await response(self._scope, self._receive, self._send)

    async def _release(self) -> None:
        start, *rest = self._held
        self.status = start["status"]
        self._name(MutableHeaders(raw=start["headers"]))
        for message in (start, *rest):
            await self._send(message)
        self._held.clear()

    def _name(self, headers: MutableHeaders) -> None:
        """Tell the client which program and call this was; what a header cannot hold is left out."""
        request = self._request
        names = {
            "X-Autellix-Program-Id": request.program_id,
            "X-Autellix-Session": request.identity.session_key,
            "X-Autellix-Call-Id": (*request.call_ids, "")[0],
        }
        headers.update({name: value for name, value in names.items() if value and value.isascii()})


UNAUTHENTICATED = refusal(
    "UNAUTHENTICATED", "send an API key of this server: Authorization: Bearer KEY, or x-api-key: KEY"
)


async def _finish(request: RequestScope) -> None:
    try:
        await request.finish()
    except Refused as error:
        log.warning("program_not_ended", program_id=request.program_id, reason=error.refusal.reason)


async def _refuse(why: pb.Refusal, scope: Scope, receive: Receive, send: Send) -> None:
    log.info("request_refused", path=scope["path"], reason=why.reason, field=why.field)
    await error_response(why, scope["path"])(scope, receive, send)


def _too_large(max_bytes: int) -> pb.Refusal:
    message = f"the request body is larger than {max_bytes} bytes"
    return refusal("MESSAGE_TOO_LARGE", message, field="body", limit=max_bytes)


def _replayed(body: bytes, receive: Receive) -> Receive:
    delivered = False

    async def replay() -> Message:
        nonlocal delivered
        if delivered:
            return await receive()
        delivered = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
