"""The real model, served the way that `make up` and `make demo` do it."""

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import psutil
import pytest

from demo.experiment import Experiment
from demo.models import resolve_model
from demo.ports import free_port
from demo.programs import TreeSearch
from demo.report import Comparison
from demo.stack import Stack, StackOptions, StackPorts
from demo.workload import WorkloadOptions, make_workload

pytestmark = pytest.mark.timeout(480)

ALL_SERVICES = {"scheduler", "executor-1", "frontend"}
SMALL = WorkloadOptions(
    chats=2,
    gap_s_mean=0.2,
    pause_s_max=0.4,
    tree=TreeSearch(task="Plan a picnic.", depth=1, width=3, keep=4, thought_tokens=8, answer_tokens=8),
)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    model = resolve_model("smollm2", say=print)
    ports = StackPorts(http=free_port(), grpc=free_port(), scheduler=free_port(), metrics=None)
    options = StackOptions(
        model=model, policy="fcfs", ports=ports, max_num_seqs=4, kv_cache_gib=1.0, eager=True, drain_s=5
    )
    stack = Stack(options, tmp_path_factory.mktemp("stack"), print)
    try:
        asyncio.run(stack.start())
        yield stack
    finally:
        stack.stop()


@pytest.fixture
def client(stack: Stack) -> Iterator[openai.OpenAI]:
    http_client = openai.DefaultHttpxClient(trust_env=False)
    with openai.OpenAI(base_url=f"{stack.url}/v1", api_key="none", http_client=http_client) as client:
        yield client


def ask(client: openai.OpenAI, question: str, **options: Any) -> str:
    answer = client.chat.completions.create(
        model="SmolLM2-135M-Instruct",
        messages=[{"role": "user", "content": question}],
        max_tokens=32,
        temperature=0,
        **options,
    )
    return answer.choices[0].message.content or ""


def programs(stack: Stack) -> dict[str, dict[str, Any]]:
    """GET /v1/programs by session key."""
    answer = httpx.get(f"{stack.url}/v1/programs", trust_env=False)
    return {row["session"]: row for row in answer.raise_for_status().json()["programs"]}


def pids(stack: Stack) -> dict[str, int]:
    """Process ids of the services."""
    return {status.name: status.pid or 0 for status in stack.runner.statuses()}


def test_the_model_answers_sensibly(client: openai.OpenAI) -> None:
    assert "Paris" in ask(client, "What is the capital of France?")


def test_streaming_gives_the_same_text_as_waiting(client: openai.OpenAI) -> None:
    question = "Name three fruits."
    stream = client.chat.completions.create(
        model="SmolLM2-135M-Instruct",
        messages=[{"role": "user", "content": question}],
        max_tokens=32,
        temperature=0,
        stream=True,
    )
    pieces = [chunk.choices[0].delta.content or "" for chunk in stream]
    assert len(pieces) > 3
    assert "".join(pieces) == ask(client, question)


def test_calls_with_one_session_id_are_one_program(client: openai.OpenAI, stack: Stack) -> None:
    for question in ("Hello", "And again"):
        ask(client, question, extra_headers={"X-Session-ID": "an-agent"})
    row = programs(stack)["an-agent"]
    assert (row["finished_calls"], row["live_calls"], row["state"]) == (2, 0, "idle")
    assert row["tokens"] > 2
    assert row["attained_service_s"] > 0


def test_both_policies_do_the_same_work_and_the_server_counts_it(stack: Stack) -> None:
    """The demo in small; the scheduler is restarted in between, the executor keeps its model."""
    arrivals = make_workload(SMALL, seed=5)
    executor = pids(stack)["executor-1"]

    async def run(prefix: str) -> Any:
        async with Experiment(stack) as experiment:
            return await experiment.run(arrivals, prefix=prefix)

    before = asyncio.run(run("before/"))
    asyncio.run(stack.change_policy("plas"))
    after = asyncio.run(run("after/"))
    Comparison(before_policy="fcfs", after_policy="plas", before=before, after=after)
    seen = programs(stack)
    for outcome in after:
        row = seen[f"after/{outcome.name}"]
        assert (row["finished_calls"], row["tokens"]) == (outcome.calls, outcome.tokens)
        assert row["state"] == "ended"
    assert pids(stack)["executor-1"] == executor
    assert "plas" in psutil.Process(pids(stack)["scheduler"]).cmdline()


def test_stopping_leaves_no_process(stack: Stack) -> None:
    """Last in this file: it ends the stack."""
    running = pids(stack)
    assert {name for name, pid in running.items() if psutil.pid_exists(pid)} == ALL_SERVICES
    assert stack.stop() is True
    assert not [name for name, pid in running.items() if psutil.pid_exists(pid)]
