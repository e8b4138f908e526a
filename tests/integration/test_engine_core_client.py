"""Requests between AsyncLLM and the link: hashed on their way, and dropped if nobody wants them any more.

vllm is imported inside the tests: it brings warnings of its own, which are errors while tests are collected.
"""

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from frontend_svc.call_context import CallContext, CallRegistry
from frontend_svc.call_table import LiveCall
from frontend_svc.prompt_hashes import SLICE_BLOCKS
from protos.autellix.scheduler.v1 import scheduler_pb2 as pb
from svc_runtime.block_hashes import hash_prompt

pytestmark = [pytest.mark.filterwarnings(f"ignore:::{module}") for module in ("torch", "vllm", "xgrammar")]

BLOCK_SIZE = 2
LONG = [1 + number % 50 for number in range(BLOCK_SIZE * SLICE_BLOCKS * 4)]
"""Takes several turns of the event loop to hash."""


class Link:
    """A link that writes down what it is told."""

    def __init__(self) -> None:
        self.models = {"m": pb.ModelInfo(model="m", block_size=BLOCK_SIZE)}
        self.submitted: list[pb.Submit] = []
        self.cancelled: list[str] = []

    def submit(self, submit: pb.Submit, tag: str) -> LiveCall:
        self.submitted.append(submit)
        return LiveCall(submit, tag)

    def cancel(self, calls: Sequence[LiveCall], reason: pb.CancelReason) -> None:
        self.cancelled += [call.tag for call in calls]


@pytest.fixture
def calls() -> Iterator[CallRegistry]:
    """A registry with one live call, "r"."""
    registry = CallRegistry()
    with registry.registered(CallContext(call_id="r", tenant="ann", program_id="p")):
        yield registry


@pytest.fixture
def client(calls: CallRegistry) -> Any:
    """A client on a recording link."""
    from frontend_svc.engine_core_client import GrpcEngineCoreClient

    client = GrpcEngineCoreClient(model="m", calls=calls)
    client.link = Link()
    return client


def request_of(prompt: list[int]) -> Any:
    """vLLM's request of call "r"."""
    from vllm.sampling_params import SamplingParams
    from vllm.v1.engine import EngineCoreRequest

    fields: dict[str, Any] = {
        "request_id": "r",
        "prompt_token_ids": prompt,
        "sampling_params": SamplingParams(max_tokens=4),
        "cache_salt": "salt",
        "arrival_time": 0.0,
    }
    absent = ("mm_features", "pooling_params", "lora_request", "data_parallel_rank")
    return EngineCoreRequest(**fields, **dict.fromkeys(absent))


@pytest.mark.parametrize("prompt", [[5, 6, 7], LONG], ids=["short", "long"])
async def test_a_request_is_submitted_with_the_hashes_of_its_prompt(client: Any, prompt: list[int]) -> None:
    request = request_of(prompt)
    await client.add_request_async(request)
    (submit,) = client.link.submitted
    assert submit.hash_block_size == BLOCK_SIZE
    assert submit.prompt_block_hashes == hash_prompt("ann", "salt", prompt, BLOCK_SIZE)


async def test_without_executors_the_scheduler_hashes(client: Any) -> None:
    request = request_of([5, 6, 7])
    client.link.models.clear()
    await client.add_request_async(request)
    (submit,) = client.link.submitted
    assert (submit.prompt_block_hashes, submit.hash_block_size) == (b"", 0)


async def test_a_request_that_is_dropped_while_it_arrives_never_runs(client: Any) -> None:
    request = request_of(LONG)
    adding = asyncio.create_task(client.add_request_async(request))
    await asyncio.sleep(0)
    assert not adding.done(), "it is being hashed"
    client.cancel(["r"])
    await adding
    assert client.link.submitted == client.link.cancelled == []


async def test_a_request_that_is_dropped_later_is_cancelled_once(client: Any) -> None:
    request = request_of(LONG)
    await client.add_request_async(request)
    client.cancel(["r"])
    client.cancel(["r"])
    assert client.link.cancelled == ["r"]


async def test_a_cancelled_arrival_leaves_nothing_behind(client: Any) -> None:
    request = request_of(LONG)
    adding = asyncio.create_task(client.add_request_async(request))
    await asyncio.sleep(0)
    adding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await adding
    assert client.link.submitted == []
    await client.add_request_async(request)
    assert len(client.link.submitted) == 1
