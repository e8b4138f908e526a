"""The frontend of `bench.fleet`: submits many calls on one stream and takes their tokens as columns.

What comes is kept as it came and looked at afterwards: `check` then proves for every call that its tokens are
the simulated model's, in order, none missing and none twice.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import grpc
import numpy as np

from executor_svc.simulated_tokens import TokenRule, extend_each, hash_prefixes
from protos.autellix.scheduler.v1 import scheduler_pb2 as pb
from protos.autellix.scheduler.v1 import scheduler_pb2_grpc as rpc
from svc_runtime.columns import pack_i32

TENANT = "bench"
PROMPT_TOKENS = 32
PROMPT_IDS_MAX = 30_000


def prompt_of(handle: int) -> list[int]:
    """The prompt of a call; all differ from their first token on, or their second."""
    return [handle % PROMPT_IDS_MAX, handle // PROMPT_IDS_MAX] + [
        (handle * 131 + index * 7) % PROMPT_IDS_MAX for index in range(PROMPT_TOKENS - 2)
    ]


@dataclass
class FleetClient:
    """One stream to the scheduler."""

    channel: grpc.aio.Channel
    calls: int
    programs: int
    max_tokens: int
    columns: list[tuple[bytes, bytes]] = field(default_factory=list)
    """Handles and tokens of each message."""
    tokens: int = 0
    finished: int = 0

    async def run(self) -> None:
        """Submits everything, then receives for ever.

        Raises: RuntimeError when the scheduler refuses a call.
        """
        stub = rpc.SchedulerServiceStub(self.channel)
        opened = await asyncio.gather(*(self._open(stub, number) for number in range(self.programs)))
        async for response in stub.Connect(self._requests(list(opened))):
            outputs = response.outputs
            if handles := outputs.handles:
                self.tokens += len(handles) // 4
                self.columns.append((handles, outputs.tokens))
                self.finished += len(outputs.finished)
            elif response.HasField("refused"):
                raise RuntimeError(f"refused: {response.refused}")

    def check(self, rule: TokenRule) -> int:
        """Proves the tokens received so far; returns the number of tokens of the call that got fewest.

        Raises: RuntimeError naming a call whose tokens are not what they must be.
        """
        handles = np.frombuffer(b"".join(handles for handles, _ in self.columns), "<i4")
        tokens = np.frombuffer(b"".join(tokens for _, tokens in self.columns), "<i4")
        tokens = tokens[np.argsort(handles, kind="stable")]
        counts = np.bincount(handles, minlength=self.calls)
        starts = np.cumsum(counts) - counts
        prefixes = np.array([hash_prefixes(prompt_of(handle))[-1] for handle in range(self.calls)])
        for index in range(int(counts.max(initial=0))):
            expected = rule.after_each(prefixes)
            live = np.flatnonzero(counts > index)
            wrong = live[tokens[starts[live] + index] != expected[live]]
            if len(wrong):
                raise RuntimeError(f"call {wrong[0]}: token {index} is not the one that must come")
            prefixes = extend_each(prefixes, expected)
        return int(counts.min())

    async def _open(self, stub: rpc.SchedulerServiceStub, number: int) -> str:
        request = pb.OpenProgramRequest(tenant=TENANT, program_id=f"00000000-0000-7000-8000-{number:012d}")
        return str((await stub.OpenProgram(request, timeout=60)).program.program_id)

    async def _requests(self, programs: list[str]) -> AsyncIterator[pb.ConnectRequest]:
        yield pb.ConnectRequest(hello=pb.Hello(protocol_version=1, frontend_id=TENANT))
        for handle in range(self.calls):
            submit = pb.Submit(
                handle=handle,
                call_id=f"bench-{handle}",
                tenant=TENANT,
                program_id=programs[handle % len(programs)],
                model="simulated",
                prompt_token_ids=pack_i32(prompt_of(handle)),
                max_tokens=self.max_tokens,
                params_format="simulated",
            )
            yield pb.ConnectRequest(submit=submit)
        await asyncio.Event().wait()
