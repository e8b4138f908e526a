"""Calls through the real core: announced, planned, executed by a fake executor, and back in columns."""

import asyncio

import structlog

from protos.autellix.executor.v1 import executor_pb2
from protos.autellix.scheduler.v1 import scheduler_pb2 as pb
from svc_runtime.columns import pack_i32, unpack_i32
from tests.unit.scheduler_shell.conftest import Dial, Start
from tests.unit.scheduler_shell.fake_executor import FakeExecutor, continuation
from tests.unit.scheduler_shell.fake_frontend import FakeFrontend
from tests.unit.scheduler_shell.waiting import until


async def test_tokens_come_back_in_order_and_the_call_ends(start: Start, dial: Dial) -> None:
    server = await start()
    async with FakeExecutor(dial(server)) as executor, FakeFrontend(dial(server)) as frontend:
        await frontend.open_program()
        await frontend.submit(7, [1, 2, 3])
        await frontend.finish(7)
    assert frontend.tokens[7] == continuation([1, 2, 3], 8)
    assert frontend.finished[7].reason == pb.FINISH_REASON_LENGTH
    assert [started.handle for started in frontend.started] == [7]
    assert executor.calls[1].params == b"params"


async def test_many_calls_share_steps_and_each_gets_its_own_tokens(start: Start, dial: Dial) -> None:
    server = await start()
    prompts = {handle: [handle + 1] * (1 + handle % 7) for handle in range(24)}
    async with FakeExecutor(dial(server)) as executor, FakeFrontend(dial(server)) as frontend:
        await frontend.open_program()
        for handle, prompt in prompts.items():
            await frontend.submit(handle, prompt)
        await frontend.finish(*prompts)
    for handle, prompt in prompts.items():
        assert frontend.tokens[handle] == continuation(prompt, 8)
    assert max(len(unpack_i32(plan.handles)) for plan in executor.plans) == 4


async def test_end_of_sequence_and_stop_tokens_end_a_call(start: Start, dial: Dial) -> None:
    server = await start()
    expected = continuation([5, 6], 8)
    async with FakeExecutor(dial(server)), FakeFrontend(dial(server)) as frontend:
        await frontend.open_program()
        await frontend.submit(1, [5, 6], eos_token_id=expected[2])
        await frontend.submit(2, [5, 6], stop_token_ids=expected[4].to_bytes(4, "little"))
        await frontend.finish(1, 2)
    assert frontend.tokens[1] == expected[:3]
    assert frontend.finished[1].reason == pb.FINISH_REASON_STOP
    assert not frontend.finished[1].HasField("stop_token_id")
    assert frontend.tokens[2] == expected[:5]
    assert frontend.finished[2].stop_token_id == expected[4]


async def test_a_cancelled_call_is_absent_from_the_first_plan_after_the_cancel(
    start: Start, dial: Dial
) -> None:
    server = await start(max_plans_in_flight=1)
    async with FakeExecutor(dial(server), obedient=False) as executor, FakeFrontend(dial(server)) as frontend:
        await frontend.open_program()
        await frontend.submit(1, max_tokens=50)
        await frontend.submit(2, max_tokens=50)
        await _step_until(executor, lambda: set(executor.batch(executor.plans[-1])) == {"call-1", "call-2"})
        planned = len(executor.plans)
        await frontend.cancel(1)
        await frontend.finish(1)
        await executor.answer()
        await until(lambda: len(executor.plans) > planned)
        assert executor.batch(executor.plans[planned]) == ["call-2"]
        released = [
            handle for plan in executor.plans[planned:] for handle in unpack_i32(plan.released_handles)
        ]
        assert [executor.calls[handle].call_id for handle in released] == ["call-1"]
    assert frontend.finished[1].reason == pb.FINISH_REASON_ABORT


async def _step_until(executor: FakeExecutor, condition: object) -> None:
    """Answers plans one by one until the newest one is what the test wants."""
    answered = 0
    await until(lambda: executor.plans)
    while not condition():  # type: ignore[operator]
        answered += 1
        await executor.answer()
        await until(lambda answered=answered: len(executor.plans) > answered)


async def test_calls_of_a_lost_executor_continue_on_another(start: Start, dial: Dial) -> None:
    server = await start()
    async with FakeFrontend(dial(server)) as frontend:
        async with FakeExecutor(dial(server), obedient=False) as first:
            await frontend.open_program()
            for handle in range(3):
                await frontend.submit(handle, [9, handle + 1])
            await until(lambda: first.plans)
            await first.answer()
            await until(lambda: frontend.tokens)
        async with FakeExecutor(dial(server), executor_id="executor-b") as second:
            await frontend.finish(0, 1, 2)
    for handle in range(3):
        assert frontend.tokens[handle] == continuation([9, handle + 1], 8)
    resumed = [unpack_i32(call.output_token_ids) for call in second.calls.values()]
    assert any(resumed), "no call brought its tokens along"


async def test_an_executor_with_a_broken_clock_harms_nobody_else(start: Start, dial: Dial) -> None:
    server = await start()
    async with FakeFrontend(dial(server)) as frontend:
        await frontend.open_program()
        async with FakeExecutor(dial(server), obedient=False, executor_id="broken") as broken:
            await frontend.submit(7, [1, 2, 3])
            await until(lambda: len(broken.plans) > 0)
            result = broken._execute(broken.plans[0])
            result.step_s = 1e17
            await broken.send(executor_pb2.AttachRequest(result=result))
            assert await broken.refusal() == "PROTOCOL_BROKEN"
        async with FakeExecutor(dial(server)):
            await frontend.finish(7)
    assert frontend.tokens[7] == continuation([1, 2, 3], 8)


async def test_a_call_with_a_grammar_waits_for_its_preparation(start: Start, dial: Dial) -> None:
    server = await start()
    async with FakeExecutor(dial(server)) as executor, FakeFrontend(dial(server)) as frontend:
        await frontend.open_program()
        await frontend.submit(1, needs_preparation=True)
        await frontend.finish(1)
        assert executor.calls[1].needs_preparation
    assert frontend.tokens[1] == continuation([1, 2, 3], 8)


async def test_the_process_table_adds_up(start: Start, dial: Dial) -> None:
    server = await start()
    async with FakeExecutor(dial(server)), FakeFrontend(dial(server)) as frontend:
        await frontend.open_program()
        for handle in range(6):
            await frontend.submit(handle, [handle + 1, 2])
        await frontend.finish(*range(6))
        request = pb.GetProgramRequest(tenant="tenant", program_id="program")
        program = (await frontend.programs.GetProgram(request)).program
        statistics = await frontend.programs.GetStatistics(pb.GetStatisticsRequest())
    service_s = sum(finished.service_s for finished in frontend.finished.values())
    assert (program.finished_calls, program.live_calls, program.tokens) == (6, 0, 48)
    assert abs(program.attained_service_s - service_s) < 1e-9
    assert (statistics.calls_submitted, statistics.calls_finished, statistics.tokens) == (6, 6, 48)


async def test_drain_lets_live_calls_finish_and_refuses_new_ones(start: Start, dial: Dial) -> None:
    server = await start()
    async with FakeExecutor(dial(server), obedient=False) as executor, FakeFrontend(dial(server)) as frontend:
        await frontend.open_program()
        await frontend.submit(1, max_tokens=2)
        await until(lambda: executor.plans)
        draining = asyncio.create_task(server.drain())
        await asyncio.sleep(0)  # the door closes at once
        await frontend.submit(2)
        await until(lambda: 2 in frontend.refused)
        for _ in range(2):
            await executor.answer()
            await until(lambda: len(executor.plans) > 1)
        await frontend.finish(1)
        await draining
    assert frontend.refused[2].reason == "SHUTTING_DOWN"
    assert frontend.refused[2].HasField("retry_after_s")
    assert frontend.tokens[1] == continuation([1, 2, 3], 2)


async def test_a_call_s_line_counts_tokens_since_its_submission(start: Start, dial: Dial) -> None:
    server = await start()
    prompt = [1, 2, 3]
    had = continuation(prompt, 3)
    async with FakeExecutor(dial(server)), FakeFrontend(dial(server)) as frontend:
        await frontend.open_program()
        with structlog.testing.capture_logs() as lines:
            await frontend.submit(1, prompt, output_token_ids=pack_i32(had), max_tokens=8)
            await frontend.finish(1)
            await until(lambda: any(line["event"] == "call_finished" for line in lines))
    (line,) = (line for line in lines if line["event"] == "call_finished")
    assert (line["prompt_tokens"], line["tokens"]) == (3, 8 - len(had))
    assert had + frontend.tokens[1] == continuation(prompt, 8)
