"""A small client of the public gRPC API: token ids in, token ids out."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import grpc

from protos.autellix.program.v1 import program_pb2 as pb
from protos.autellix.program.v1 import program_pb2_grpc as rpc


@dataclass(frozen=True, slots=True)
class Generated:
    """What one call produced. `logprobs` is empty unless asked for."""

    call_id: str
    token_ids: list[int]
    logprobs: list[float]
    finish_reason: int
    usage: pb.Usage


class ProgramClient:
    """Starts programs and runs calls."""

    def __init__(self, target: str) -> None:
        self._channel = grpc.aio.insecure_channel(target)
        self.stub = rpc.ProgramServiceStub(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._channel.close()

    async def start_program(self, class_name: str = "test") -> str:
        """Starts a program; returns its id."""
        reply = await self.stub.StartProgram(pb.StartProgramRequest(class_name=class_name), timeout=20)
        return str(reply.program.program_id)

    async def generate(self, program_id: str, prompt: Sequence[int], **sampling: Any) -> Generated:
        """Runs one call to its end; `sampling` are SamplingOptions fields."""
        request = pb.GenerateRequest(
            program_id=program_id,
            token_ids=pb.TokenIds(ids=prompt),
            sampling=pb.SamplingOptions(**sampling),
        )
        call_id, finish_reason, usage = "", 0, pb.Usage()
        token_ids: list[int] = []
        logprobs: list[float] = []
        async for part in self.stub.Generate(request, timeout=180):
            call_id = part.call_id or call_id
            token_ids.extend(part.token_ids)
            logprobs.extend(row.logprob for row in part.logprobs)
            if part.finish_reason:
                finish_reason, usage = part.finish_reason, part.usage
        return Generated(call_id, token_ids, logprobs, finish_reason, usage)

    async def generate_all(
        self, requests: Sequence[dict[str, Any]], *, programs: int, class_name: str = "test"
    ) -> list[Generated]:
        """Runs all requests at once, spread over `programs` programs; results in order of the requests."""
        ids = [await self.start_program(class_name) for _ in range(programs)]
        calls = (
            self.generate(ids[index % programs], request["prompt"], **grpc_sampling(request))
            for index, request in enumerate(requests)
        )
        return list(await asyncio.gather(*calls))


def grpc_sampling(request: dict[str, Any]) -> dict[str, Any]:
    """The SamplingOptions fields of a request in the form of `tests.integration.baseline`."""
    sampling = dict(request["sampling"])
    if "json_schema" in request:
        sampling["json_schema"] = request["json_schema"]
    return sampling
