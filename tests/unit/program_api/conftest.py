"""A served program API: real gRPC on a free port, fakes behind it."""

from collections.abc import AsyncIterator
from dataclasses import dataclass

import grpc
import pytest

from frontend_svc.auth import ApiKeys
from frontend_svc.call_context import CallRegistry
from frontend_svc.ids import new_id
from frontend_svc.program_auth import TenantGuard
from frontend_svc.program_grpc import SERVICE_NAME, register_programs
from frontend_svc.program_service import ProgramService
from protos.autellix.program.v1 import program_pb2_grpc as pb_grpc
from svc_runtime.grpc_aio import GrpcServer, open_channel
from tests.unit.program_api.fakes import FakeModel, FakePrograms

KEYS = ApiKeys([("acme", "key-of-acme"), ("rival", "key-of-rival")])
ACME = (("authorization", "Bearer key-of-acme"),)
RIVAL = (("authorization", "Bearer key-of-rival"),)


@dataclass
class Served:
    """What a test talks to and looks at."""

    port: int
    stub: pb_grpc.ProgramServiceStub
    channel: grpc.aio.Channel
    programs: FakePrograms
    model: FakeModel
    calls: CallRegistry


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    programs, model, calls = FakePrograms(), FakeModel(), CallRegistry()
    service = ProgramService(programs, model, calls, new_id)
    server = GrpcServer(
        host="127.0.0.1",
        port=0,
        register=register_programs(service),
        service_names=[SERVICE_NAME],
        interceptors=[TenantGuard(KEYS.tenant_of_authorization)],
    )
    port = await server.start()
    async with open_channel(f"127.0.0.1:{port}") as channel:
        stub = pb_grpc.ProgramServiceStub(channel)
        yield Served(port, stub, channel, programs, model, calls)
    await server.stop(0)
