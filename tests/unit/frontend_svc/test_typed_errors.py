"""Errors of vLLM's routes get reasons; what has one, and what is no error, passes as it is."""

import json
from typing import Any

import httpx
import pytest
import structlog
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import ASGIApp

from frontend_svc.typed_errors import REASONS, TypedErrors, refusal_of
from svc_runtime.rpc_errors import HTTP_OF_REASON

CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
TOO_LONG = (
    "This model's maximum context length is 512 tokens. However, your prompt contains 600 input tokens, "
    "which exceeds this limit even without any output tokens. (parameter=input_tokens, value=600)"
)


def vllm_error(message: str, code: int = 400, param: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": "BadRequestError", "param": param, "code": code}}


async def answer_of(app: ASGIApp, path: str = CHAT) -> httpx.Response:
    transport = httpx.ASGITransport(TypedErrors(app))
    async with httpx.AsyncClient(transport=transport, base_url="http://typed") as client:
        return await client.post(path)


@pytest.mark.parametrize(
    ("message", "param", "expected"),
    [
        ("The model `x` does not exist. Valid aliases: tiny.", "model", ("MODEL_UNKNOWN", "model", "", "")),
        (TOO_LONG, "input_tokens", ("PROMPT_TOO_LONG", "prompt", "512", "600")),
        (TOO_LONG, None, ("PROMPT_TOO_LONG", "prompt", "512", "600")),
        (
            "max_tokens must be at least 1, got -1. (parameter=max_tokens, value=-1)",
            "max_tokens",
            ("PARAMETER_OUT_OF_RANGE", "max_tokens", "at least 1", "-1"),
        ),
        (
            "n must be at most 16384, got 20000. To increase this limit, ...",
            None,
            ("PARAMETER_OUT_OF_RANGE", "n", "at most 16384", "20000"),
        ),
        ("Token id 99 is out of vocabulary", None, ("INVALID_TOKEN_ID", "", "", "")),
        ("You must pass at least one prompt", None, ("PROMPT_EMPTY", "prompt", "", "")),
        ("1 validation error:\n  {'type': 'json_invalid'}", "body.0", ("PARAMETER_INVALID", "body", "", "")),
        ("whatever else", "body.temperature", ("PARAMETER_INVALID", "temperature", "", "")),
    ],
)
def test_the_words_of_vllm_become_a_reason(
    message: str, param: str | None, expected: tuple[str, str, str, str]
) -> None:
    why = refusal_of(400, {"message": message, "param": param})
    assert (why.reason, why.field, why.limit, why.value) == expected
    assert "parameter=" not in why.message


def test_no_place_in_a_source_is_told() -> None:
    why = refusal_of(400, {"message": 'no grammar: [11:25:54] <path>:4944: Unsupported type "no"'})
    assert why.message == 'no grammar: Unsupported type "no"'


def test_every_reason_has_a_status() -> None:
    assert {reason for reason, _ in REASONS} <= HTTP_OF_REASON.keys()


async def test_an_error_keeps_its_status_and_gets_a_reason() -> None:
    response = await answer_of(JSONResponse(vllm_error(TOO_LONG), 422))
    assert response.status_code == response.json()["error"]["code"] == 422
    assert response.json()["error"]["reason"] == "PROMPT_TOO_LONG"
    assert int(response.headers["content-length"]) == len(response.content)


async def test_anthropics_routes_have_their_shape() -> None:
    body = {"type": "error", "error": {"type": "BadRequestError", "message": TOO_LONG}}
    answer = (await answer_of(JSONResponse(body, 400), MESSAGES)).json()
    error = answer["error"]
    assert (answer["type"], error["type"], error["reason"]) == (
        "error", "invalid_request_error", "PROMPT_TOO_LONG",
    )  # fmt: skip


async def test_our_own_fault_is_logged_and_not_told() -> None:
    with structlog.testing.capture_logs() as lines:
        response = await answer_of(JSONResponse(vllm_error("KeyError: 'secret'", 500), 500))
    assert response.json()["error"]["reason"] == "INTERNAL"
    assert "secret" not in response.text
    assert [line["problem"] for line in lines if line["event"] == "request_failed"] == ["KeyError: 'secret'"]


async def test_the_routers_own_errors_too() -> None:
    response = await answer_of(JSONResponse({"detail": "Method Not Allowed"}, 405, {"Allow": "GET"}))
    assert (response.status_code, response.json()["error"]["reason"]) == (405, "ROUTE_UNKNOWN")
    assert response.headers["Allow"] == "GET"


async def test_what_is_typed_or_empty_or_no_error_passes() -> None:
    typed = {"error": {"reason": "PROGRAM_UNKNOWN", "message": "m", "anything": 1}}
    assert (await answer_of(JSONResponse(typed, 404))).json() == typed
    assert (await answer_of(Response(status_code=503))).content == b""
    assert (await answer_of(JSONResponse({"error": {"message": "no"}}))).json() == {
        "error": {"message": "no"}
    }


def stream_of(*events: object) -> StreamingResponse:
    async def lines():  # type: ignore[no-untyped-def]
        for event in events:
            yield f"data: {json.dumps(event)}\n\n"
        yield "data: [DONE]\n\n"

    return StreamingResponse(lines(), media_type="text/event-stream")


async def test_a_stream_that_begins_with_an_error_is_an_http_error() -> None:
    response = await answer_of(stream_of(vllm_error(TOO_LONG)))
    assert (response.status_code, response.headers["content-type"]) == (400, "application/json")
    assert response.json()["error"]["reason"] == "PROMPT_TOO_LONG"


async def test_an_error_in_a_stream_gets_a_reason_and_the_rest_is_untouched() -> None:
    token = {"choices": [{"delta": {"content": 'data: {"error"'}}]}
    response = await answer_of(stream_of(token, vllm_error("n must be at least 1, got 0.")))
    first, second, done, _ = response.text.split("\n\n")
    assert response.status_code == 200
    assert json.loads(first[6:]) == token
    assert json.loads(second[6:])["error"]["reason"] == "PARAMETER_OUT_OF_RANGE"
    assert done == "data: [DONE]"
