"""One stream over real gRPC: plans and results, preparations, and what breaks it."""

from collections.abc import Awaitable, Callable

import pytest

from protos.autellix.executor.v1 import executor_pb2 as pb
from tests.unit.executor_svc.fake_scheduler import FakeAttachment, FakeScheduler
from tests.unit.executor_svc.plan_writer import call, plan
from tests.unit.executor_svc.session_harness import Executor
from tests.unit.executor_svc.waiting import until


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
