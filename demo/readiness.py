"""Conditions that a starting stack waits for: each is asked again and again until it holds.

None of them raises when the service is not there yet; that is what "not yet" looks like.
"""

from collections.abc import Awaitable, Callable

import grpc
import httpx
from grpc_health.v1 import health_pb2, health_pb2_grpc

from protos.autellix.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc
from svc_runtime.grpc_aio import open_channel

Condition = Callable[[], Awaitable[bool]]

PROBE_S = 2.0
"""Time that one question may take."""


def grpc_serving(target: str) -> Condition:
    """The gRPC server at `host:port` says SERVING."""

    async def holds() -> bool:
        async with open_channel(target) as channel:
            try:
                request = health_pb2.HealthCheckRequest()
                answer = await health_pb2_grpc.HealthStub(channel).Check(request, timeout=PROBE_S)
            except grpc.RpcError:
                return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    return holds


def executors_attached(scheduler: str, peer_token: str, count: int) -> Condition:
    """At least `count` executors have loaded their model and registered."""

    async def holds() -> bool:
        async with open_channel(scheduler, peer_token=peer_token) as channel:
            stub = scheduler_pb2_grpc.SchedulerServiceStub(channel)
            try:
                answer = await stub.ListExecutors(scheduler_pb2.ListExecutorsRequest(), timeout=PROBE_S)
            except grpc.RpcError:
                return False
        return len(answer.executors) >= count

    return holds


def http_healthy(url: str) -> Condition:
    """`GET /health` answers 200."""

    async def holds() -> bool:
        async with httpx.AsyncClient(trust_env=False, timeout=PROBE_S) as client:
            try:
                answer = await client.get(f"{url}/health")
            except httpx.HTTPError:
                return False
        return answer.status_code == httpx.codes.OK

    return holds
