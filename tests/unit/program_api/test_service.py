"""The logic both doors share: tenants, one-call programs, deadlines, cancels, and what is left behind."""

import asyncio
from itertools import count

import pytest

from frontend_svc.call_context import CallRegistry
from frontend_svc.errors import Refused, refusal
from frontend_svc.program_calls import CallRequest, Finish, Piece, Sampling, TextPrompt, TokenPrompt
from frontend_svc.program_service import ProgramService
from protos.autellix.scheduler.v1 import scheduler_pb2 as pb
from tests.unit.program_api.fakes import FakeModel, FakePrograms, wait_until

TENANT, OTHER = "acme", "rival"


class Stack:
    """A service on fakes."""

    def __init__(self, **model: object) -> None:
        numbers = count(1)
        self.programs = FakePrograms()
        self.model = FakeModel(**model)
        self.calls = CallRegistry()
        self.service = ProgramService(self.programs, self.model, self.calls, lambda: f"id-{next(numbers)}")

    async def started(self, session: str = "") -> str:
        record, _ = await self.service.start_program(TENANT, session=session)
        return record.program_id

    def stream(self, tenant: str = TENANT, *, max_tokens: int = 3, **request: object):
        asked = CallRequest(prompt=TextPrompt("hi"), sampling=Sampling(max_tokens=max_tokens), **request)
        return self.service.generate(tenant, asked)

    async def generated(self, **request: object) -> list[Piece]:
        return [piece async for piece in self.stream(**request)]


async def test_a_call_names_itself_first_and_ends_with_its_usage() -> None:
    stack = Stack()
    program_id = await stack.started()
    first, *middle, last = await stack.generated(program_id=program_id, thread_id="t", parent_call_ids=("c",))
    assert (first.program_id, first.token_ids, first.text) == (program_id, (), "")
    assert [piece.token_ids for piece in middle] == [(0,), (1,), (2,)]
    assert (last.finish, last.usage.completion_tokens) == (Finish.LENGTH, 3)
    (context,) = stack.model.contexts
    assert (context.call_id, context.tenant, context.program_id) == (first.call_id, TENANT, program_id)
    assert (context.thread_id, context.parent_call_ids, context.deadline) == ("t", ("c",), None)


async def test_the_registry_holds_a_call_exactly_while_it_lives() -> None:
    stack = Stack(pause_at=1)
    stream = stack.stream()
    first = await anext(stream)
    assert stack.calls.get(first.call_id).tenant == TENANT
    stack.model.resume.set()
    assert [piece async for piece in stream][-1].finish is Finish.LENGTH
    assert len(stack.calls) == 0


async def test_a_call_without_a_program_gets_one_of_its_own() -> None:
    stack = Stack()
    first, *_ = await stack.generated()
    record = stack.programs.records[TENANT, first.program_id]
    assert stack.programs.single_call == {first.program_id}
    assert record.state == pb.PROGRAM_STATE_IDLE, "the scheduler ends it with its call, nobody else"


async def test_a_one_call_program_is_ended_when_its_call_never_finished() -> None:
    lost = Refused(refusal("NO_EXECUTOR", "no executor"))
    stack = Stack(fails_with=lost)
    with pytest.raises(Refused) as caught:
        await stack.generated()
    assert caught.value is lost
    (record,) = stack.programs.records.values()
    assert record.state == pb.PROGRAM_STATE_ENDED
    assert len(stack.calls) == 0


async def test_a_failed_call_leaves_a_started_program_open() -> None:
    stack = Stack(fails_with=Refused(refusal("EXECUTOR_FAILED", "lost")))
    program_id = await stack.started()
    with pytest.raises(Refused):
        await stack.generated(program_id=program_id)
    assert stack.programs.records[TENANT, program_id].state == pb.PROGRAM_STATE_IDLE


@pytest.mark.parametrize("prompt", [TextPrompt(""), TokenPrompt(tuple(range(17)))])
async def test_what_is_refused_before_it_runs_touches_no_program(prompt) -> None:
    stack = Stack()
    with pytest.raises(Refused):
        await anext(stack.service.generate(TENANT, CallRequest(prompt=prompt)))
    assert stack.programs.records == {}
    assert stack.model.contexts == []


async def test_the_deadline_ends_the_call_and_is_its_cause() -> None:
    stack = Stack(pause_at=1)
    with pytest.raises(Refused) as caught:
        await stack.generated(deadline_s=0.05)
    assert caught.value.refusal.reason == "DEADLINE_EXCEEDED"
    assert list(stack.model.cancelled.values()) == ["deadline"]


async def test_a_deadline_in_the_past_starts_nothing() -> None:
    stack = Stack(pause_at=0)
    with pytest.raises(Refused) as caught:
        await stack.generated(deadline_s=0.0)
    assert caught.value.refusal.reason == "DEADLINE_EXCEEDED"


async def test_a_closed_stream_cancels_the_call_as_the_clients_doing() -> None:
    stack = Stack(pause_at=1)
    stream = stack.stream(deadline_s=60.0)
    await anext(stream)
    await anext(stream)
    await stream.aclose()
    assert list(stack.model.cancelled.values()) == ["client"]
    assert len(stack.calls) == 0
    (record,) = stack.programs.records.values()
    assert record.state == pb.PROGRAM_STATE_ENDED


async def test_a_client_that_leaves_before_the_first_token_leaves_nothing_behind() -> None:
    stack = Stack()
    stream = stack.stream()
    await anext(stream)
    await stream.aclose()
    assert stack.model.contexts == []
    assert next(iter(stack.programs.records.values())).state == pb.PROGRAM_STATE_ENDED


async def test_cancel_call_ends_the_stream_with_its_usage() -> None:
    stack = Stack(pause_at=2)
    pieces: list[Piece] = []

    async def consume() -> None:
        async for piece in stack.stream(max_tokens=9):
            pieces.append(piece)

    task = asyncio.create_task(consume())
    await stack.model.paused.wait()
    assert await stack.service.cancel_call(TENANT, pieces[0].call_id)
    await asyncio.wait_for(task, 5)
    assert (pieces[-1].finish, pieces[-1].usage.completion_tokens) == (Finish.CANCELLED, 2)
    assert not await stack.service.cancel_call(TENANT, pieces[0].call_id), "it has ended"


async def test_a_call_cancelled_before_it_reached_the_model_never_does() -> None:
    stack = Stack()
    stream = stack.stream()
    first = await anext(stream)
    assert await stack.service.cancel_call(TENANT, first.call_id)
    (last,) = [piece async for piece in stream]
    assert (last.finish, last.usage.completion_tokens) == (Finish.CANCELLED, 0)
    assert stack.model.contexts == []
    assert stack.programs.records[TENANT, first.program_id].state == pb.PROGRAM_STATE_ENDED


async def test_a_foreign_call_cannot_be_cancelled_and_looks_unknown() -> None:
    stack = Stack(pause_at=0)
    stream = stack.stream()
    first = await anext(stream)
    assert await stack.service.cancel_call(OTHER, first.call_id) is False
    assert await stack.service.cancel_call(OTHER, "no-such-call") is False
    assert not stack.calls.get(first.call_id).cancel_requested
    await stream.aclose()


async def test_a_session_key_finds_its_live_program_within_the_tenant_only() -> None:
    stack = Stack()
    first, created = await stack.service.start_program(TENANT, session="s", class_name="coder")
    again, created_again = await stack.service.start_program(TENANT, session="s")
    other, created_other = await stack.service.start_program(OTHER, session="s")
    assert (created, created_again, created_other) == (True, False, True)
    assert again.program_id == first.program_id != other.program_id
    await stack.service.end_program(TENANT, first.program_id)
    fresh, created_fresh = await stack.service.start_program(TENANT, session="s")
    assert created_fresh
    assert fresh.program_id != first.program_id


@pytest.mark.parametrize("operation", ["get_program", "end_program", "cancel_program"])
async def test_a_foreign_program_is_exactly_like_an_unknown_one(operation: str) -> None:
    stack = Stack()
    foreign = await stack.started()
    errors = []
    for program_id in (foreign, "id-never"):
        with pytest.raises(Refused) as caught:
            await getattr(stack.service, operation)(OTHER, program_id)
        errors.append(caught.value.refusal)
    assert errors[0] == errors[1]
    assert errors[0].reason == "PROGRAM_UNKNOWN"
    assert stack.programs.records[TENANT, foreign].state == pb.PROGRAM_STATE_IDLE


async def test_lists_hold_the_tenants_programs_only() -> None:
    stack = Stack()
    mine = await stack.started()
    await stack.service.start_program(OTHER)
    assert [record.program_id for record in await stack.service.list_programs(TENANT)] == [mine]


async def test_a_watch_shows_changes_and_closes_its_source() -> None:
    stack = Stack()
    program_id = await stack.started()
    looks = stack.service.watch_programs(TENANT, 0.5)
    assert (await anext(looks))[0].state == pb.PROGRAM_STATE_IDLE
    waiting = asyncio.create_task(anext(looks))
    await stack.service.end_program(TENANT, program_id)
    assert (await asyncio.wait_for(waiting, 5))[0].state == pb.PROGRAM_STATE_ENDED
    await looks.aclose()
    await wait_until(lambda: stack.programs.watchers_closed == 1)
