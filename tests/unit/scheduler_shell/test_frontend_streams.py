"""Frontends: the greeting, broken and slow ones, and what becomes of their calls when they go."""

import asyncio

import grpc
import pytest

from protos.autellix.scheduler.v1 import scheduler_pb2 as pb
from protos.autellix.scheduler.v1 import scheduler_pb2_grpc as pb_grpc
from scheduler_svc.core.effects import Effect, EmitTokens, FinishCall, FinishReason
from scheduler_svc.core.events import (
    CallAcknowledged,
    CallCancelled,
    CallSubmitted,
    CancelReason,
    Event,
    FrontendLost,
    TimePassed,
)
from svc_runtime.rpc_errors import parse_error
from tests.unit.scheduler_shell.conftest import Dial, Start
from tests.unit.scheduler_shell.fake_executor import FakeExecutor
from tests.unit.scheduler_shell.fake_frontend import FakeFrontend, submit
from tests.unit.scheduler_shell.manual_clock import ManualClock
from tests.unit.scheduler_shell.scripted_core import ScriptedCore
from tests.unit.scheduler_shell.waiting import read_to_end, until


def finish_at_once(event: Event) -> list[Effect]:
    """Every submitted call ends with one token."""
    if not isinstance(event, CallSubmitted):
        return []
    call = event.call
    return [
        EmitTokens(frontend_id=call.frontend_id, handles=[call.stream_handle], tokens=[5]),
        FinishCall(
            frontend_id=call.frontend_id, handle=call.stream_handle, reason=FinishReason.STOP,
            service_s=0.1, waiting_s=0.2, preemptions=0,
        ),
    ]  # fmt: skip


async def refusal_of(channel: grpc.aio.Channel, *requests: pb.ConnectRequest) -> grpc.RpcError:
    stream = pb_grpc.SchedulerServiceStub(channel).Connect(iter(requests))
    with pytest.raises(grpc.RpcError) as refused:
        await read_to_end(stream)
    return refused.value


HELLO = pb.ConnectRequest(hello=pb.Hello(protocol_version=1, frontend_id="frontend"))


# ── greeting ────────────────────────────────────────────────────────────────────────────────────────


async def test_welcome_names_scheduler_policy_and_models(start: Start, dial: Dial) -> None:
    server = await start(scheduler_id="scheduler-x", policy="fcfs")
    async with FakeExecutor(dial(server)), FakeFrontend(dial(server)) as frontend:
        welcome = frontend.welcome
    assert welcome is not None
    assert (welcome.scheduler_id, welcome.policy) == ("scheduler-x", "fcfs")
    assert [(model.model, model.executors, model.simulated) for model in welcome.models] == [
        ("test-model", 1, True)
    ]


async def test_models_are_announced_when_executors_come_and_go(start: Start, dial: Dial) -> None:
    server = await start()
    async with FakeFrontend(dial(server)) as frontend:
        async with FakeExecutor(dial(server)), FakeExecutor(dial(server), executor_id="executor-b"):
            await until(lambda: len(frontend.models) == 2)
        await until(lambda: frontend.models and not frontend.models[-1].models)
    assert [model.executors for message in frontend.models[:2] for model in message.models] == [1, 2]


async def test_another_protocol_version_is_refused_with_both_named(start: Start, dial: Dial) -> None:
    server = await start()
    hello = pb.ConnectRequest(hello=pb.Hello(protocol_version=9, frontend_id="frontend"))
    failure = parse_error(await refusal_of(dial(server), hello))
    assert (failure.reason, failure.limit, failure.value) == ("PROTOCOL_MISMATCH", "1", "9")


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (pb.ConnectRequest(submit=submit(1)), "PROTOCOL_BROKEN"),
        (pb.ConnectRequest(), "PROTOCOL_BROKEN"),
        (pb.ConnectRequest(hello=pb.Hello(protocol_version=1)), "PARAMETER_OUT_OF_RANGE"),
    ],
    ids=["not a hello", "nothing", "nameless"],
)
async def test_a_stream_must_open_with_a_hello(
    start: Start, dial: Dial, request_: pb.ConnectRequest, reason: str
) -> None:
    server = await start()
    assert parse_error(await refusal_of(dial(server), request_)).reason == reason


async def test_a_peer_without_the_token_is_refused(start: Start, dial: Dial) -> None:
    server = await start(peer_token="secret")
    failure = parse_error(await refusal_of(dial(server), HELLO))
    assert failure.reason == "UNAUTHENTICATED"
    async with FakeFrontend(dial(server, "secret")) as frontend:
        assert frontend.welcome is not None


# ── broken frontends ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "broken",
    [
        pb.ConnectRequest(cancel=pb.Cancel(handles=b"123")),
        pb.ConnectRequest(submit=submit(-1)),
        pb.ConnectRequest(acknowledge=pb.Acknowledge(handles=(3).to_bytes(4, "little"))),
        pb.ConnectRequest(submit=submit(3, call_id="another")),
        HELLO,
        pb.ConnectRequest(),
    ],
    ids=[
        "torn column",
        "negative handle",
        "early acknowledgement",
        "handle in use",
        "second hello",
        "nothing",
    ],
)
async def test_a_broken_frontend_loses_its_stream_and_nobody_else_does(
    start: Start, dial: Dial, broken: pb.ConnectRequest
) -> None:
    server = await start(core=ScriptedCore())
    async with FakeFrontend(dial(server), "sound") as sound:
        live = pb.ConnectRequest(submit=submit(3))
        failure = parse_error(await refusal_of(dial(server), HELLO, live, broken))
        assert failure.reason == "PROTOCOL_BROKEN"
        assert failure.code is grpc.StatusCode.FAILED_PRECONDITION
        await sound.submit(1, max_tokens=0)
        await until(lambda: 1 in sound.refused)


async def test_garbage_on_the_port_hurts_nobody(start: Start, dial: Dial) -> None:
    server = await start(core=ScriptedCore())
    async with FakeFrontend(dial(server)) as frontend:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        garbage = bytes(range(256)) * 4096
        writer.write(garbage)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):  # the server hangs up
            await reader.readexactly(len(garbage))
        writer.close()
        channel = dial(server)
        raw = channel.stream_stream("/autellix.scheduler.v1.SchedulerService/Connect")
        with pytest.raises(grpc.RpcError):
            await raw(iter([garbage])).read()
        await frontend.submit(1, max_tokens=0)
        await until(lambda: 1 in frontend.refused)


async def test_a_frontend_that_does_not_read_is_cut_off_and_little_is_kept_for_it(
    start: Start, dial: Dial
) -> None:
    emitted: list[EmitTokens] = []

    def flood(event: Event) -> list[Effect]:
        """Once a call is there: a hundred thousand tokens for it each time the clock ticks."""
        calls = core.seen(CallSubmitted)
        if not isinstance(event, TimePassed) or not calls:
            return []
        call = calls[0].call
        emitted.append(
            EmitTokens(
                frontend_id=call.frontend_id, handles=[call.stream_handle] * 100_000, tokens=[1] * 100_000
            )
        )
        return [emitted[-1]]

    core, clock = ScriptedCore(flood), ManualClock()
    server = await start(core=core, clock=clock, frontend_backlog_mib=4)
    async with FakeFrontend(dial(server), reads=False) as slow:
        await slow.submit(1)
        await until(lambda: core.seen(CallSubmitted))
        session = next(iter(server.frontends))
        for _ in range(100):
            ticks = len(core.seen(TimePassed))
            await until(lambda: clock.sleeping_for(1.0))
            clock.advance(1.0)
            await until(lambda ticks=ticks: len(core.seen(TimePassed)) > ticks)
            assert session.backlog_bytes <= 4 << 20
            if session.end.decided:
                break
        assert session.end.decided
        await until(lambda: clock.sleeping_for(10.0), "its calls get their grace before it hears of anything")
        slow.read_on()
        assert await slow.ended() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert sum(len(effect.tokens) for effect in emitted) * 8 < 64 << 20, "transport buffers took too much"


# ── calls ───────────────────────────────────────────────────────────────────────────────────────────


async def test_outputs_of_a_turn_share_one_message_with_the_gauges(start: Start, dial: Dial) -> None:
    server = await start(core=ScriptedCore(finish_at_once))
    async with FakeFrontend(dial(server)) as frontend:
        await frontend.submit(1)
        await frontend.finish(1)
    (outputs,) = frontend.outputs
    assert (list(outputs.handles[:1]), list(outputs.tokens[:1])) == ([1], [5])
    assert (outputs.finished[0].service_s, outputs.finished[0].waiting_s) == (0.1, 0.2)
    assert (outputs.status.running, outputs.status.waiting, outputs.status.kv_usage) == (1, 2, 0.5)


@pytest.mark.parametrize(
    ("sent", "heard"),
    [
        (pb.CANCEL_REASON_CLIENT, CancelReason.CLIENT),
        (pb.CANCEL_REASON_STOP_STRING, CancelReason.STOP_STRING),
        (pb.CANCEL_REASON_DEADLINE, CancelReason.DEADLINE),
        (pb.CANCEL_REASON_UNSPECIFIED, CancelReason.CLIENT),
    ],
)
async def test_cancels_carry_their_reason(start: Start, dial: Dial, sent: int, heard: CancelReason) -> None:
    core = ScriptedCore()
    server = await start(core=core)
    async with FakeFrontend(dial(server)) as frontend:
        await frontend.submit(1)
        await frontend.cancel(1, 999, reason=sent)
        await until(lambda: core.seen(CallCancelled))
    assert core.seen(CallCancelled) == [CallCancelled(call_id="call-1", reason=heard)]


async def test_an_acknowledged_handle_may_be_used_again(start: Start, dial: Dial) -> None:
    core = ScriptedCore(finish_at_once)
    server = await start(core=core)
    async with FakeFrontend(dial(server)) as frontend:
        await frontend.submit(1)
        await frontend.finish(1)
        await frontend.acknowledge(1)
        await until(lambda: core.seen(CallAcknowledged))
        frontend.finished.clear()
        await frontend.submit(1, call_id="another")
        await frontend.finish(1)
    assert [event.call.call_id for event in core.seen(CallSubmitted)] == ["call-1", "another"]


async def test_a_frontend_has_only_so_many_calls(start: Start, dial: Dial) -> None:
    server = await start(core=ScriptedCore(), frontend_calls_max=2)
    async with FakeFrontend(dial(server)) as frontend:
        for handle in range(3):
            await frontend.submit(handle)
        await until(lambda: frontend.refused)
    (refusal,) = frontend.refused.values()
    assert (refusal.reason, refusal.limit, refusal.value) == ("QUEUE_FULL", "2", "2")
    assert refusal.retry_after_s > 0


async def test_an_unknown_program_is_refused_by_the_core(start: Start, dial: Dial) -> None:
    server = await start()
    async with FakeExecutor(dial(server)), FakeFrontend(dial(server)) as frontend:
        await frontend.open_program()
        await frontend.submit(1, tenant="stranger")
        await until(lambda: 1 in frontend.refused)
        await frontend.submit(1)  # a refused handle is free again
        await frontend.finish(1)
    assert frontend.refused[1].reason == "PROGRAM_UNKNOWN"


# ── going ───────────────────────────────────────────────────────────────────────────────────────────


async def test_calls_outlive_their_stream_for_the_grace_time(start: Start, dial: Dial) -> None:
    core, clock = ScriptedCore(), ManualClock()
    server = await start(core=core, clock=clock, frontend_grace_s=10)
    frontend = FakeFrontend(dial(server))
    async with frontend:
        await frontend.submit(1)
        await until(lambda: core.seen(CallSubmitted))
    await until(lambda: clock.sleeping_for(10))
    clock.advance(9.5)
    await until(lambda: core.seen(TimePassed))
    assert not core.seen(FrontendLost)
    clock.advance(0.5)
    await until(lambda: core.seen(FrontendLost))
    assert len(core.seen(FrontendLost)) == 1


async def test_a_second_hello_ends_the_grace_at_once(start: Start, dial: Dial) -> None:
    core = ScriptedCore()
    server = await start(core=core, frontend_grace_s=3600)
    async with FakeFrontend(dial(server)) as frontend:
        await frontend.submit(1)
        await until(lambda: core.seen(CallSubmitted))
    async with FakeFrontend(dial(server)) as frontend:
        await frontend.submit(1)
        await until(lambda: len(core.seen(CallSubmitted)) == 2)
    first, second = (event.call.frontend_id for event in core.seen(CallSubmitted))
    assert first != second, "two streams must not share a name in the core"
    assert [event.frontend_id for event in core.seen(FrontendLost)] == [first]
    order = [
        event for event in core.events if isinstance(event, FrontendLost | CallAcknowledged | CallSubmitted)
    ]
    assert [type(event) for event in order] == [CallSubmitted, FrontendLost, CallAcknowledged, CallSubmitted]


async def test_a_frontend_that_comes_back_submits_its_call_again_with_its_tokens(
    start: Start, dial: Dial
) -> None:
    server = await start(frontend_grace_s=3600)
    async with FakeExecutor(dial(server), obedient=False) as executor:
        async with FakeFrontend(dial(server)) as frontend:
            await frontend.open_program()
            await frontend.submit(1)
            await until(lambda: executor.plans)
            await executor.answer()
            await until(lambda: frontend.tokens[1])
        received = frontend.tokens[1]
        async with FakeFrontend(dial(server)) as again:
            await again.submit(1, output_token_ids=received[0].to_bytes(4, "little"))
            await executor.answer()
            await until(lambda: len(executor.calls) == 2 or again.refused)
            assert not again.refused
    assert executor.calls[2].output_token_ids == received[0].to_bytes(4, "little")


async def test_the_older_of_two_streams_of_one_frontend_is_ended(start: Start, dial: Dial) -> None:
    server = await start(core=ScriptedCore())
    async with FakeFrontend(dial(server)) as first, FakeFrontend(dial(server)) as second:
        assert await first.ended() is grpc.StatusCode.ABORTED
        await second.submit(1, max_tokens=0)
        await until(lambda: 1 in second.refused)
