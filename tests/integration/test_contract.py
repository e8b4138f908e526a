"""The contract: tokens through the three services equal plain vLLM, whatever the scheduler does meanwhile.

Preemptions come from real limits (`max_num_seqs`, `num_gpu_blocks_override`) and from the policy, over TCP,
with no test hook in the product. The counter-check runs the same test with the recomputation of a resumed
call left out: it must not be equal.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.cluster import ONE_THREAD, Cluster
from bench.mixed_requests import greedy_requests, sampled_requests
from bench.program_client import Generated, ProgramClient
from protos.autellix.scheduler.v1 import scheduler_pb2 as pb
from protos.autellix.scheduler.v1 import scheduler_pb2_grpc as rpc
from svc_runtime.grpc_aio import open_channel
from tests.integration import baseline

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

GREEDY = {count: greedy_requests(count) for count in (1, 32, 128)}
SAMPLED = sampled_requests(40)
SMALL_ENGINE = {
    "dtype": "float32",
    "block_size": 32,
    "max_model_len": 1024,
    "max_num_seqs": 8,
    "max_num_batched_tokens": 96,
    "num_gpu_blocks_override": 49,
    "enforce_eager": True,
    "kv_cache_gib": 1,
}
EAGER_PREEMPTION = {"policy": "plas", "levels": 6, "first_quantum_s": 0.02, "starvation_beta": 1000}


@pytest.fixture(scope="module")
def expected(tiny_model: Path) -> dict[str, list[dict[str, object]]]:
    """Answers of plain vLLM, all from one process."""
    requests = [*GREEDY[1], *GREEDY[32], *GREEDY[128], *SAMPLED]
    answers = baseline.generate(tiny_model, requests)
    return {"1": answers[:1], "32": answers[1:33], "128": answers[33:161], "sampled": answers[161:]}


@pytest.fixture(scope="module")
def cluster(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    directory = tmp_path_factory.mktemp("contract")
    with Cluster(directory, model=tiny_model, scheduler=EAGER_PREEMPTION, executor=SMALL_ENGINE) as running:
        yield running


async def statistics(cluster: Cluster) -> pb.GetStatisticsResponse:
    async with open_channel(cluster.scheduler_target, peer_token=cluster.peer_token) as channel:
        stub = rpc.SchedulerServiceStub(channel)
        return await stub.GetStatistics(pb.GetStatisticsRequest(), timeout=10)


def unequal(generated: list[Generated], expected: list[dict[str, object]]) -> list[int]:
    pairs = zip(generated, expected, strict=True)
    return [i for i, (ours, plain) in enumerate(pairs) if ours.token_ids != plain["token_ids"]]


@pytest.mark.parametrize("count", [1, 32, 128])
async def test_greedy_tokens_equal_plain_vllm(
    cluster: Cluster, expected: dict[str, list[dict[str, object]]], count: int
) -> None:
    before = await statistics(cluster)
    async with ProgramClient(cluster.grpc_target) as client:
        generated = await client.generate_all(GREEDY[count], programs=max(1, count // 8))
    after = await statistics(cluster)
    assert unequal(generated, expected[str(count)]) == []
    assert after.tokens - before.tokens == sum(len(answer.token_ids) for answer in generated)
    if count == 128:
        assert after.preemptions - before.preemptions >= 50
        assert after.swapped_in_blocks > before.swapped_in_blocks
        assert after.cached_tokens > before.cached_tokens


async def test_sampling_continues_where_it_was_under_preemption(
    cluster: Cluster, expected: dict[str, list[dict[str, object]]]
) -> None:
    before = await statistics(cluster)
    async with ProgramClient(cluster.grpc_target) as client:
        generated = await client.generate_all(SAMPLED, programs=8)
    after = await statistics(cluster)
    assert unequal(generated, expected["sampled"]) == []
    for ours, plain in zip(generated, expected["sampled"], strict=True):
        if plain["logprobs"] and ours.logprobs:
            assert ours.logprobs == pytest.approx(plain["logprobs"], abs=2e-3)
    with_logprobs = [answer for answer in generated if answer.logprobs]
    assert len(with_logprobs) == len(SAMPLED) // 5
    assert after.preemptions > before.preemptions


async def test_leaving_out_the_recomputation_is_noticed(
    tiny_model: Path, expected: dict[str, list[dict[str, object]]], tmp_path: Path
) -> None:
    broken = Cluster(
        tmp_path,
        model=tiny_model,
        scheduler=EAGER_PREEMPTION,
        executor=SMALL_ENGINE,
        scheduler_module="tests.integration.broken_scheduler",
        env=ONE_THREAD | {"BROKEN": "recomputation"},
    )
    with broken:
        async with ProgramClient(broken.grpc_target) as client:
            generated = await client.generate_all(GREEDY[32], programs=4)
        assert (await statistics(broken)).preemptions > 0
    assert unequal(generated, expected["32"]) != []
