"""An executor is killed in mid-call: its calls wait, continue on its successor, and equal plain vLLM."""

import asyncio
from pathlib import Path

import pytest

from bench.cluster import Cluster
from bench.mixed_requests import greedy_requests, sampled_requests
from bench.program_client import ProgramClient
from protos.autellix.scheduler.v1 import scheduler_pb2 as pb
from protos.autellix.scheduler.v1 import scheduler_pb2_grpc as rpc
from svc_runtime.grpc_aio import open_channel
from tests.integration import baseline

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

REQUESTS = [*greedy_requests(10), *sampled_requests(30)]
ENGINE = {
    "dtype": "float32",
    "block_size": 32,
    "max_model_len": 1024,
    "max_num_seqs": 12,
    "max_num_batched_tokens": 128,
    "enforce_eager": True,
    "kv_cache_gib": 1,
}


async def wait_for_tokens(cluster: Cluster, tokens: int) -> None:
    """Returns once the scheduler has counted `tokens` generated tokens."""
    async with open_channel(cluster.scheduler_target, peer_token=cluster.peer_token) as channel:
        stub = rpc.SchedulerServiceStub(channel)
        async with asyncio.timeout(60):
            while (await stub.GetStatistics(pb.GetStatisticsRequest(), timeout=5)).tokens < tokens:  # noqa: ASYNC110 - polls a peer
                await asyncio.sleep(0.005)


async def test_calls_continue_on_a_restarted_executor(tiny_model: Path, tmp_path: Path) -> None:
    expected = baseline.generate(tiny_model, REQUESTS)
    total = sum(len(answer["token_ids"]) for answer in expected)
    with Cluster(tmp_path, model=tiny_model, executor=ENGINE) as cluster:
        async with ProgramClient(cluster.grpc_target) as client:
            running = asyncio.create_task(client.generate_all(REQUESTS, programs=8))
            await wait_for_tokens(cluster, total // 3)
            assert not running.done()
            executor = cluster.services["executor-0"]
            executor.kill()
            executor.restart()
            generated = await running
    assert [answer.token_ids for answer in generated] == [answer["token_ids"] for answer in expected]
    with_logprobs = [pair for pair in zip(generated, expected, strict=True) if pair[0].logprobs]
    assert len(with_logprobs) == 6
    for ours, plain in with_logprobs:
        assert ours.logprobs == pytest.approx(plain["logprobs"], abs=2e-3)
