"""An executor's life against a fake scheduler over real gRPC."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

import grpc
import pytest

from executor_svc.backoff import Backoff
from executor_svc.metrics import ExecutorMetrics
from executor_svc.runner import PlanViolation
from executor_svc.session import Session, SessionConfig
from executor_svc.stepper import Stepper
from protos.autellix.executor.v1 import executor_pb2 as pb
from svc_runtime.grpc_aio import open_channel
from svc_runtime.lifecycle import ExitCode, StartupError
from tests.unit.executor_svc.fake_runner import FakeRunner
from tests.unit.executor_svc.fake_scheduler import (
    FakeAttachment,
    FakeScheduler,
    GarbageScheduler,
    fake_scheduler,
)
from tests.unit.executor_svc.plan_writer import call, plan
from tests.unit.executor_svc.waiting import PATIENCE_S, until


@dataclass
class Executor:
    """A running session with a fake runner."""

    runner: FakeRunner
    stop: asyncio.Event
    task: "asyncio.Task[None]"
    serving: list[bool]
    metrics: ExecutorMetrics = field(default_factory=ExecutorMetrics)

    async def ended(self) -> None:
        """Waits for the session's end; raises what it raises."""
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.shield(self.task)

    def count(self, name: str) -> float:
        """A metric's value."""
        value = self.metrics.registry.get_sample_value(f"autellix_executor_{name}")
        assert value is not None, name
        return value


@asynccontextmanager
async def running(
    target: str,
    *,
    drain_s: float = PATIENCE_S,
    connect_timeout_s: float | None = None,
    accept_timeout_s: float = PATIENCE_S,
    wall_ms: Callable[[], int] = lambda: 1000,
) -> AsyncIterator[Executor]:
    """A session that dials `target`, pausing a few milliseconds between attempts."""
    runner, stop, serving, metrics = FakeRunner(), asyncio.Event(), [], ExecutorMetrics()
    stepper = Stepper(lambda: runner)
    info = await stepper.start()
    session = Session(
        SessionConfig(
            executor_id="e1",
            scheduler=target,
            drain_s=drain_s,
            connect_timeout_s=connect_timeout_s,
            accept_timeout_s=accept_timeout_s,
        ),
        stepper,
        metrics,
        open_channel=partial(open_channel, target),
        on_registered=serving.append,
        backoff=Backoff(random.Random(1), first_s=0.005, most_s=0.02),
        wall_ms=wall_ms,
    )
    task = asyncio.create_task(session.run(info, stop))
    executor = Executor(runner, stop, task, serving, metrics)
    try:
        yield executor
    finally:
        runner.steps_may_end.set()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await stepper.close()


@pytest.fixture
async def scheduler() -> AsyncIterator[FakeScheduler]:
    async with fake_scheduler() as fake:
        yield fake


@pytest.fixture
async def executor(scheduler: FakeScheduler) -> AsyncIterator[Executor]:
    async with running(scheduler.target) as each:
        yield each


async def test_registers_as_what_the_runner_is(scheduler: FakeScheduler, executor: Executor) -> None:
    attachment = await scheduler.attached(accept=False)
    assert attachment.registration.executor_id == "e1"
    assert attachment.registration.model == executor.runner.info.model
    assert attachment.registration.epoch == 1000
    assert executor.serving == []


async def test_plans_give_results_in_order(scheduler: FakeScheduler, executor: Executor) -> None:
    attachment = await scheduler.attached()
    await attachment.announce(call(4), call(5))
    await attachment.plan(plan(1, [4, 5]))
    await attachment.plan(plan(2, [5]))
    first, second = await attachment.result(), await attachment.result()
    assert (first.step, first.handles, first.tokens, first.step_s) == (1, [4, 5], [7, 7], 0.25)
    assert (second.step, second.handles) == (2, [5])
    assert executor.serving == [True]
    assert executor.runner.log == ["announce 4", "announce 5", "execute 1", "execute 2"]
    assert executor.runner.threads == {"autellix-steps"}
    assert executor.count("step_seconds_count") == 2
    assert executor.count("tokens_total") == 3
    assert executor.count("rows_total") == 3


async def test_the_next_plan_starts_before_the_result_of_the_last(
    scheduler: FakeScheduler, executor: Executor
) -> None:
    executor.runner.steps_may_end.clear()
    attachment = await scheduler.attached()
    await attachment.announce(call(4))
    await attachment.plan(plan(1, [4]))
    await attachment.plan(plan(2, [4]))
    await until(lambda: "execute 2" in executor.runner.log)
    executor.runner.steps_may_end.set()
    assert [(await attachment.result()).step for _ in range(2)] == [1, 2]


async def test_preparation_is_answered_off_the_step_thread(
    scheduler: FakeScheduler, executor: Executor
) -> None:
    executor.runner.prepare_answer = lambda handle: "no such grammar" if handle == 6 else ""
    attachment = await scheduler.attached()
    await attachment.announce(call(5, prepare=True))
    ready = (await attachment.receive()).prepared
    assert (ready.handle, ready.error) == (5, "")
    await attachment.announce(call(6, prepare=True))
    failed = (await attachment.receive()).prepared
    assert (failed.handle, failed.error) == (6, "no such grammar")


async def test_a_preparation_that_raises_fails_its_call_only(
    scheduler: FakeScheduler, executor: Executor
) -> None:
    def explode(handle: int) -> str:
        raise RuntimeError("secret detail")

    executor.runner.prepare_answer = explode
    attachment = await scheduler.attached()
    await attachment.announce(call(5, prepare=True))
    answer = (await attachment.receive()).prepared
    assert answer.error == "the call could not be prepared"
    await attachment.plan(plan(1, [5]))
    assert (await attachment.result()).step == 1


# ── what ends a stream, and what follows ────────────────────────────────────────────────────────────


async def gap(attachment: FakeAttachment) -> None:
    await attachment.plan(plan(2))


async def repeated_step(attachment: FakeAttachment) -> None:
    await attachment.plan(plan(1))
    await attachment.result()
    await attachment.plan(plan(1))


async def unknown_handle(attachment: FakeAttachment) -> None:
    await attachment.plan(plan(1, [9]))


async def malformed_plan(attachment: FakeAttachment) -> None:
    await attachment.send(pb.AttachResponse(plan=pb.StepPlan(step=1, handles=b"\x01")))


async def malformed_announcement(attachment: FakeAttachment) -> None:
    await attachment.send(
        pb.AttachResponse(announced=pb.CallsAnnounced(calls=[pb.CallAnnouncement(handle=1)]))
    )


async def second_acceptance(attachment: FakeAttachment) -> None:
    await attachment.accept()


async def empty_message(attachment: FakeAttachment) -> None:
    await attachment.send(pb.AttachResponse())


VIOLATIONS = [
    gap,
    repeated_step,
    unknown_handle,
    malformed_plan,
    malformed_announcement,
    second_acceptance,
    empty_message,
]


@pytest.mark.parametrize("violate", VIOLATIONS)
async def test_after_a_violation_it_registers_anew_with_empty_state(
    scheduler: FakeScheduler, executor: Executor, violate: Callable[[FakeAttachment], Awaitable[None]]
) -> None:
    first = await scheduler.attached()
    await first.announce(call(1))
    await violate(first)
    await first.until_gone()
    second = await scheduler.attached()
    assert second.registration.epoch > first.registration.epoch
    assert executor.runner.log[-1] == "reset"
    await second.announce(call(1))
    await second.plan(plan(1, [1]))
    assert (await second.result()).handles == [1]
    assert executor.serving == [True, False, True]
    assert executor.count("plan_violations_total") == 1
    assert executor.count("registrations_total") == 2


async def test_too_many_plans_in_flight_are_a_violation(scheduler: FakeScheduler, executor: Executor) -> None:
    executor.runner.steps_may_end.clear()
    attachment = await scheduler.attached()
    for step in (1, 2, 3):
        await attachment.plan(plan(step))
    await attachment.until_gone()
    executor.runner.steps_may_end.set()
    await scheduler.attached()
    assert executor.runner.log == ["execute 1", "execute 2", "reset"]


async def test_it_resets_only_after_the_running_step_and_drops_its_result(
    scheduler: FakeScheduler, executor: Executor
) -> None:
    executor.runner.steps_may_end.clear()
    first = await scheduler.attached()
    await first.announce(call(1))
    await first.plan(plan(1, [1]))
    await until(lambda: "execute 1" in executor.runner.log)
    first.finish("INTERNAL")
    await until(lambda: executor.serving == [True, False])
    assert "reset" not in executor.runner.log
    executor.runner.steps_may_end.set()
    second = await scheduler.attached()
    await second.announce(call(1))
    await second.plan(plan(1, [1]))
    await second.plan(plan(2, [1]))
    assert [(await second.result()).step for _ in range(2)] == [1, 2]
    assert executor.count("step_seconds_count") == 2


async def test_a_wrong_epoch_in_the_acceptance_is_a_violation(
    scheduler: FakeScheduler, executor: Executor
) -> None:
    first = await scheduler.attached(accept=False)
    await first.accept(epoch=999)
    await first.until_gone()
    await scheduler.attached()
    await until(lambda: executor.serving == [False, True])


async def test_an_unanswered_registration_is_tried_again(scheduler: FakeScheduler) -> None:
    async with running(scheduler.target, accept_timeout_s=0.05):
        first = await scheduler.attached(accept=False)
        await first.until_gone()
        second = await scheduler.attached(accept=False)
        assert second.registration.epoch == first.registration.epoch + 1


@pytest.mark.parametrize("reason", ["", "SHUTTING_DOWN", "PROTOCOL_BROKEN", "EPOCH_STALE"])
async def test_it_comes_back_after_an_end_that_need_not_last(
    scheduler: FakeScheduler, executor: Executor, reason: str
) -> None:
    first = await scheduler.attached()
    first.finish(reason)
    second = await scheduler.attached()
    assert second.registration.epoch > first.registration.epoch


async def test_it_comes_back_after_the_scheduler_restarted() -> None:
    async with fake_scheduler() as first:
        port = first.port
        async with running(first.target) as executor:
            await first.attached()
            await first.stop()
            await until(lambda: executor.serving == [True, False])
            async with fake_scheduler(port) as second:
                attachment = await second.attached()
                await attachment.announce(call(1))
                await attachment.plan(plan(1, [1]))
                assert (await attachment.result()).tokens == [7]


@pytest.mark.parametrize(
    "reason",
    ["PROTOCOL_MISMATCH", "MODEL_MISMATCH", "UNSUPPORTED_EXECUTOR", "UNAUTHENTICATED", "STREAM_SUPERSEDED"],
)
async def test_a_permanent_refusal_ends_it_with_the_reason(
    scheduler: FakeScheduler, executor: Executor, reason: str
) -> None:
    (await scheduler.attached(accept=False)).finish(reason)
    with pytest.raises(StartupError, match=rf"{scheduler.target} refused this executor: {reason}") as refused:
        await executor.ended()
    assert refused.value.exit_code == ExitCode.REFUSED


async def test_epochs_follow_the_clock_and_never_fall(scheduler: FakeScheduler) -> None:
    times = iter([5000, 9000, 8000])
    async with running(scheduler.target, wall_ms=lambda: next(times)):
        epochs = []
        for _ in range(3):
            attachment = await scheduler.attached()
            epochs.append(attachment.registration.epoch)
            attachment.finish()
    assert epochs == [5000, 9000, 9001]


async def test_garbage_is_survived() -> None:
    garbage = GarbageScheduler([b"\xff\xff\xff\xff" * 100])
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((garbage,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with running(f"127.0.0.1:{port}") as executor:
        await until(lambda: garbage.streams >= 2)
        assert not executor.task.done()
        assert True not in executor.serving
    await server.stop(0)


async def test_a_port_that_speaks_no_grpc_is_survived() -> None:
    connections = 0

    async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with running(f"127.0.0.1:{server.sockets[0].getsockname()[1]}") as executor:
        await until(lambda: connections >= 2)
        assert not executor.task.done()
    server.close()


# ── the runner breaks ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("where", ["execute_error", "result_error"])
async def test_a_failing_runner_ends_the_process(
    scheduler: FakeScheduler, executor: Executor, where: str
) -> None:
    setattr(executor.runner, where, RuntimeError("device lost"))
    attachment = await scheduler.attached()
    await attachment.plan(plan(1))
    with pytest.raises(RuntimeError, match="device lost"):
        await executor.ended()


async def test_a_violation_found_late_is_a_violation(scheduler: FakeScheduler, executor: Executor) -> None:
    executor.runner.result_error = PlanViolation("found late")
    attachment = await scheduler.attached()
    await attachment.plan(plan(1))
    await attachment.until_gone()
    await scheduler.attached()
    assert not executor.task.done()


# ── start and end ───────────────────────────────────────────────────────────────────────────────────


async def test_without_a_scheduler_it_keeps_trying(free_port: int) -> None:
    async with running(f"127.0.0.1:{free_port}") as executor:
        await until(lambda: executor.runner.log.count("reset") >= 3)
        async with fake_scheduler(free_port) as late:
            await late.attached()


async def test_connect_timeout_gives_up(free_port: int) -> None:
    async with running(f"127.0.0.1:{free_port}", connect_timeout_s=0.03) as executor:
        with pytest.raises(StartupError, match=r"connect_timeout_s = 0\.03 s") as gave_up:
            await executor.ended()
    assert gave_up.value.exit_code == ExitCode.PEER_UNREACHABLE


async def test_stop_drains_until_the_scheduler_ends_the_stream(
    scheduler: FakeScheduler, executor: Executor
) -> None:
    attachment = await scheduler.attached()
    await attachment.announce(call(1))
    executor.stop.set()
    assert (await attachment.receive()).WhichOneof("message") == "drain"
    assert executor.serving == [True, False]
    await attachment.plan(plan(1, [1]))
    assert (await attachment.result()).handles == [1]
    assert not executor.task.done()
    attachment.finish()
    await executor.ended()


async def test_drain_time_is_limited(scheduler: FakeScheduler) -> None:
    async with running(scheduler.target, drain_s=0.05) as executor:
        attachment = await scheduler.attached()
        executor.stop.set()
        await executor.ended()
        await attachment.until_gone()


async def test_stop_while_not_registered_leaves_at_once(free_port: int) -> None:
    async with running(f"127.0.0.1:{free_port}") as executor:
        await until(lambda: "reset" in executor.runner.log)
        executor.stop.set()
        await executor.ended()


async def test_an_executor_drained_by_an_operator_leaves(
    scheduler: FakeScheduler, executor: Executor
) -> None:
    (await scheduler.attached()).finish("EXECUTOR_DRAINED")
    await executor.ended()
    assert executor.serving == [True, False]
