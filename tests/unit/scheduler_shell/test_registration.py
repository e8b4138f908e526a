"""Executors at the door: who is taken, who is refused and with which words, and how their streams end."""

import grpc
import pytest

from protos.autellix.executor.v1 import executor_pb2 as pb
from protos.autellix.executor.v1 import executor_pb2_grpc as pb_grpc
from protos.autellix.scheduler.v1 import scheduler_pb2 as scheduler_pb
from scheduler_svc.core.effects import Effect
from scheduler_svc.core.events import (
    CallPrepared,
    Event,
    ExecutorDrainRequested,
    ExecutorJoined,
    ExecutorLost,
    StepCompleted,
)
from scheduler_svc.shell.executor_service import ExecutorServicer
from scheduler_svc.shell.executor_session import ExecutorSession
from svc_runtime.columns import pack_i32
from svc_runtime.rpc_errors import parse_error
from tests.unit.scheduler_shell.conftest import Dial, Start
from tests.unit.scheduler_shell.fake_executor import FakeExecutor, registration
from tests.unit.scheduler_shell.fake_frontend import FakeFrontend
from tests.unit.scheduler_shell.scripted_core import ScriptedCore
from tests.unit.scheduler_shell.waiting import read_to_end, until


async def refusal_of(channel: grpc.aio.Channel, *requests: pb.AttachRequest) -> grpc.RpcError:
    """The error that a stream of these requests ends with."""
    stream = pb_grpc.ExecutorServiceStub(channel).Attach(iter(requests))
    with pytest.raises(grpc.RpcError) as refused:
        await read_to_end(stream)
    return refused.value


@pytest.mark.parametrize(
    ("changed", "reason", "field", "limit", "value"),
    [
        ({"protocol_version": 2}, "PROTOCOL_MISMATCH", "protocol_version", "1", "2"),
        ({"executor_id": ""}, "UNSUPPORTED_EXECUTOR", "executor_id", "not empty", ""),
        ({"model": ""}, "UNSUPPORTED_EXECUTOR", "model", "not empty", ""),
        ({"kv_groups": []}, "UNSUPPORTED_EXECUTOR", "kv_groups", "1", "0"),
        (
            {"kv_groups": [pb.KvGroup(block_size=4, num_blocks=9)] * 2},
            "UNSUPPORTED_EXECUTOR", "kv_groups", "1", "2",
        ),
        (
            {"kv_groups": [pb.KvGroup(block_size=4, num_blocks=1)]},
            "UNSUPPORTED_EXECUTOR", "kv_groups.num_blocks", ">= 2", "1",
        ),
        (
            {"kv_groups": [pb.KvGroup(block_size=0, num_blocks=9)]},
            "UNSUPPORTED_EXECUTOR", "kv_groups.block_size", ">= 1", "0",
        ),
        ({"max_num_seqs": 0}, "UNSUPPORTED_EXECUTOR", "max_num_seqs", ">= 1", "0"),
        ({"max_num_batched_tokens": 0}, "UNSUPPORTED_EXECUTOR", "max_num_batched_tokens", ">= 1", "0"),
        ({"max_plans_in_flight": 0}, "UNSUPPORTED_EXECUTOR", "max_plans_in_flight", ">= 1", "0"),
        ({"vocab_size": 0}, "UNSUPPORTED_EXECUTOR", "vocab_size", ">= 1", "0"),
    ],
)  # fmt: skip
async def test_a_registration_that_cannot_work_is_refused_with_field_limit_and_value(
    start: Start, dial: Dial, changed: dict[str, object], reason: str, field: str, limit: str, value: str
) -> None:
    server = await start()
    request = pb.AttachRequest(registration=registration(**changed))
    failure = parse_error(await refusal_of(dial(server), request))
    assert (failure.reason, failure.field, failure.limit, failure.value) == (reason, field, limit, value)
    assert failure.code is grpc.StatusCode.FAILED_PRECONDITION


async def test_a_protocol_mismatch_names_both_versions(start: Start, dial: Dial) -> None:
    server = await start()
    request = pb.AttachRequest(registration=registration(protocol_version=17))
    failure = parse_error(await refusal_of(dial(server), request))
    assert "version 17" in failure.message
    assert "version 1:" in failure.message


async def test_the_first_message_must_be_a_registration(start: Start, dial: Dial) -> None:
    server = await start()
    failure = parse_error(await refusal_of(dial(server), pb.AttachRequest(result=pb.StepResult(step=1))))
    assert failure.reason == "PROTOCOL_BROKEN"


async def test_a_registration_must_come_in_time(start: Start, dial: Dial) -> None:
    server = await start(hello_timeout_s=0.05)
    stream = pb_grpc.ExecutorServiceStub(dial(server)).Attach()
    with pytest.raises(grpc.RpcError) as refused:
        await stream.read()
    assert parse_error(refused.value).reason == "PROTOCOL_BROKEN"
    assert "0.05 s" in parse_error(refused.value).message


async def test_executors_of_one_model_must_agree_on_its_weights(start: Start, dial: Dial) -> None:
    server = await start()
    async with FakeExecutor(dial(server)):
        other = registration(executor_id="executor-b", model_fingerprint="other weights")
        failure = parse_error(await refusal_of(dial(server), pb.AttachRequest(registration=other)))
    assert failure.reason == "MODEL_MISMATCH"


async def test_acceptance_comes_first_and_names_the_epoch(start: Start, dial: Dial) -> None:
    server = await start(scheduler_id="scheduler-x")
    async with FakeExecutor(dial(server), epoch=41) as executor:
        assert executor.accepted == pb.RegistrationAccepted(scheduler_id="scheduler-x", epoch=41)


async def test_a_newer_epoch_supersedes_the_attached_executor(start: Start, dial: Dial) -> None:
    core = ScriptedCore()
    server = await start(core=core)
    async with FakeExecutor(dial(server), epoch=1) as old, FakeExecutor(dial(server), epoch=2):
        assert await old.ended() is grpc.StatusCode.ABORTED
        assert [event.executor.epoch for event in core.seen(ExecutorJoined)] == [1, 2]
    await until(lambda: core.seen(ExecutorLost))
    assert [event.epoch for event in core.seen(ExecutorLost)] == [2], (
        "the old epoch was lost by the newer's joining"
    )


async def test_what_an_older_stream_says_never_reaches_the_newer_one(
    start: Start, dial: Dial, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A result may be waiting for the very turn in which its executor registers anew."""
    receive = ExecutorServicer._receive
    sessions: list[tuple[ExecutorServicer, ExecutorSession]] = []

    def note(servicer: ExecutorServicer, request: pb.AttachRequest, session: ExecutorSession) -> None:
        sessions.append((servicer, session))
        receive(servicer, request, session)

    def respond(event: Event) -> list[Effect]:
        if isinstance(event, ExecutorJoined) and event.executor.epoch == 2:
            servicer, older = sessions[0]
            for message in late:
                receive(servicer, message, older)
        return []

    late = [
        pb.AttachRequest(result=pb.StepResult(step=2)),
        pb.AttachRequest(prepared=pb.CallPrepared(handle=1)),
        pb.AttachRequest(drain=pb.DrainRequested()),
    ]
    monkeypatch.setattr(ExecutorServicer, "_receive", note)
    core = ScriptedCore(respond)
    server = await start(core=core)
    async with FakeExecutor(dial(server), epoch=1) as old:
        await old.send(pb.AttachRequest(result=pb.StepResult(step=1)))
        await until(lambda: core.seen(StepCompleted))
        async with FakeExecutor(dial(server), epoch=2) as new:
            await new.send(pb.AttachRequest(result=pb.StepResult(step=3)))
            await until(lambda: len(core.seen(StepCompleted)) > 1)
    assert [event.step for event in core.seen(StepCompleted)] == [1, 3]
    assert core.seen(CallPrepared) == core.seen(ExecutorDrainRequested) == []


@pytest.mark.parametrize("epoch", [4, 5])
async def test_an_epoch_that_is_not_newer_is_refused(start: Start, dial: Dial, epoch: int) -> None:
    server = await start()
    async with FakeExecutor(dial(server), epoch=5):
        request = pb.AttachRequest(registration=registration(epoch=epoch))
        failure = parse_error(await refusal_of(dial(server), request))
    assert (failure.reason, failure.limit, failure.value) == ("EPOCH_STALE", "> 5", str(epoch))


async def test_the_core_hears_of_a_loss_once(start: Start, dial: Dial) -> None:
    core = ScriptedCore()
    server = await start(core=core)
    async with FakeExecutor(dial(server), epoch=3) as executor:
        await executor.lose()
        await until(lambda: core.seen(ExecutorLost))
    lost = core.seen(ExecutorLost)
    assert [(event.executor_id, event.epoch) for event in lost] == [("executor-a", 3)]


@pytest.mark.parametrize(
    "result",
    [
        pb.StepResult(step=1, handles=b"123"),
        pb.StepResult(step=1, handles=pack_i32([1]), tokens=pack_i32([1, 2])),
        pb.StepResult(step=1, step_s=float("nan")),
        pb.StepResult(step=1, step_s=-1.0),
    ],
    ids=["torn column", "columns of different length", "no number", "negative duration"],
)
async def test_a_result_that_makes_no_sense_ends_that_stream_only(
    start: Start, dial: Dial, result: pb.StepResult
) -> None:
    core = ScriptedCore()
    server = await start(core=core)
    async with (
        FakeExecutor(dial(server)) as broken,
        FakeExecutor(dial(server), executor_id="executor-b", model="other") as sound,
    ):
        await broken.send(pb.AttachRequest(result=result))
        assert await broken.ended() is grpc.StatusCode.FAILED_PRECONDITION
        await sound.send(pb.AttachRequest(result=pb.StepResult(step=1, step_s=0.5)))
        await until(lambda: core.seen(StepCompleted))
    assert [event.executor_id for event in core.seen(StepCompleted)] == ["executor-b"]


async def test_a_gap_in_step_numbers_ends_the_stream(start: Start, dial: Dial) -> None:
    server = await start()
    async with FakeExecutor(dial(server)) as executor:
        await executor.send(pb.AttachRequest(result=pb.StepResult(step=7)))
        assert await executor.ended() is grpc.StatusCode.FAILED_PRECONDITION


async def test_a_drained_executor_is_let_go_in_good_order(start: Start, dial: Dial) -> None:
    server = await start()
    async with FakeExecutor(dial(server)) as executor:
        await executor.send(pb.AttachRequest(drain=pb.DrainRequested(reason="maintenance")))
        assert await executor.ended() is grpc.StatusCode.OK


async def test_an_operator_drains_an_executor(start: Start, dial: Dial) -> None:
    server = await start()
    async with FakeExecutor(dial(server)) as executor, FakeFrontend(dial(server)) as frontend:
        drain = scheduler_pb.DrainExecutorRequest(executor_id="executor-a")
        await frontend.programs.DrainExecutor(drain)
        assert await executor.refusal() == "EXECUTOR_DRAINED"
        unknown = scheduler_pb.DrainExecutorRequest(executor_id="nobody")
        with pytest.raises(grpc.RpcError) as refused:
            await frontend.programs.DrainExecutor(unknown)
    assert parse_error(refused.value).reason == "NO_EXECUTOR"


async def test_an_executor_that_never_reads_is_cut_off(start: Start, dial: Dial) -> None:
    """Announcements pile up only as far as the outbox allows."""
    server = await start(live_calls_max=4, max_plans_in_flight=1, frontend_calls_max=10_000)
    channel = dial(server)
    stream = pb_grpc.ExecutorServiceStub(channel).Attach()
    await stream.write(pb.AttachRequest(registration=registration(max_model_len=400_000, kv_groups=[
        pb.KvGroup(block_size=4, num_blocks=200_001)
    ])))  # fmt: skip
    await stream.read()
    async with FakeFrontend(dial(server)) as frontend:
        await frontend.open_program()
        for handle in range(200):
            await frontend.submit(handle, [1] * 20_000, needs_preparation=True)
            await frontend.cancel(handle)
        await until(lambda: len(frontend.finished) == 200)
        await until(lambda: not frontend.models[-1].models, "it is detached before it hears of anything")
        with pytest.raises(grpc.RpcError) as cut_off:
            await read_to_end(stream)
    assert parse_error(cut_off.value).reason == "PEER_TOO_SLOW"
