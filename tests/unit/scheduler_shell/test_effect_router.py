"""Where effects go, and in which order."""

import asyncio
from collections.abc import Callable

import pytest
import structlog

from protos.autellix.executor.v1 import executor_pb2
from protos.autellix.scheduler.v1 import scheduler_pb2 as pb
from scheduler_svc.core.effects import (
    AnnounceCall,
    CloseExecutor,
    EmitTokens,
    FinishCall,
    FinishReason,
    Plan,
    RefuseCall,
    SendPlan,
)
from scheduler_svc.core.errors import Refusal
from scheduler_svc.core.ids import ExecutorId, FrontendId, StreamHandle
from scheduler_svc.shell import call_log, executor_wire
from scheduler_svc.shell.call_log import LINES_AT_ONCE, CallLog
from scheduler_svc.shell.clock import MonotonicClock
from scheduler_svc.shell.effect_router import EffectRouter
from scheduler_svc.shell.executor_registry import ExecutorRegistry
from scheduler_svc.shell.executor_session import ExecutorSession
from scheduler_svc.shell.frontend_registry import FrontendRegistry
from scheduler_svc.shell.frontend_session import OUTPUTS_APART_S, STATUS_EVERY, CallEntry, FrontendSession
from scheduler_svc.shell.metrics import SchedulerMetrics
from svc_runtime.columns import unpack_i32
from tests.unit.scheduler_shell.fake_executor import registration
from tests.unit.scheduler_shell.manual_clock import ManualClock
from tests.unit.scheduler_shell.test_wire import call
from tests.unit.scheduler_shell.waiting import until

FRONTEND, EXECUTOR = FrontendId("frontend#1"), ExecutorId("executor-a")


class Stage:
    """A router with one executor and one frontend, whose writers write down what they send."""

    def __init__(self) -> None:
        request = executor_pb2.AttachRequest(registration=registration())
        spec = executor_wire.executor_spec(request, max_plans_in_flight=2)
        self.executor = ExecutorSession(spec, scheduler_id="s", outbox_max=8)
        self.frontend = FrontendSession(
            frontend_id=FRONTEND,
            name="frontend",
            backlog_bytes_max=1 << 20,
            status=lambda _: pb.EngineStatus(),
            clock=MonotonicClock(),
        )
        executors, frontends = ExecutorRegistry(), FrontendRegistry()
        executors.add(self.executor)
        frontends.add(self.frontend)
        self.metrics = SchedulerMetrics()
        self.call_log = CallLog(self.metrics)
        self.frontends = frontends
        self.router = EffectRouter(executors, frontends, self.call_log)
        self.on_write: Callable[[], None] = lambda: None
        self.sent: list[str] = []

    async def __aenter__(self) -> "Stage":
        # the frontend's writer runs first, to show that order comes from the router
        self._writers = [
            asyncio.create_task(self.frontend.write_to(self._write)),
            asyncio.create_task(self.executor.write_to(self._write)),
        ]
        await until(lambda: self.sent == ["accepted"])
        self.sent.clear()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for writer in self._writers:
            writer.cancel()
        await asyncio.gather(*self._writers, return_exceptions=True)

    async def _write(self, message: executor_pb2.AttachResponse | pb.ConnectResponse) -> None:
        self.sent.append(str(message.WhichOneof("message")))
        self.on_write()
        await asyncio.sleep(0)


def plan(step: int) -> SendPlan:
    return SendPlan(
        executor_id=EXECUTOR, plan=Plan(step=step, handles=[1], chunks={}, joined={}, blocks={}, released=[])
    )


def announcement(handle: int) -> AnnounceCall:
    return AnnounceCall(executor_id=EXECUTOR, handle=handle, call=call(), output_token_ids=[])


async def test_plans_leave_before_outputs_are_encoded() -> None:
    async with Stage() as stage:
        stage.frontend.remember(call())
        stage.router.carry_out([EmitTokens(frontend_id=FRONTEND, handles=[1], tokens=[5]), plan(1)])
        await until(lambda: len(stage.sent) == 2)
        assert stage.sent == ["plan", "outputs"]


async def test_gauges_go_along_with_starts_and_ends_and_else_only_now_and_then() -> None:
    looks: list[FrontendId] = []

    def status(frontend_id: FrontendId) -> pb.EngineStatus:
        looks.append(frontend_id)
        return pb.EngineStatus(running=len(looks))

    clock = ManualClock()
    session = FrontendSession(
        frontend_id=FRONTEND, name="f", backlog_bytes_max=1 << 20, status=status, clock=clock
    )
    session.remember(call())
    with_gauges: list[bool] = []

    async def write(message: pb.ConnectResponse) -> None:
        with_gauges.append(message.outputs.HasField("status"))

    writer = asyncio.create_task(session.write_to(write))
    tokens = EmitTokens(frontend_id=FRONTEND, handles=[1], tokens=[5])
    end = FinishCall(
        frontend_id=FRONTEND, handle=1, reason=FinishReason.STOP, service_s=0, waiting_s=0, preemptions=0
    )
    for effect in [*[tokens] * (STATUS_EVERY + 3), end, tokens]:
        (session.finished if effect is end else session.emit)(effect)
        await session.wait_written()
        clock.advance(OUTPUTS_APART_S)
    writer.cancel()
    due = {0, STATUS_EVERY, STATUS_EVERY + 3}
    assert with_gauges == [number in due for number in range(STATUS_EVERY + 5)]
    assert len(looks) == len(due)


async def test_outputs_that_follow_each_other_closely_share_a_message() -> None:
    clock = ManualClock()
    session = FrontendSession(
        frontend_id=FRONTEND,
        name="f",
        backlog_bytes_max=1 << 20,
        status=lambda _: pb.EngineStatus(),
        clock=clock,
    )
    sent: list[list[int] | str] = []

    async def write(message: pb.ConnectResponse) -> None:
        outputs = message.outputs
        sent.append(unpack_i32(outputs.tokens) if message.HasField("outputs") else "refused")

    def emit(token: int) -> None:
        session.emit(EmitTokens(frontend_id=FRONTEND, handles=[1], tokens=[token]))

    writer = asyncio.create_task(session.write_to(write))
    emit(1)
    await session.wait_written()
    assert sent == [[1]], "the first leaves at once"
    emit(2)
    await until(lambda: clock.sleeping_for(OUTPUTS_APART_S))
    emit(3)
    assert sent == [[1]]
    clock.advance(OUTPUTS_APART_S)
    await session.wait_written()
    assert sent == [[1], [2, 3]]
    clock.advance(OUTPUTS_APART_S)
    emit(4)
    await session.wait_written()
    assert sent == [[1], [2, 3], [4]], "nothing left for a while: it need not wait"
    session.remember(call(stream_handle=7))
    session.refuse(StreamHandle(7), Refusal(reason="QUEUE_FULL", message=""))
    await session.wait_written()
    assert sent[3:] == ["refused"], "what is not outputs leaves at once"
    writer.cancel()


async def test_outputs_that_wait_count_and_go_with_a_frontend_that_is_cut_off() -> None:
    clock, tokens = ManualClock(), EmitTokens(frontend_id=FRONTEND, handles=[1] * 100, tokens=[1] * 100)
    session = FrontendSession(
        frontend_id=FRONTEND,
        name="f",
        backlog_bytes_max=1_000,
        status=lambda _: pb.EngineStatus(),
        clock=clock,
    )
    sent: list[pb.ConnectResponse] = []

    async def write(message: pb.ConnectResponse) -> None:
        sent.append(message)

    writer = asyncio.create_task(session.write_to(write))
    session.emit(tokens)
    await session.wait_written()
    session.emit(tokens)
    await until(lambda: clock.sleeping_for(OUTPUTS_APART_S))
    session.emit(tokens)
    assert session.end.cause.startswith("PEER_TOO_SLOW")
    assert session.backlog_bytes == 0
    await session.wait_written()
    clock.advance(OUTPUTS_APART_S)
    session.emit(tokens)
    await asyncio.sleep(0)
    assert len(sent) == 1
    writer.cancel()


async def test_announcements_in_a_row_share_a_message_and_stay_before_their_plan() -> None:
    async with Stage() as stage:
        stage.router.carry_out([announcement(1), announcement(2), plan(1), announcement(3), plan(2)])
        await until(lambda: len(stage.sent) == 4)
        assert stage.sent == ["announced", "plan", "announced", "plan"]


async def test_effects_for_streams_that_have_gone_are_dropped() -> None:
    async with Stage() as stage:
        stage.router.carry_out(
            [
                SendPlan(executor_id=ExecutorId("gone"), plan=plan(1).plan),
                EmitTokens(frontend_id=FrontendId("gone"), handles=[1], tokens=[1]),
                plan(1),
            ]
        )
        await until(lambda: stage.sent)
        assert stage.sent == ["plan"]


async def test_an_executor_that_is_closed_hears_why() -> None:
    async with Stage() as stage:
        stage.router.carry_out([CloseExecutor(executor_id=EXECUTOR, reason="step 7 instead of 3")])
        refusal = await stage.executor.end.wait()
    assert refusal is not None
    assert (refusal.reason, refusal.message) == ("PROTOCOL_BROKEN", "step 7 instead of 3")


@pytest.mark.parametrize(("asked", "reason"), [(True, None), (False, "EXECUTOR_DRAINED")])
async def test_a_drained_executor_hears_of_it_unless_it_asked_for_it(asked: bool, reason: str | None) -> None:
    async with Stage() as stage:
        stage.executor.asked_to_drain = asked
        stage.router.carry_out([CloseExecutor(executor_id=EXECUTOR, reason="drained", drained=True)])
        refusal = await stage.executor.end.wait()
    assert (refusal.reason if refusal else None) == reason


async def test_each_ended_call_gets_one_canonical_log_line_and_one_count() -> None:
    async with Stage() as stage:
        stage.frontend.remember(call())
        end = FinishCall(
            frontend_id=FRONTEND,
            handle=1,
            reason=FinishReason.LENGTH,
            output_tokens=2,
            service_s=1.5,
            waiting_s=2.0,
            preemptions=3,
        )
        with structlog.testing.capture_logs() as lines:
            stage.router.carry_out([EmitTokens(frontend_id=FRONTEND, handles=[1, 1], tokens=[5, 6]), end])
            await until(lambda: lines)
    assert lines == [
        {
            "event": "call_finished", "log_level": "info", "program_id": "p", "call_id": "c", "tenant": "t",
            "model": "m", "reason": "length", "error": None, "prompt_tokens": 2, "tokens": 2,
            "service_s": 1.5, "waiting_s": 2.0, "preemptions": 3,
        }
    ]  # fmt: skip
    labels = {"model": "m", "reason": "length"}
    assert stage.metrics.registry.get_sample_value("autellix_scheduler_calls_ended_total", labels) == 1


def end_of(handle: int) -> FinishCall:
    return FinishCall(
        frontend_id=FRONTEND, handle=handle, reason=FinishReason.STOP, service_s=0, waiting_s=0, preemptions=0
    )


async def test_plans_and_outputs_leave_before_lines_are_written() -> None:
    async with Stage() as stage:
        count = 2 * LINES_AT_ONCE + 1
        for handle in range(count):
            stage.frontend.remember(call(stream_handle=handle, call_id=f"c{handle}"))
        with structlog.testing.capture_logs() as lines:
            stage.on_write = lambda: written_before.append(len(lines))
            written_before: list[int] = []
            stage.router.carry_out([*map(end_of, range(count)), plan(1)])
            await until(lambda: len(lines) == count)
    assert stage.sent == ["plan", "outputs"]
    assert written_before == [0, 0]
    assert [line["call_id"] for line in lines] == [f"c{handle}" for handle in range(count)]


async def test_a_line_does_not_go_before_the_outputs_of_another_frontend() -> None:
    other = FrontendSession(
        frontend_id=FrontendId("other#1"),
        name="other",
        backlog_bytes_max=1 << 20,
        status=lambda _: pb.EngineStatus(),
        clock=MonotonicClock(),
    )
    async with Stage() as stage:
        stage.frontends.add(other)
        writer = asyncio.create_task(other.write_to(stage._write))
        await asyncio.sleep(0)
        stage.frontend.remember(call(stream_handle=0))
        with structlog.testing.capture_logs() as lines:
            stage.on_write = lambda: written_before.append(len(lines))
            written_before: list[int] = []
            tokens = EmitTokens(frontend_id=other.frontend_id, handles=[1], tokens=[5])
            stage.router.carry_out([end_of(0), tokens])
            await until(lambda: lines)
        writer.cancel()
    assert written_before == [0, 0]


async def test_lines_that_are_left_at_the_end_are_written() -> None:
    async with Stage() as stage:
        stage.frontend.remember(call(stream_handle=0))
        with structlog.testing.capture_logs() as lines:
            stage.router.carry_out([end_of(0)])
            stage.call_log.write_all()
            assert len(lines) == 1
            await stage.frontend.wait_written()
            await asyncio.sleep(0)
        assert len(lines) == 1, "and once only"


async def test_a_line_that_fails_does_not_keep_the_others_back(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []

    def write(entry: CallEntry, _effect: FinishCall) -> None:
        if entry.call_id == "c0":
            raise RuntimeError("no line for c0")
        written.append(entry.call_id)

    monkeypatch.setattr(call_log, "_write", write)
    failures: list[BaseException] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: failures.append(context["exception"]))
    async with Stage() as stage:
        for handle in range(LINES_AT_ONCE + 2):
            stage.frontend.remember(call(stream_handle=handle, call_id=f"c{handle}"))
        stage.router.carry_out([*map(end_of, range(LINES_AT_ONCE + 1))])
        await until(lambda: f"c{LINES_AT_ONCE}" in written)
        stage.router.carry_out([end_of(LINES_AT_ONCE + 1)])
        await until(lambda: f"c{LINES_AT_ONCE + 1}" in written)
    assert [str(failure) for failure in failures] == ["no line for c0"]


async def test_a_call_that_the_core_refused_is_forgotten_and_logged() -> None:
    async with Stage() as stage:
        stage.frontend.remember(call())
        refusal = Refusal(reason="PROGRAM_ENDED", message="m", field="program_id", value="p")
        with structlog.testing.capture_logs() as lines:
            stage.router.carry_out([RefuseCall(frontend_id=FRONTEND, handle=1, refusal=refusal)])
        await until(lambda: stage.sent == ["refused"])
        assert stage.frontend.calls == {}
    assert [(line["event"], line["program_id"], line["call_id"], line["reason"]) for line in lines] == [
        ("call_refused", "p", "c", "PROGRAM_ENDED")
    ]
