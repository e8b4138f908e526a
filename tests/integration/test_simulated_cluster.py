"""Scheduler and executors together over TCP, without a model: nothing is lost and the books are right.

The simulated executors refuse any plan that would corrupt a KV cache and give tokens that are known in
advance: one wrong block, one token lost or delivered twice, one second charged to the wrong call fails here.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc
import pytest

from executor_svc.server import serve
from executor_svc.settings import ExecutorSettings
from executor_svc.simulated_tokens import TokenRule
from protos.autellix.scheduler.v1 import scheduler_pb2 as pb
from scheduler_svc.settings import SchedulerSettings
from scheduler_svc.shell.server import SchedulerServer
from svc_runtime.grpc_aio import open_channel
from svc_runtime.settings import load_settings
from tests.integration.recording_core import RecordingCore
from tests.unit.scheduler_shell.fake_frontend import FakeFrontend

PROGRAMS = 64
VOCAB, EOS = 5000, 2
RULE = TokenRule(vocab_size=VOCAB, first_token=10, eos_token_id=EOS, eos_every=60)
TOKEN = "peer-token"
PATIENCE_S = 60.0
SMALL_ENGINE = {
    "--block-size": "16",
    "--num-gpu-blocks-override": "30",
    "--max-num-seqs": "6",
    "--max-num-batched-tokens": "96",
    "--max-model-len": "512",
}
EAGER_PREEMPTION = {"--levels": "6", "--first-quantum-s": "0.01"}


@dataclass
class Call:
    """One call of the workload and what must come of it."""

    call_id: str
    program_id: str
    prompt: list[int]
    max_tokens: int

    @property
    def expected(self) -> list[int]:
        """Its tokens."""
        return RULE.generate(self.prompt, self.max_tokens)


def workload(seed: int) -> list[list[Call]]:
    """Programs of one to three rounds, each round one to three parallel calls; prompts share a beginning."""
    rng = random.Random(seed)
    system = [rng.randrange(10, VOCAB) for _ in range(40)]
    programs = []
    for number in range(PROGRAMS):
        calls = []
        for index in range(rng.randrange(1, 6)):
            own = [rng.randrange(10, VOCAB) for _ in range(rng.randrange(1, 120))]
            shared = system if rng.random() < 0.7 else []
            calls.append(Call(f"p{number}-c{index}", f"program-{number}", shared + own, rng.randrange(1, 60)))
        programs.append(calls)
    return programs


class SharedFrontend(FakeFrontend):
    """A frontend that many programs send through: one message at a time."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        super().__init__(channel)
        self._sending = asyncio.Lock()

    async def send(self, **message: object) -> None:
        async with self._sending:
            await super().send(**message)


class Executors:
    """Simulated executors in this process; `kill` takes one away without a goodbye."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._running: dict[str, tuple[asyncio.Event, asyncio.Task[None]]] = {}

    def start(self, name: str) -> None:
        """Starts one."""
        flags = {
            "--runner": "simulated",
            "--model": "m",
            "--executor-id": name,
            "--scheduler": f"127.0.0.1:{self._port}",
            "--peer-token": TOKEN,
            "--health-port": "0",
            "--simulated-cost": "fixed:2ms",
            "--simulated-vocab-size": str(VOCAB),
            "--simulated-first-token": str(RULE.first_token),
            "--simulated-eos-token-id": str(EOS),
            "--simulated-eos-every": str(RULE.eos_every),
            **SMALL_ENGINE,
        }
        settings = load_settings(ExecutorSettings, [text for pair in flags.items() for text in pair])
        stop = asyncio.Event()
        self._running[name] = (stop, asyncio.create_task(serve(settings, stop)))

    async def kill(self, name: str) -> None:
        """Cuts the executor off in the middle of whatever it does."""
        _, task = self._running.pop(name)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def drain(self, name: str) -> None:
        """Stops one as SIGTERM does; raises what ended it."""
        stop, task = self._running.pop(name)
        stop.set()
        await asyncio.wait_for(task, PATIENCE_S)

    async def until_left(self, name: str) -> None:
        """Waits until one has ended by itself, in good order; raises what ended it otherwise."""
        _, task = self._running.pop(name)
        await asyncio.wait_for(task, PATIENCE_S)

    async def close(self) -> None:
        """Stops all in good order; raises what ended one before."""
        for name in list(self._running):
            await self.drain(name)


@dataclass
class Together:
    """The parts under test."""

    core: RecordingCore
    frontend: FakeFrontend
    executors: Executors


@asynccontextmanager
async def together(**policy: str) -> AsyncIterator[Together]:
    """A scheduler, two executors and a frontend's stream."""
    flags = {"--port": "0", "--metrics-port": "0", "--peer-token": TOKEN, **EAGER_PREEMPTION, **policy}
    settings = load_settings(SchedulerSettings, [text for pair in flags.items() for text in pair])
    core = RecordingCore(settings.core_config())
    server = SchedulerServer(settings, core=core)
    await server.start()
    executors = Executors(server.port)
    try:
        executors.start("one")
        executors.start("two")
        await until(lambda: len(core.executors()) == 2)
        channel = open_channel(f"127.0.0.1:{server.port}", peer_token=TOKEN)
        async with channel, SharedFrontend(channel) as frontend:
            yield Together(core, frontend, executors)
        await executors.close()
    finally:
        await server.close()


async def run_program(frontend: FakeFrontend, calls: list[Call], handles: dict[str, int]) -> None:
    """Opens the program, runs its first call alone and the others in parallel, ends it."""
    program_id = calls[0].program_id
    await frontend.open_program(program_id)
    for batch in (calls[:1], calls[1:]):
        for call in batch:
            await frontend.submit(
                handles[call.call_id],
                call.prompt,
                call_id=call.call_id,
                program_id=program_id,
                model="m",
                max_tokens=call.max_tokens,
                eos_token_id=EOS,
                params_format="simulated",
            )
        await until(lambda batch=batch: all(ended(frontend, handles[call.call_id]) for call in batch))
    await frontend.programs.EndProgram(pb.EndProgramRequest(tenant="tenant", program_id=program_id))


def ended(frontend: FakeFrontend, handle: int) -> bool:
    """Whether the call is over, however."""
    return handle in frontend.finished or handle in frontend.refused


async def run_all(parts: Together, programs: list[list[Call]]) -> dict[str, int]:
    """Runs all programs at once; returns each call's handle."""
    calls = [call for program in programs for call in program]
    handles = {call.call_id: index for index, call in enumerate(calls)}
    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as group:
        for program in programs:
            group.create_task(run_program(parts.frontend, program, handles))
    return handles


async def assert_books(parts: Together, programs: list[list[Call]], handles: dict[str, int]) -> None:
    """Tokens, counters, process table and service are what the workload and the second bookkeeper say."""
    frontend, core = parts.frontend, parts.core
    assert frontend.refused == {}
    for program in programs:
        for call in program:
            handle = handles[call.call_id]
            assert frontend.tokens[handle] == call.expected, call.call_id
            stopped = call.expected[-1] == EOS
            reason = pb.FINISH_REASON_STOP if stopped else pb.FINISH_REASON_LENGTH
            assert frontend.finished[handle].reason == reason
            assert frontend.finished[handle].service_s == pytest.approx(core.service_s[call.call_id])
    listed = await frontend.programs.ListPrograms(pb.ListProgramsRequest(tenant="tenant"))
    records = {record.program_id: record for record in listed.programs}
    assert len(records) == len(programs)
    for program in programs:
        record = records[program[0].program_id]
        assert record.state == pb.PROGRAM_STATE_ENDED
        assert (record.finished_calls, record.live_calls) == (len(program), 0)
        assert record.tokens == sum(len(call.expected) for call in program)
        assert record.prompt_tokens == sum(len(call.prompt) for call in program)
        charged_s = sum(core.service_s[call.call_id] for call in program)
        assert record.attained_service_s == pytest.approx(charged_s)
        assert record.attained_service_s > 0
    statistics = await frontend.programs.GetStatistics(pb.GetStatisticsRequest())
    assert statistics.tokens == sum(len(tokens) for tokens in frontend.tokens.values())
    assert statistics.calls_finished == len(handles)
    assert statistics.live_calls == statistics.open_programs == 0
    assert statistics.steps == sum(core.steps.values())


@pytest.mark.parametrize(("policy", "preemptions_least"), [("plas", 50), ("fcfs", 10)])
async def test_all_calls_finish_with_their_tokens_and_the_table_adds_up(
    policy: str, preemptions_least: int
) -> None:
    """Under fcfs only memory preempts."""
    programs = workload(seed=1)
    async with together(**{"--policy": policy}) as parts:
        handles = await run_all(parts, programs)
        await assert_books(parts, programs, handles)
        assert set(parts.core.steps) == {"one", "two"}
        statistics = await parts.frontend.programs.GetStatistics(pb.GetStatisticsRequest())
        assert statistics.preemptions >= preemptions_least
        assert statistics.cached_tokens > 0
        assert parts.core.lost == []


async def test_a_killed_executor_costs_no_call_and_no_token() -> None:
    programs = workload(seed=2)
    total = sum(len(call.expected) for program in programs for call in program)
    async with together() as parts:
        running = asyncio.create_task(run_all(parts, programs))
        await until(lambda: received(parts.frontend) > total // 3)
        await parts.executors.kill("two")
        await until(lambda: parts.core.lost == ["two"])
        handles = await running
        await assert_books(parts, programs, handles)
        assert received(parts.frontend) == total
        statistics = await parts.frontend.programs.GetStatistics(pb.GetStatisticsRequest())
        assert statistics.recomputed_tokens > 0
        assert len(parts.core.executors()) == 1


async def test_executors_come_and_go() -> None:
    programs = workload(seed=3)
    total = sum(len(call.expected) for program in programs for call in program)
    async with together() as parts:
        running = asyncio.create_task(run_all(parts, programs))
        await until(lambda: received(parts.frontend) > total // 5)
        parts.executors.start("three")
        await parts.executors.kill("one")
        await until(lambda: parts.core.steps["three"] > 0)
        parts.executors.start("one")
        await until(lambda: received(parts.frontend) > total // 2)
        await parts.executors.drain("two")
        handles = await running
        await assert_books(parts, programs, handles)


async def test_an_executor_that_an_operator_drains_leaves_and_its_calls_go_on() -> None:
    programs = workload(seed=5)[:8]
    total = sum(len(call.expected) for program in programs for call in program)
    async with together() as parts:
        running = asyncio.create_task(run_all(parts, programs))
        await until(lambda: received(parts.frontend) > total // 4)
        await parts.frontend.programs.DrainExecutor(pb.DrainExecutorRequest(executor_id="two"))
        await parts.executors.until_left("two")
        handles = await running
        await assert_books(parts, programs, handles)
        assert [executor.executor_id for executor in parts.core.executors()] == ["one"]


async def test_calls_wait_for_an_executor_when_the_last_is_gone() -> None:
    programs = workload(seed=4)[:8]
    total = sum(len(call.expected) for program in programs for call in program)
    async with together() as parts:
        running = asyncio.create_task(run_all(parts, programs))
        await until(lambda: received(parts.frontend) > total // 4)
        await parts.executors.kill("one")
        await parts.executors.kill("two")
        await until(lambda: len(parts.core.executors()) == 0)
        parts.executors.start("three")
        handles = await running
        await assert_books(parts, programs, handles)


def received(frontend: FakeFrontend) -> int:
    """Tokens that have come."""
    return sum(len(tokens) for tokens in frontend.tokens.values())


async def until(condition: Callable[[], bool]) -> None:
    """Returns when the condition holds; fails after a while."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - the condition is set by streams
            await asyncio.sleep(0.002)
