"""The gRPC door over a real connection: every RPC, typed errors, keys, deadlines, clients that leave."""

import asyncio
import re
from contextlib import suppress

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from frontend_svc.errors import Refused, refusal
from protos.autellix.program.v1 import program_pb2 as pb
from protos.autellix.scheduler.v1 import scheduler_pb2 as scheduler_pb
from svc_runtime.rpc_errors import parse_error
from tests.unit.program_api.conftest import ACME, RIVAL, Served
from tests.unit.program_api.fakes import wait_until

UUID7 = re.compile(r"^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$")
TIMEOUT_S = 10


async def start(served: Served, **request: str) -> pb.Program:
    response = await served.stub.StartProgram(
        pb.StartProgramRequest(**request), metadata=ACME, timeout=TIMEOUT_S
    )
    return response.program


def generate(served: Served, metadata=ACME, timeout=TIMEOUT_S, **request):
    if not {"text", "chat", "token_ids"} & request.keys():
        request["text"] = "hi"
    request.setdefault("sampling", pb.SamplingOptions(max_tokens=3))
    return served.stub.Generate(pb.GenerateRequest(**request), metadata=metadata, timeout=timeout)


async def failure_of(awaitable):
    with pytest.raises(grpc.RpcError) as caught:
        await awaitable
    return parse_error(caught.value)


async def drained(stream) -> list[pb.GenerateResponse]:
    return [piece async for piece in stream]


async def test_a_program_from_start_to_end(served: Served) -> None:
    program = await start(served, session="s-1", class_name="coding-agent")
    assert UUID7.match(program.program_id)
    assert (program.session, program.class_name) == ("s-1", "coding-agent")
    assert program.state == pb.PROGRAM_STATE_IDLE

    pieces = await drained(generate(served, program_id=program.program_id))
    assert UUID7.match(pieces[0].call_id)
    assert pieces[0].program_id == program.program_id
    assert "".join(piece.text for piece in pieces) == "0 1 2 "
    assert [token for piece in pieces for token in piece.token_ids] == [0, 1, 2]
    assert pieces[-1].finish_reason == pb.FINISH_REASON_LENGTH
    assert pieces[-1].usage == pb.Usage(prompt_tokens=3, completion_tokens=3, cached_tokens=1)
    assert all(piece.finish_reason == 0 and not piece.HasField("usage") for piece in pieces[:-1])

    request = pb.EndProgramRequest(program_id=program.program_id)
    ended = await served.stub.EndProgram(request, metadata=ACME, timeout=TIMEOUT_S)
    assert ended.program.state == pb.PROGRAM_STATE_ENDED


async def test_get_list_and_cancel(served: Served) -> None:
    program = await start(served)
    key = {"metadata": ACME, "timeout": TIMEOUT_S}
    got = await served.stub.GetProgram(pb.GetProgramRequest(program_id=program.program_id), **key)
    listed = await served.stub.ListPrograms(pb.ListProgramsRequest(), **key)
    assert got.program == program
    assert list(listed.programs) == [program]
    cancelled = await served.stub.CancelProgram(pb.CancelProgramRequest(program_id=program.program_id), **key)
    assert cancelled.program.state == pb.PROGRAM_STATE_CANCELLED


async def test_every_field_of_a_program_reaches_the_client(served: Served) -> None:
    program = await start(served)
    record = served.programs.records["acme", program.program_id]
    record.MergeFrom(
        scheduler_pb.ProgramRecord(
            state=scheduler_pb.PROGRAM_STATE_TIMED_OUT,
            live_calls=1,
            finished_calls=2,
            tokens=3,
            attained_service_s=4.5,
            waiting_s=5.5,
            level=6,
            age_s=7.5,
            session_key="s",
            class_name="c",
        )
    )
    request = pb.GetProgramRequest(program_id=program.program_id)
    got = await served.stub.GetProgram(request, metadata=ACME, timeout=TIMEOUT_S)
    assert got.program == pb.Program(
        program_id=program.program_id, session="s", class_name="c", state=pb.PROGRAM_STATE_TIMED_OUT,
        live_calls=1, finished_calls=2, tokens=3, attained_service_s=4.5, waiting_s=5.5, level=6, age_s=7.5,
    )  # fmt: skip


async def test_sampling_options_keep_absent_and_zero_apart(served: Served) -> None:
    seen = []
    prepare = served.model.prepare

    async def spy(request):
        seen.append(request)
        return await prepare(request)

    served.model.prepare = spy
    await drained(generate(served, sampling=pb.SamplingOptions(temperature=0, max_tokens=1, stop=["x"])))
    await drained(generate(served, chat=pb.Chat(messages=[pb.ChatMessage(role="user", content="é")])))
    assert (seen[0].sampling.temperature, seen[0].sampling.top_p) == (0.0, None)
    assert (seen[0].sampling.stop, seen[0].sampling.logprobs) == (("x",), None)
    assert seen[1].prompt.messages == (("user", "é"),)
    assert 0 < seen[0].deadline_s < TIMEOUT_S + 1, "the client rounds its timeout"


@pytest.mark.parametrize(
    "metadata", [None, (("authorization", "Bearer wrong"),), (("authorization", "key-of-acme"),)]
)
async def test_without_a_known_key_nothing_is_answered(served: Served, metadata) -> None:
    unary = served.stub.ListPrograms(pb.ListProgramsRequest(), metadata=metadata, timeout=TIMEOUT_S)
    for failed in (await failure_of(unary), await failure_of(drained(generate(served, metadata=metadata)))):
        assert (failed.code, failed.reason) == (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")
        assert "acme" not in failed.message
    assert served.model.contexts == []


async def test_health_needs_no_key(served: Served) -> None:
    health = health_pb2_grpc.HealthStub(served.channel)
    response = await health.Check(
        health_pb2.HealthCheckRequest(service="autellix.program.v1.ProgramService"), timeout=TIMEOUT_S
    )
    assert response.status == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_a_foreign_program_is_exactly_like_an_unknown_one(served: Served) -> None:
    program = await start(served)
    failures = []
    for program_id in (program.program_id, "018f0000-0000-7000-8000-000000000000"):
        request = pb.EndProgramRequest(program_id=program_id)
        failures.append(await failure_of(served.stub.EndProgram(request, metadata=RIVAL, timeout=TIMEOUT_S)))
    assert failures[0] == failures[1]
    assert (failures[0].code, failures[0].reason) == (grpc.StatusCode.NOT_FOUND, "PROGRAM_UNKNOWN")


@pytest.mark.parametrize(
    ("request_", "reason", "field"),
    [
        ({"sampling": pb.SamplingOptions(max_tokens=0)}, "PARAMETER_OUT_OF_RANGE", "sampling.max_tokens"),
        ({"sampling": pb.SamplingOptions(json_schema="{")}, "PARAMETER_INVALID", "sampling.json_schema"),
        ({"text": ""}, "PROMPT_EMPTY", "text"),
        ({"text": None}, "PROMPT_EMPTY", "prompt"),
        ({"token_ids": pb.TokenIds(ids=range(17)), "text": None}, "PROMPT_TOO_LONG", "prompt"),
        ({"thread_id": "t" * 1_000_000}, "PARAMETER_OUT_OF_RANGE", "thread_id"),
    ],
)
async def test_a_bad_generate_is_a_typed_error(served: Served, request_, reason: str, field: str) -> None:
    failed = await failure_of(drained(generate(served, **request_)))
    assert (failed.code, failed.reason, failed.field) == (grpc.StatusCode.INVALID_ARGUMENT, reason, field)
    assert served.programs.records == {}


async def test_retry_after_travels(served: Served) -> None:
    served.model.fails_with = Refused(refusal("QUEUE_FULL", "full", retry_after_s=2.5))
    failed = await failure_of(drained(generate(served)))
    assert (failed.code, failed.retry_after_s) == (grpc.StatusCode.RESOURCE_EXHAUSTED, 2.5)


async def test_our_own_failure_tells_nothing_of_its_cause(served: Served) -> None:
    served.model.fails_with = RuntimeError("/secret/path of acme")
    failed = await failure_of(drained(generate(served)))
    assert (failed.code, failed.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert "secret" not in failed.message


async def test_the_clients_deadline_cancels_the_call_as_a_deadline(served: Served) -> None:
    served.model.pause_at = 1
    failed = await failure_of(drained(generate(served, timeout=0.3)))
    assert failed.code == grpc.StatusCode.DEADLINE_EXCEEDED
    await wait_until(lambda: served.model.cancelled)
    assert list(served.model.cancelled.values()) == ["deadline"]
    await wait_until(lambda: len(served.calls) == 0)


async def test_a_client_that_hangs_up_cancels_the_call(served: Served) -> None:
    served.model.pause_at = 1
    stream = generate(served)
    await stream.read()
    await served.model.paused.wait()
    stream.cancel()
    await wait_until(lambda: served.model.cancelled)
    assert list(served.model.cancelled.values()) == ["client"]
    await wait_until(lambda: len(served.calls) == 0)


async def test_a_client_that_never_reads_holds_its_own_call_only(served: Served) -> None:
    """Flow control stops the generator; once the client has gone the call is cancelled."""
    unread = generate(served, sampling=pb.SamplingOptions(max_tokens=10_000_000), timeout=None)
    await unread.read()
    await unread.read()
    (context,) = served.model.contexts
    assert len(await drained(generate(served))) == 5
    unread.cancel()
    await wait_until(lambda: context.call_id in served.model.cancelled)


async def test_cancel_call_over_the_wire(served: Served) -> None:
    served.model.pause_at = 1
    stream = generate(served)
    first = await stream.read()
    await served.model.paused.wait()
    request = pb.CancelCallRequest(call_id=first.call_id)
    foreign = await served.stub.CancelCall(request, metadata=RIVAL, timeout=TIMEOUT_S)
    mine = await served.stub.CancelCall(request, metadata=ACME, timeout=TIMEOUT_S)
    assert (foreign.cancelled, mine.cancelled) == (False, True)
    while not (piece := await stream.read()).finish_reason:
        pass
    assert piece.finish_reason == pb.FINISH_REASON_CANCELLED
    assert await stream.read() is grpc.aio.EOF


async def test_a_watch_streams_changes_until_the_client_leaves(served: Served) -> None:
    program = await start(served)
    watch = served.stub.WatchPrograms(pb.WatchProgramsRequest(), metadata=ACME)
    assert (await watch.read()).programs[0].state == pb.PROGRAM_STATE_IDLE
    request = pb.EndProgramRequest(program_id=program.program_id)
    await served.stub.EndProgram(request, metadata=ACME, timeout=TIMEOUT_S)
    look = await asyncio.wait_for(watch.read(), TIMEOUT_S)
    assert look.programs[0].state == pb.PROGRAM_STATE_ENDED
    watch.cancel()
    await wait_until(lambda: served.programs.watchers_closed == 1)


async def test_a_megabyte_of_garbage_harms_nobody(served: Served) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(b"\x00garbage" * 131_072)
    with suppress(ConnectionError):  # the server may hang up before it has read all
        async with asyncio.timeout(TIMEOUT_S):
            while await reader.read(65_536):
                pass
    writer.close()
    assert (await start(served)).state == pb.PROGRAM_STATE_IDLE
