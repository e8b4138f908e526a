"""One request: its program is opened by its first call and ended when it should be."""

import asyncio

import pytest

from frontend_svc.call_context import CallRegistry
from frontend_svc.errors import Refused, refusal
from frontend_svc.identity import Identity
from frontend_svc.request_scope import RequestScope
from protos.autellix.scheduler.v1 import scheduler_pb2 as pb


class Programs:
    """Remembers what was opened and ended; `live` are the programs of session keys."""

    def __init__(self) -> None:
        self.opened: list[dict[str, object]] = []
        self.ended: list[str] = []
        self.one_ended = asyncio.Event()
        self.live: dict[str, str] = {}

    async def open_program(self, **request: object) -> tuple[pb.ProgramRecord, bool]:
        await asyncio.sleep(0)
        self.opened.append(request)
        key, fresh = str(request["session_key"]), str(request["program_id"])
        program_id = self.live.setdefault(key, fresh) if key else fresh
        return pb.ProgramRecord(program_id=program_id), program_id == fresh

    async def end_program(self, *, tenant: str, program_id: str) -> pb.ProgramRecord:
        self.ended.append(program_id)
        self.one_ended.set()
        return pb.ProgramRecord(program_id=program_id)


def scope(programs: Programs, calls: CallRegistry | None = None, **identity: object) -> RequestScope:
    registry = CallRegistry() if calls is None else calls
    return RequestScope("ann", Identity(**identity), programs, registry)


async def test_a_request_without_calls_leaves_no_program() -> None:
    programs = Programs()
    request = scope(programs)
    await request.finish()
    assert (programs.opened, programs.ended, request.program_id) == ([], [], "")


async def test_parallel_calls_share_one_program_and_differ_in_id() -> None:
    programs = Programs()
    request = scope(programs, session_key="s")
    contexts = await asyncio.gather(*(request.next_call() for _ in range(3)))
    assert len(programs.opened) == 1
    assert {context.program_id for context in contexts} == {request.program_id}
    first = request.call_ids[0]
    assert list(request.call_ids) == [first, f"{first}-1", f"{first}-2"]


async def test_the_same_key_finds_the_same_program() -> None:
    programs = Programs()
    first, second = scope(programs, session_key="s"), scope(programs, session_key="s")
    await first.next_call()
    await second.next_call()
    assert first.program_id == second.program_id
    await first.finish()
    assert programs.ended == []


@pytest.mark.parametrize(
    ("identity", "single_call", "ends"),
    [
        ({"single": True}, True, False),
        ({"single": False}, False, True),
        ({"session_key": "s", "single": True}, False, False),
        ({"session_key": "s", "final": True}, False, True),
    ],
    ids=["one anonymous call", "several anonymous calls", "session", "last request of a session"],
)
async def test_who_ends_the_program(identity: dict[str, object], single_call: bool, ends: bool) -> None:
    programs = Programs()
    request = scope(programs, **identity)
    await request.next_call()
    await request.finish()
    assert programs.opened[0]["single_call"] is single_call
    assert programs.ended == ([request.program_id] if ends else [])


async def test_a_program_whose_only_call_was_refused_is_ended() -> None:
    programs = Programs()
    request = scope(programs, single=True)
    await request.next_call()
    request.refuse(refusal("QUEUE_FULL", "full"))
    await request.finish()
    assert programs.ended == [request.program_id]


async def test_a_named_program_is_not_opened() -> None:
    programs = Programs()
    request = scope(programs, program_id="p", thread_id="t", parent_call_ids=("x",))
    context = await request.next_call()
    assert programs.opened == []
    assert (context.tenant, context.program_id, context.thread_id) == ("ann", "p", "t")
    assert context.parent_call_ids == ("x",)


async def test_calls_can_be_found_by_id_while_the_request_lives() -> None:
    calls = CallRegistry()
    request = scope(Programs(), calls)
    context = await request.next_call()
    assert calls.get(context.call_id) is context
    await request.finish()
    assert calls.get(context.call_id) is None


async def test_the_first_refusal_is_the_one_that_counts() -> None:
    request = scope(Programs())
    request.refuse(refusal("PROGRAM_ENDED", "first"))
    request.refuse(refusal("QUEUE_FULL", "second"))
    assert request.answered
    assert request.refusal is not None
    assert request.refusal.reason == "PROGRAM_ENDED"


async def test_a_program_that_cannot_be_opened_fails_the_call() -> None:
    programs = Programs()

    async def refuse(**_: object) -> tuple[pb.ProgramRecord, bool]:
        raise Refused(refusal("PROGRAM_LIMIT", "too many"))

    programs.open_program = refuse  # type: ignore[method-assign]
    request = scope(programs)
    with pytest.raises(Refused):
        await request.next_call()
    assert list(request.call_ids) == []
