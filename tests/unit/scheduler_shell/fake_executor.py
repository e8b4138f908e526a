"""An executor as the scheduler sees it: a real gRPC client that obeys plans, or leaves them unanswered.

Its model is `next_token`: a function of all tokens before, so that a call must come out the same wherever and
however often it was computed. It keeps what a real one keeps and fails when a plan contradicts it.
"""

import asyncio
from typing import Self

import grpc

from protos.autellix.executor.v1 import executor_pb2 as pb
from protos.autellix.executor.v1 import executor_pb2_grpc as pb_grpc
from svc_runtime.columns import pack_i32, unpack_i32
from svc_runtime.rpc_errors import RpcFailure, parse_error

VOCAB_SIZE = 1000
PARAMS_FORMAT = "test/1"


def next_token(tokens: list[int]) -> int:
    """The token after these; never 0, which tests use as end-of-sequence."""
    return 1 + (31 * sum(tokens) + 7 * len(tokens)) % (VOCAB_SIZE - 1)


def continuation(prompt: list[int], count: int) -> list[int]:
    """What the model generates."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(next_token(tokens))
    return tokens[len(prompt) :]


def registration(**changed: object) -> pb.Registration:
    """A registration that is accepted, with changes."""
    fields: dict[str, object] = {
        "protocol_version": 1,
        "executor_id": "executor-a",
        "epoch": 1,
        "model": "test-model",
        "model_fingerprint": "weights",
        "tokenizer_fingerprint": "tokenizer",
        "runner": "fake",
        "simulated": True,
        "kv_groups": [pb.KvGroup(block_size=4, num_blocks=65)],
        "max_num_seqs": 4,
        "max_num_batched_tokens": 64,
        "max_model_len": 128,
        "vocab_size": VOCAB_SIZE,
        "max_plans_in_flight": 2,
        "params_formats": [PARAMS_FORMAT],
        "world_size": 1,
        "device": "none",
        "prefix_caching": True,
        "dtype": "float32",
    }
    return pb.Registration(**(fields | changed))


class FakeExecutor:
    """One attached executor. `obedient=False` leaves plans unanswered until `answer` is called."""

    def __init__(self, channel: grpc.aio.Channel, *, obedient: bool = True, **changed: object) -> None:
        self.registration = registration(**changed)
        self.accepted: pb.RegistrationAccepted | None = None
        self.calls: dict[int, pb.CallAnnouncement] = {}
        self.plans: list[pb.StepPlan] = []
        self._tokens: dict[int, list[int]] = {}
        self._computed: dict[int, int] = {}
        self._obedient = obedient
        self._answered = 0
        self._stream = pb_grpc.ExecutorServiceStub(channel).Attach()
        self._failure: RpcFailure | None = None
        self._reading: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self.send(pb.AttachRequest(registration=self.registration))
        first = await self._stream.read()
        assert first is not grpc.aio.EOF, await self._stream.code()
        self.accepted = first.accepted
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.lose()

    async def send(self, request: pb.AttachRequest) -> None:
        await self._stream.write(request)

    async def lose(self) -> None:
        """Vanishes, without a word."""
        self._stream.cancel()
        if self._reading is not None:
            await asyncio.gather(self._reading, return_exceptions=True)

    async def ended(self) -> grpc.StatusCode:
        """The status with which the scheduler ended the stream."""
        async with asyncio.timeout(10):
            return await self._stream.code()

    async def refusal(self) -> str:
        """The reason in the typed error with which the scheduler ended the stream; "" when it gave none."""
        assert self._reading is not None
        async with asyncio.timeout(10):
            await self._reading
        return self._failure.reason if self._failure else ""

    def batch(self, plan: pb.StepPlan) -> list[str]:
        """Call ids of a plan's rows."""
        return [self.calls[handle].call_id for handle in unpack_i32(plan.handles)]

    async def answer(self) -> None:
        """Answers the oldest plan that has no answer."""
        plan = self.plans[self._answered]
        self._answered += 1
        await self.send(pb.AttachRequest(result=self._execute(plan)))

    async def _read(self) -> None:
        try:
            while (message := await self._stream.read()) is not grpc.aio.EOF:
                await self._receive(message)
        except grpc.aio.AioRpcError as error:
            self._failure = parse_error(error)
        except asyncio.CancelledError:
            return

    async def _receive(self, message: pb.AttachResponse) -> None:
        if message.HasField("announced"):
            for call in message.announced.calls:
                assert call.handle not in self.calls, "a handle was used twice"
                self.calls[call.handle] = call
                prompt, output = unpack_i32(call.prompt_token_ids), unpack_i32(call.output_token_ids)
                self._tokens[call.handle] = prompt + output
                if call.needs_preparation:
                    await self.send(pb.AttachRequest(prepared=pb.CallPrepared(handle=call.handle)))
        elif message.HasField("plan"):
            assert message.plan.step == len(self.plans) + 1, "a gap in step numbers"
            self.plans.append(message.plan)
            if self._obedient:
                await self.answer()

    def _execute(self, plan: pb.StepPlan) -> pb.StepResult:
        handles = unpack_i32(plan.handles)
        chunks = dict(zip(unpack_i32(plan.chunk_rows), unpack_i32(plan.chunk_tokens), strict=True))
        joined = dict(zip(unpack_i32(plan.joined_rows), unpack_i32(plan.joined_computed), strict=True))
        sampled: list[tuple[int, int]] = []
        for row, handle in enumerate(handles):
            tokens = self._tokens[handle]
            self._computed[handle] = joined.get(row, self._computed.get(handle, 0)) + chunks.get(row, 1)
            assert self._computed[handle] <= len(tokens), "a plan computes tokens that do not exist"
            if self._computed[handle] == len(tokens):
                tokens.append(next_token(tokens))
                sampled.append((handle, tokens[-1]))
        return pb.StepResult(
            step=plan.step,
            handles=pack_i32(handle for handle, _ in sampled),
            tokens=pack_i32(token for _, token in sampled),
            step_s=0.01,
        )
