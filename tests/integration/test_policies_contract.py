"""The contract under every policy: tokens equal plain vLLM, with KV swapped, paused and recomputed by force.

One executor and one frontend; the scheduler is started anew for each way with preempted KV, in lockstep and
one plan ahead, and then switched from policy to policy by its own RPC. The counter-check leaves the copies
back to the device out: it must not be equal.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.cluster import ONE_THREAD, Cluster
from bench.mixed_requests import greedy_requests
from bench.program_client import Generated, ProgramClient
from protos.autellix.scheduler.v1 import scheduler_pb2 as pb
from protos.autellix.scheduler.v1 import scheduler_pb2_grpc as rpc
from svc_runtime.grpc_aio import open_channel
from tests.integration import baseline

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

REQUESTS = greedy_requests(32, seed=23)
PROGRAMS = 8
POLICIES = ("fcfs", "program_fcfs", "mlfq", "plas", "atlas", "gittins")
PREEMPTIVE = ("mlfq", "plas", "atlas", "gittins")
SMALL_ENGINE = {
    "dtype": "float32",
    "block_size": 32,
    "max_model_len": 1024,
    "max_num_seqs": 6,
    "max_num_batched_tokens": 96,
    "num_gpu_blocks_override": 33,
    "enforce_eager": True,
    "kv_cache_gib": 1,
    "host_kv_gib": 0.25,
}
TURNS = {
    "levels": 6,
    "first_quantum_s": 0.01,
    "service_unit": "seconds",
    "starvation_beta": 1000,
    "preemption_grace_s": 0,
}


@pytest.fixture(scope="module")
def expected(tiny_model: Path) -> list[list[int]]:
    return [answer["token_ids"] for answer in baseline.generate(tiny_model, REQUESTS)]


@pytest.fixture(scope="module")
def cluster(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    directory = tmp_path_factory.mktemp("policies")
    with Cluster(directory, model=tiny_model, scheduler=TURNS, executor=SMALL_ENGINE) as running:
        yield running


async def generate(cluster: Cluster) -> list[Generated]:
    async with ProgramClient(cluster.grpc_target) as client:
        return await client.generate_all(REQUESTS, programs=PROGRAMS)


async def switch(cluster: Cluster, policy: str) -> None:
    async with open_channel(cluster.scheduler_target, peer_token=cluster.peer_token) as channel:
        reply = await rpc.SchedulerServiceStub(channel).SetPolicy(
            pb.SetPolicyRequest(policy=policy), timeout=10
        )
    assert reply.policy == policy


async def statistics(cluster: Cluster) -> pb.GetStatisticsResponse:
    async with open_channel(cluster.scheduler_target, peer_token=cluster.peer_token) as channel:
        stub = rpc.SchedulerServiceStub(channel)
        return await stub.GetStatistics(pb.GetStatisticsRequest(), timeout=10)


def unequal(generated: list[Generated], expected: list[list[int]]) -> list[int]:
    pairs = zip(generated, expected, strict=True)
    return [index for index, (ours, plain) in enumerate(pairs) if ours.token_ids != plain]


@pytest.mark.parametrize("plans", [1, 2], ids=["lockstep", "one-ahead"])
@pytest.mark.parametrize("kv", ["swap", "pause", "drop"])
async def test_tokens_equal_plain_vllm_under_every_policy(
    cluster: Cluster, expected: list[list[int]], kv: str, plans: int
) -> None:
    cluster.restart_scheduler(kv_preempted=kv, max_plans_in_flight=plans)
    for policy in POLICIES:
        await switch(cluster, policy)
        before = await statistics(cluster)
        generated = await generate(cluster)
        after = await statistics(cluster)
        assert unequal(generated, expected) == [], policy
        if policy in PREEMPTIVE:
            assert after.preemptions > before.preemptions, policy
    if kv == "swap":
        assert after.swapped_out_blocks > 100
        assert after.swapped_in_blocks > 100
        assert after.recomputed_tokens == 0, "the host tier has room for all"
    if kv == "drop":
        assert after.recomputed_tokens > 0


async def test_leaving_out_the_copies_back_is_noticed(
    tiny_model: Path, expected: list[list[int]], tmp_path: Path
) -> None:
    broken = Cluster(
        tmp_path,
        model=tiny_model,
        scheduler=TURNS | {"kv_preempted": "swap", "policy": "plas"},
        executor=SMALL_ENGINE,
        scheduler_module="tests.integration.broken_scheduler",
        env=ONE_THREAD | {"BROKEN": "swap_in"},
    )
    with broken:
        generated = await generate(broken)
        assert (await statistics(broken)).swapped_in_blocks > 0
    assert unequal(generated, expected) != []
