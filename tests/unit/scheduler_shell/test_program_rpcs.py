"""Programs over gRPC: found or opened in one piece, tenants apart, watched, listed, ended."""

import asyncio

import grpc
import pytest

from protos.autellix.scheduler.v1 import scheduler_pb2 as pb
from protos.autellix.scheduler.v1 import scheduler_pb2_grpc as pb_grpc
from svc_runtime.rpc_errors import RpcFailure, parse_error
from tests.unit.scheduler_shell.conftest import Dial, Start
from tests.unit.scheduler_shell.fake_executor import FakeExecutor
from tests.unit.scheduler_shell.fake_frontend import FakeFrontend
from tests.unit.scheduler_shell.manual_clock import ManualClock
from tests.unit.scheduler_shell.waiting import until


@pytest.fixture
async def stub(start: Start, dial: Dial) -> pb_grpc.SchedulerServiceStub:
    return pb_grpc.SchedulerServiceStub(dial(await start()))


def opening(program_id: str, **changed: object) -> pb.OpenProgramRequest:
    return pb.OpenProgramRequest(**({"tenant": "tenant", "program_id": program_id} | changed))


async def failure_of(call: grpc.aio.UnaryUnaryCall) -> RpcFailure:
    with pytest.raises(grpc.RpcError) as failed:
        await call
    return parse_error(failed.value)


async def test_a_session_key_finds_its_program_again(stub: pb_grpc.SchedulerServiceStub) -> None:
    first = await stub.OpenProgram(opening("p1", session_key="chat", class_name="agent"))
    second = await stub.OpenProgram(opening("p2", session_key="chat"))
    assert (first.created, first.program.program_id, first.program.class_name) == (True, "p1", "agent")
    assert (second.created, second.program.program_id) == (False, "p1")


async def test_opening_at_the_same_time_makes_one_program(stub: pb_grpc.SchedulerServiceStub) -> None:
    calls = [stub.OpenProgram(opening(f"p{i}", session_key="chat")) for i in range(20)]
    answers = await asyncio.gather(*calls)
    assert sum(answer.created for answer in answers) == 1
    assert len({answer.program.program_id for answer in answers}) == 1


async def test_opening_twice_with_one_id_is_safe(stub: pb_grpc.SchedulerServiceStub) -> None:
    assert (await stub.OpenProgram(opening("p1"))).created
    assert not (await stub.OpenProgram(opening("p1"))).created


async def test_without_a_key_every_program_is_new(stub: pb_grpc.SchedulerServiceStub) -> None:
    answers = [await stub.OpenProgram(opening(f"p{i}")) for i in range(3)]
    assert all(answer.created for answer in answers)


async def test_an_ended_program_is_not_reopened(stub: pb_grpc.SchedulerServiceStub) -> None:
    await stub.OpenProgram(opening("p1", session_key="chat"))
    ended = await stub.EndProgram(pb.EndProgramRequest(tenant="tenant", program_id="p1"))
    again = await stub.EndProgram(pb.EndProgramRequest(tenant="tenant", program_id="p1"))
    assert ended.program.state == again.program.state == pb.PROGRAM_STATE_ENDED
    assert (await failure_of(stub.OpenProgram(opening("p1")))).reason == "PROGRAM_ENDED"
    assert (await stub.OpenProgram(opening("p2", session_key="chat"))).created


@pytest.mark.parametrize("method", ["GetProgram", "EndProgram", "CancelProgram"])
async def test_a_foreign_program_looks_exactly_like_one_that_does_not_exist(
    stub: pb_grpc.SchedulerServiceStub, method: str
) -> None:
    await stub.OpenProgram(opening("p1"))
    rpc, message = getattr(stub, method), getattr(pb, f"{method}Request")
    foreign = await failure_of(rpc(message(tenant="stranger", program_id="p1")))
    missing = await failure_of(rpc(message(tenant="tenant", program_id="p2")))
    assert (foreign.code, foreign.reason) == (grpc.StatusCode.NOT_FOUND, "PROGRAM_UNKNOWN")
    assert (foreign.code, foreign.reason, foreign.message) == (missing.code, missing.reason, missing.message)
    assert (
        await stub.GetProgram(pb.GetProgramRequest(tenant="tenant", program_id="p1"))
    ).program.program_id == "p1"


async def test_tenants_see_their_own_programs(stub: pb_grpc.SchedulerServiceStub) -> None:
    await stub.OpenProgram(opening("p1"))
    await stub.OpenProgram(opening("p2", tenant="stranger", session_key="chat"))
    assert not (await stub.OpenProgram(opening("p1"))).created
    mine = await stub.ListPrograms(pb.ListProgramsRequest(tenant="tenant"))
    everybodys = await stub.ListPrograms(pb.ListProgramsRequest())
    assert [program.program_id for program in mine.programs] == ["p1"]
    assert [program.program_id for program in everybodys.programs] == ["p1", "p2"]


async def test_cancelling_a_program_ends_its_calls(start: Start, dial: Dial) -> None:
    server = await start()
    async with FakeExecutor(dial(server), obedient=False), FakeFrontend(dial(server)) as frontend:
        await frontend.open_program()
        await frontend.submit(1)
        await until(lambda: frontend.started)
        request = pb.CancelProgramRequest(tenant="tenant", program_id="program")
        cancelled = await frontend.programs.CancelProgram(request)
        await frontend.finish(1)
        await frontend.submit(2)
        await until(lambda: 2 in frontend.refused)
    assert cancelled.program.state == pb.PROGRAM_STATE_CANCELLED
    assert frontend.finished[1].reason == pb.FINISH_REASON_ABORT
    assert frontend.refused[2].reason == "PROGRAM_ENDED"


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"program_id": ""}, "program_id"),
        ({"program_id": "x" * 600}, "program_id"),
        ({"session_key": "x" * 600}, "session_key"),
        ({"class_name": "x" * 65}, "class_name"),
        ({"tenant": "x" * 600}, "tenant"),
    ],
)
async def test_texts_out_of_bounds_are_refused(
    stub: pb_grpc.SchedulerServiceStub, changed: dict[str, object], field: str
) -> None:
    failure = await failure_of(stub.OpenProgram(opening(**({"program_id": "p1"} | changed))))
    assert (failure.code, failure.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "PARAMETER_OUT_OF_RANGE")
    assert failure.field == field


async def test_too_many_open_programs_are_refused(start: Start, dial: Dial) -> None:
    stub = pb_grpc.SchedulerServiceStub(dial(await start(open_programs_max=2)))
    for index in range(2):
        await stub.OpenProgram(opening(f"p{index}"))
    failure = await failure_of(stub.OpenProgram(opening("p2")))
    assert (failure.code, failure.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "PROGRAM_LIMIT")


async def test_an_idle_program_times_out(start: Start, dial: Dial) -> None:
    clock = ManualClock()
    stub = pb_grpc.SchedulerServiceStub(dial(await start(clock=clock, program_idle_s=60)))
    await stub.OpenProgram(opening("p1"))
    clock.advance(61)
    await until(lambda: clock.sleeping_for(1.0), "the tick was handled")
    record = await stub.GetProgram(pb.GetProgramRequest(tenant="tenant", program_id="p1"))
    assert record.program.state == pb.PROGRAM_STATE_TIMED_OUT


async def test_a_session_that_is_opened_again_does_not_time_out_before_its_call(
    start: Start, dial: Dial
) -> None:
    clock = ManualClock()
    stub = pb_grpc.SchedulerServiceStub(dial(await start(clock=clock, program_idle_s=60)))
    await stub.OpenProgram(opening("p1", session_key="chat"))
    clock.advance(59.5)
    await stub.OpenProgram(opening("p2", session_key="chat"))
    clock.advance(1.0)
    again = await stub.OpenProgram(opening("p3", session_key="chat"))
    assert again.program.program_id == "p1"
    assert not again.created


async def test_watching_shows_programs_only_when_they_changed(start: Start, dial: Dial) -> None:
    clock = ManualClock()
    stub = pb_grpc.SchedulerServiceStub(dial(await start(clock=clock)))
    await stub.OpenProgram(opening("p1"))
    watch = stub.WatchPrograms(pb.WatchProgramsRequest(tenant="tenant", interval_s=0.5))
    assert [program.program_id for program in (await watch.read()).programs] == ["p1"]
    for _ in range(3):  # time passes and nothing changes
        await until(lambda: clock.sleeping_for(0.5))
        clock.advance(0.5)
    await until(lambda: clock.sleeping_for(0.5))
    await stub.OpenProgram(opening("p2"))
    clock.advance(0.5)
    assert [program.program_id for program in (await watch.read()).programs] == ["p1", "p2"]


@pytest.mark.parametrize("interval_s", [-1.0, 0.01, 1e9, float("nan")])
async def test_a_watching_interval_out_of_bounds_is_refused(
    stub: pb_grpc.SchedulerServiceStub, interval_s: float
) -> None:
    watch = stub.WatchPrograms(pb.WatchProgramsRequest(interval_s=interval_s))
    with pytest.raises(grpc.RpcError) as failed:
        await watch.read()
    assert parse_error(failed.value).field == "interval_s"


async def test_executors_are_listed(start: Start, dial: Dial) -> None:
    server = await start()
    async with FakeExecutor(dial(server), epoch=3), FakeFrontend(dial(server)) as frontend:
        (executor,) = (await frontend.programs.ListExecutors(pb.ListExecutorsRequest())).executors
    assert (executor.executor_id, executor.epoch, executor.model) == ("executor-a", 3, "test-model")
    assert (executor.num_blocks, executor.free_blocks, executor.simulated) == (65, 64, True)


async def test_statistics_count_calls_refused_at_the_door_too(start: Start, dial: Dial) -> None:
    server = await start()
    async with FakeFrontend(dial(server)) as frontend:
        await frontend.submit(1, max_tokens=0)  # by the shell
        await frontend.submit(2)  # by the core: no such program
        await until(lambda: len(frontend.refused) == 2)
        statistics = await frontend.programs.GetStatistics(pb.GetStatisticsRequest())
    assert (statistics.calls_refused, statistics.policy) == (2, "plas")


async def test_nothing_new_is_opened_while_draining(start: Start, dial: Dial) -> None:
    server = await start()
    stub = pb_grpc.SchedulerServiceStub(dial(server))
    await server.drain()
    failure = await failure_of(stub.OpenProgram(opening("p1")))
    assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")
    assert failure.retry_after_s is not None
