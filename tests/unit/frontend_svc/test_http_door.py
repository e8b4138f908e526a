"""What every HTTP request passes before the routes, with a small ASGI application in vLLM's place."""

import asyncio
import json
from collections.abc import Awaitable, Callable

import httpx
import pytest
from starlette.responses import JSONResponse, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from frontend_svc.auth import ApiKeys
from frontend_svc.call_context import CallRegistry
from frontend_svc.errors import refusal
from frontend_svc.http_door import Authentication, BodyLimit, ProgramDoor
from frontend_svc.request_scope import RequestScope, current_scope
from protos.autellix.scheduler.v1 import scheduler_pb2 as pb
from tests.unit.frontend_svc.test_request_scope import Programs

CHAT = "/v1/chat/completions"
Route = Callable[[RequestScope, Scope, Receive, Send], Awaitable[None]]


def the_request() -> RequestScope:
    request = current_scope.get()
    assert request is not None
    return request


def app_of(route: Route) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await route(the_request(), scope, receive, send)

    return app


async def call_and_answer(request: RequestScope, scope: Scope, receive: Receive, send: Send) -> None:
    """A route that makes one call, which answers at once."""
    context = await request.next_call()
    request.answered = True
    body = await receive()
    await JSONResponse({"program_id": context.program_id, "body": body["body"].decode()})(
        scope, receive, send
    )


class Door:
    """All three layers around a route."""

    def __init__(self, route: Route = call_and_answer, *, keys: ApiKeys | None = None, max_bytes: int = 1000):
        self.programs = Programs()
        self.unavailable: pb.Refusal | None = None
        self.served: list[tuple[str, int | None, str]] = []
        door = ProgramDoor(
            app_of(route),
            programs=self.programs,
            unavailable=lambda: self.unavailable,
            calls=CallRegistry(),
            served=lambda *row: self.served.append(row),
        )
        app = Authentication(BodyLimit(door, max_bytes=max_bytes), keys=keys or ApiKeys())
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://door")

    async def post(self, path: str = CHAT, body: object = None, **options: object) -> httpx.Response:
        return await self.client.post(path, json=body or {"messages": []}, **options)


async def test_the_response_names_program_session_and_call() -> None:
    door = Door()
    response = await door.post(headers={"X-Session-ID": "mine"})
    assert response.headers["X-Autellix-Program-Id"] == response.json()["program_id"]
    assert response.headers["X-Autellix-Session"] == "mine"
    assert len(response.headers["X-Autellix-Call-Id"]) == 36
    assert door.served == [(CHAT, 200, "x-session-id")]


async def test_the_body_reaches_the_route_unchanged() -> None:
    response = await Door().post(body={"messages": [], "session_id": "s"})
    assert json.loads(response.json()["body"]) == {"messages": [], "session_id": "s"}


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_over_the_limit_is_refused_before_the_route(chunked: bool) -> None:
    door = Door(max_bytes=100)

    async def pieces():  # type: ignore[no-untyped-def]
        for _ in range(20):
            yield b"x" * 10

    response = await door.client.post(CHAT, content=pieces() if chunked else b"x" * 200)
    assert response.status_code == 413
    assert response.json()["error"]["reason"] == "MESSAGE_TOO_LARGE"
    assert door.served == []


async def test_a_key_is_asked_for_and_never_shown() -> None:
    door = Door(keys=ApiKeys([("ann", "k1")]))
    refused = await door.post(headers={"Authorization": "Bearer wrong-key"})
    assert refused.status_code == 401
    assert refused.headers["WWW-Authenticate"] == "Bearer"
    assert "wrong-key" not in refused.text
    assert (await door.post(headers={"x-api-key": "k1"})).status_code == 200
    assert door.programs.opened[0]["tenant"] == "ann"


async def test_nothing_is_served_while_unavailable_and_the_client_is_told_when_to_come_back() -> None:
    door = Door()
    door.unavailable = refusal("SCHEDULER_UNAVAILABLE", "away", retry_after_s=1.2)
    response = await door.post()
    assert response.status_code == 503
    assert response.headers["Retry-After"] == "2"
    assert response.json()["error"]["reason"] == "SCHEDULER_UNAVAILABLE"


async def test_a_bad_key_of_the_client_is_a_typed_error() -> None:
    response = await Door().post(body={"program_id": 7})
    assert response.status_code == 400
    assert response.json()["error"]["field"] == "body.program_id"


async def test_a_name_that_no_header_can_hold_is_left_out() -> None:
    response = await Door().post(body={"session_id": "программа"})
    assert response.status_code == 200
    assert "X-Autellix-Session" not in response.headers
    assert "X-Autellix-Program-Id" in response.headers


async def refused_stream(request: RequestScope, scope: Scope, receive: Receive, send: Send) -> None:
    """vLLM's way: 200 and a first event, then the call is refused, then an error event."""

    async def events():  # type: ignore[no-untyped-def]
        yield "data: created\n\n"
        request.refuse(refusal("PROGRAM_UNKNOWN", "no such program", field="program_id", value="p"))
        yield "data: error\n\n"

    await StreamingResponse(events(), media_type="text/event-stream")(scope, receive, send)


async def test_a_stream_refused_before_its_first_token_is_a_real_status() -> None:
    response = await Door(refused_stream).post()
    assert response.status_code == 404
    assert response.json()["error"] == {
        "message": "no such program",
        "type": "NotFound",
        "param": "program_id",
        "code": 404,
        "reason": "PROGRAM_UNKNOWN",
        "field": "program_id",
        "limit": "",
        "value": "p",
    }


async def test_anthropic_clients_get_their_own_shape() -> None:
    response = await Door(refused_stream).post("/v1/messages")
    assert response.json()["type"] == "error"
    assert response.json()["error"]["type"] == "not_found_error"


async def raising(request: RequestScope, scope: Scope, receive: Receive, send: Send) -> None:
    """A route that cannot cope with the refusal of its call."""
    request.refuse(refusal("QUEUE_FULL", "full", retry_after_s=1))
    raise RuntimeError("response already started")


async def test_a_route_that_raises_on_a_refusal_still_gets_it_out() -> None:
    assert (await Door(raising).post()).status_code == 429


async def test_an_error_of_ours_is_not_swallowed() -> None:
    async def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        await Door(broken).post()


async def lost_in_mid_stream(request: RequestScope, scope: Scope, receive: Receive, send: Send) -> None:
    request.answered = True
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"data: token\n\n", "more_body": True})
    request.refuse(refusal("EXECUTOR_FAILED", "lost"))
    raise RuntimeError("the generator failed")


async def test_a_stream_that_breaks_later_ends_with_a_typed_event() -> None:
    response = await Door(lost_in_mid_stream).post()
    first, last = response.text.strip().split("\n\n")
    assert first == "data: token"
    assert last.startswith("event: error\ndata: ")
    assert json.loads(last.partition("data: ")[2])["error"]["reason"] == "EXECUTOR_FAILED"


async def test_several_calls_of_an_anonymous_request_end_its_program() -> None:
    door = Door()
    response = await door.post(body={"n": 2})
    async with asyncio.timeout(5):
        await door.programs.one_ended.wait()
    assert door.programs.ended == [response.headers["X-Autellix-Program-Id"]]


async def test_other_routes_pass_untouched() -> None:
    async def plain(scope: Scope, receive: Receive, send: Send) -> None:
        assert current_scope.get() is None
        await JSONResponse({})(scope, receive, send)

    door = ProgramDoor(plain, programs=Programs(), unavailable=lambda: None, calls=CallRegistry())
    app = Authentication(BodyLimit(door, max_bytes=100), keys=ApiKeys())
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://door")
    assert (await client.get("/v1/models")).status_code == 200
    assert (await client.post("/tokenize", json={})).status_code == 200
