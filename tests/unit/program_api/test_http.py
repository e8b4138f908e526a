"""The HTTP door to programs: rows, statuses, typed errors, tenants."""

from collections.abc import AsyncIterator
from dataclasses import dataclass

import httpx
import pytest
from fastapi import FastAPI

from frontend_svc.call_context import CallRegistry
from frontend_svc.errors import Refused
from frontend_svc.http_door import Authentication
from frontend_svc.http_errors import refused_handler
from frontend_svc.ids import new_id
from frontend_svc.program_http import make_router
from frontend_svc.program_service import ProgramService
from protos.autellix.scheduler.v1 import scheduler_pb2 as pb
from tests.unit.program_api.conftest import KEYS
from tests.unit.program_api.fakes import FakeModel, FakePrograms

ACME = {"Authorization": "Bearer key-of-acme"}
RIVAL = {"x-api-key": "key-of-rival"}
ROW_KEYS = {
    "program_id", "session", "class", "state", "live_calls", "finished_calls", "tokens", "attained_service_s",
    "waiting_s", "level", "age_s",
}  # fmt: skip


@dataclass
class Site:
    """A client and the programs behind the server it talks to."""

    http: httpx.AsyncClient
    programs: FakePrograms


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    programs = FakePrograms()
    app = FastAPI()
    service = ProgramService(programs, FakeModel(), CallRegistry(), new_id)
    app.include_router(make_router(service, lambda request: request.state.tenant))
    app.add_exception_handler(Refused, refused_handler)
    transport = httpx.ASGITransport(app=Authentication(app, keys=KEYS))
    async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=ACME) as http:
        yield Site(http, programs)


async def started(site: Site, **body: str) -> str:
    return (await site.http.post("/v1/programs", json=body)).json()["program_id"]


async def test_a_program_is_made_once_and_found_again(site: Site) -> None:
    body = {"session": "run-7", "class": "coding-agent"}
    made = await site.http.post("/v1/programs", json=body)
    found = await site.http.post("/v1/programs", json=body)
    assert (made.status_code, made.json()["created"]) == (201, True)
    assert (found.status_code, found.json()["created"]) == (200, False)
    assert made.json()["program_id"] == found.json()["program_id"]
    assert (made.json()["session"], made.json()["class"], made.json()["state"]) == (*body.values(), "idle")


async def test_no_body_is_a_fresh_program(site: Site) -> None:
    assert (await site.http.post("/v1/programs")).status_code == 201


async def test_the_list_has_every_column_and_ended_programs(site: Site) -> None:
    running, ended = await started(site), await started(site)
    site.programs.records["acme", running].MergeFrom(
        pb.ProgramRecord(
            state=pb.PROGRAM_STATE_RUNNING,
            live_calls=1,
            finished_calls=2,
            tokens=3,
            attained_service_s=4.5,
            waiting_s=5.5,
            level=6,
        )
    )
    await site.http.delete(f"/v1/programs/{ended}")
    first, second = (await site.http.get("/v1/programs")).json()["programs"]
    assert first.keys() == ROW_KEYS
    assert (first["state"], second["state"]) == ("running", "ended")
    assert [first[key] for key in ("live_calls", "finished_calls", "tokens")] == [1, 2, 3]
    assert [first[key] for key in ("attained_service_s", "waiting_s", "level")] == [4.5, 5.5, 6]


async def test_one_program(site: Site) -> None:
    program_id = await started(site, session="s")
    row = (await site.http.get(f"/v1/programs/{program_id}")).json()
    assert (row["program_id"], row["session"]) == (program_id, "s")


@pytest.mark.parametrize(
    ("query", "state"),
    [("", "ended"), ("?cancel=false", "ended"), ("?cancel=true", "cancelled"), ("?cancel", "cancelled")],
)
async def test_delete_ends_or_cancels(site: Site, query: str, state: str) -> None:
    program_id = await started(site)
    assert (await site.http.delete(f"/v1/programs/{program_id}{query}")).json()["state"] == state


@pytest.mark.parametrize("method", ["get", "delete"])
async def test_a_foreign_program_is_exactly_like_an_unknown_one(site: Site, method: str) -> None:
    foreign = await started(site)
    answers = []
    for program_id in (foreign, new_id()):
        answer = await getattr(site.http, method)(
            f"/v1/programs/{program_id}", headers=RIVAL | {"Authorization": ""}
        )
        answers.append((answer.status_code, answer.json()))
    assert answers[0] == answers[1]
    assert (answers[0][0], answers[0][1]["error"]["reason"]) == (404, "PROGRAM_UNKNOWN")
    assert (await site.http.get("/v1/programs", headers=RIVAL | {"Authorization": ""})).json() == {
        "programs": []
    }


@pytest.mark.parametrize(
    ("content", "reason", "field"),
    [
        (b"{", "PARAMETER_INVALID", "body"),
        (b"\xff\xfe\x00", "PARAMETER_INVALID", "body"),
        (b"[" * 100_000, "PARAMETER_INVALID", "body"),
        (b"[]", "PARAMETER_INVALID", "body"),
        (b'{"sesion": "x"}', "PARAMETER_INVALID", "body"),
        (b'{"session": 3}', "PARAMETER_INVALID", "session"),
        (b'{"session": "\\ud800"}', "PARAMETER_INVALID", "session"),
        (b'{"session": "%s"}' % (b"s" * 257), "PARAMETER_OUT_OF_RANGE", "session"),
        (b'{"class": "%s"}' % (b"c" * 65), "PARAMETER_OUT_OF_RANGE", "class"),
    ],
)
async def test_a_bad_body_is_a_typed_400(site: Site, content: bytes, reason: str, field: str) -> None:
    answer = await site.http.post("/v1/programs", content=content)
    error = answer.json()["error"]
    assert (answer.status_code, error["reason"], error["field"]) == (400, reason, field)
    assert len(answer.content) < 600
    assert site.programs.records == {}


async def test_a_bad_flag_ends_nothing(site: Site) -> None:
    program_id = await started(site)
    answer = await site.http.delete(f"/v1/programs/{program_id}?cancel=maybe")
    assert (answer.status_code, answer.json()["error"]["field"]) == (400, "cancel")
    assert site.programs.records["acme", program_id].state == pb.PROGRAM_STATE_IDLE


async def test_no_key_no_answer(site: Site) -> None:
    answer = await site.http.get("/v1/programs", headers={"Authorization": "Bearer wrong"})
    assert (answer.status_code, answer.json()["error"]["reason"]) == (401, "UNAUTHENTICATED")
