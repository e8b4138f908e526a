"""An executor's life from attachment to attachment, against a fake scheduler over real gRPC."""

import asyncio

import grpc
import pytest

from executor_svc.runner import PlanViolation, StepResult
from executor_svc.stepper import Stepped
from svc_runtime.lifecycle import ExitCode, StartupError
from tests.unit.executor_svc.fake_scheduler import FakeScheduler, GarbageScheduler, fake_scheduler
from tests.unit.executor_svc.plan_writer import call, plan
from tests.unit.executor_svc.session_harness import Executor, running
from tests.unit.executor_svc.waiting import until


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


async def test_an_outcome_of_an_older_epoch_is_dropped(scheduler: FakeScheduler, executor: Executor) -> None:
    attachment = await scheduler.attached()
    await until(lambda: executor.serving == [True])
    late = StepResult(step=40, handles=[1], tokens=[1], step_s=1.0)
    executor.session.take(Stepped(attachment.registration.epoch - 1, late))
    await attachment.plan(plan(1))
    assert (await attachment.result()).step == 1


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
    await until(lambda: executor.serving == [True])
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
