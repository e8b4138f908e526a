"""A frontend as the scheduler sees it: a real gRPC client that submits calls and adds up what comes back."""

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from typing import Self

import grpc

from protos.autellix.scheduler.v1 import scheduler_pb2 as pb
from protos.autellix.scheduler.v1 import scheduler_pb2_grpc as pb_grpc
from svc_runtime.columns import pack_i32, unpack_i32
from tests.unit.scheduler_shell.fake_executor import PARAMS_FORMAT
from tests.unit.scheduler_shell.waiting import until


def submit(handle: int, prompt: Sequence[int] = (1, 2, 3), **changed: object) -> pb.Submit:
    """A call that is accepted once its program is open, with changes."""
    fields: dict[str, object] = {
        "handle": handle,
        "call_id": f"call-{handle}",
        "tenant": "tenant",
        "program_id": "program",
        "model": "test-model",
        "prompt_token_ids": pack_i32(prompt),
        "max_tokens": 8,
        "params": b"params",
        "params_format": PARAMS_FORMAT,
    }
    return pb.Submit(**(fields | changed))


class FakeFrontend:
    """One connected frontend. `reads=False` reads its Welcome and then nothing, until `read_on`."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        frontend_id: str = "frontend",
        *,
        version: int = 1,
        reads: bool = True,
    ) -> None:
        self.programs = pb_grpc.SchedulerServiceStub(channel)
        self.welcome: pb.Welcome | None = None
        self.tokens: dict[int, list[int]] = defaultdict(list)
        self.started: list[pb.CallStarted] = []
        self.finished: dict[int, pb.CallFinished] = {}
        self.refused: dict[int, pb.Refusal] = {}
        self.models: list[pb.ModelsChanged] = []
        self.outputs: list[pb.StepOutputs] = []
        self._hello = pb.Hello(protocol_version=version, frontend_id=frontend_id)
        self._stream = self.programs.Connect()
        self._reads = reads
        self._reading: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self.send(hello=self._hello)
        first = await self._stream.read()
        assert first is not grpc.aio.EOF, await self._stream.code()
        self.welcome = first.welcome
        if self._reads:
            self.read_on()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.lose()

    def read_on(self) -> None:
        """Starts to read."""
        self._reading = asyncio.create_task(self._read())

    async def send(self, **message: object) -> None:
        await self._stream.write(pb.ConnectRequest(**message))

    async def lose(self) -> None:
        """Vanishes, without a word."""
        self._stream.cancel()
        if self._reading is not None:
            await asyncio.gather(self._reading, return_exceptions=True)

    async def ended(self) -> grpc.StatusCode:
        """The status with which the scheduler ended the stream."""
        async with asyncio.timeout(10):
            return await self._stream.code()

    async def open_program(self, program_id: str = "program", tenant: str = "tenant") -> pb.ProgramRecord:
        request = pb.OpenProgramRequest(tenant=tenant, program_id=program_id)
        return (await self.programs.OpenProgram(request)).program

    async def submit(self, handle: int, prompt: Sequence[int] = (1, 2, 3), **changed: object) -> None:
        await self.send(submit=submit(handle, prompt, **changed))

    async def cancel(self, *handles: int, reason: int = pb.CANCEL_REASON_CLIENT) -> None:
        await self.send(cancel=pb.Cancel(handles=pack_i32(handles), reason=reason))

    async def acknowledge(self, *handles: int) -> None:
        await self.send(acknowledge=pb.Acknowledge(handles=pack_i32(handles)))

    async def finish(self, *handles: int) -> None:
        """Returns when these calls have ended."""
        await until(lambda: all(handle in self.finished for handle in handles), f"calls {handles} end")

    async def _read(self) -> None:
        try:
            while (message := await self._stream.read()) is not grpc.aio.EOF:
                self._receive(message)
        except (grpc.aio.AioRpcError, asyncio.CancelledError):
            return

    def _receive(self, message: pb.ConnectResponse) -> None:
        match message.WhichOneof("message"):
            case "outputs":
                self._outputs(message.outputs)
            case "refused":
                self.refused[message.refused.handle] = message.refused.refusal
            case "models_changed":
                self.models.append(message.models_changed)

    def _outputs(self, outputs: pb.StepOutputs) -> None:
        self.outputs.append(outputs)
        self.started += outputs.started
        for handle, token in zip(unpack_i32(outputs.handles), unpack_i32(outputs.tokens), strict=True):
            assert handle not in self.finished, "a token after the end of its call"
            self.tokens[handle].append(token)
        for finished in outputs.finished:
            self.finished[finished.handle] = finished
