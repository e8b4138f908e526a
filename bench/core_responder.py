"""What stands in for an executor in the core bench: plan bytes in, result bytes out, no model.

It keeps what an executor keeps of a call (tokens computed, tokens known, blocks held) in arrays by handle,
obeys each plan to the letter, and fails on one that no executor could obey. It works outside the timed parts.
"""

from collections import deque

import numpy as np
import numpy.typing as npt

from bench.core_load import BLOCK_SIZE, VOCAB_SIZE
from protos.autellix.executor.v1 import executor_pb2 as pb

STEP_S = 0.010
"""What a step is said to take."""
Ints = npt.NDArray[np.int32]


class Responder:
    """The executor's side of the stream, as bytes."""

    def __init__(self) -> None:
        self._known = np.zeros(1024, np.int64)
        """Tokens of prompt and output by handle; 0: unknown handle."""
        self._computed = np.zeros(1024, np.int64)
        self._blocks = np.zeros(1024, np.int64)
        """Length of the block table by handle."""
        self.results: deque[bytes] = deque()
        """Serialised AttachRequests with the results of the plans executed so far, oldest first."""

    def receive(self, packed: bytes) -> None:
        """Takes one serialised AttachResponse; a plan is executed at once."""
        message = pb.AttachResponse.FromString(packed)
        for call in message.announced.calls:
            self._grow(call.handle)
            self._known[call.handle] = (len(call.prompt_token_ids) + len(call.output_token_ids)) // 4
        if message.HasField("plan"):
            self._execute(message.plan)

    def _grow(self, handle: int) -> None:
        if handle >= len(self._known):
            for name in ("_known", "_computed", "_blocks"):
                old = getattr(self, name)
                setattr(self, name, np.concatenate([old, np.zeros_like(old)]))

    def _execute(self, plan: pb.StepPlan) -> None:
        handles = _column(plan.handles)
        joined = handles[_column(plan.joined_rows)]
        self._computed[joined] = _column(plan.joined_computed)
        self._blocks[joined] = 0
        for group in plan.blocks:
            self._blocks[handles[_column(group.rows)]] += _column(group.counts)
        counts = np.ones(len(handles), np.int64)
        counts[_column(plan.chunk_rows)] = _column(plan.chunk_tokens)
        self._computed[handles] += counts
        computed, known = self._computed[handles], self._known[handles]
        assert (computed <= known).all(), f"step {plan.step} computes tokens that do not exist"
        assert (computed <= self._blocks[handles] * BLOCK_SIZE).all(), f"step {plan.step} lacks blocks"
        sampled = handles[computed == known]
        self._known[sampled] += 1
        self._known[_column(plan.released_handles)] = 0
        self.results.append(self._result(plan.step, sampled))

    def _result(self, step: int, sampled: Ints) -> bytes:
        tokens = (sampled.astype(np.int64) * 7919 + step * 31) % (VOCAB_SIZE - 6) + 6
        result = pb.StepResult(
            step=step,
            handles=sampled.astype("<i4").tobytes(),
            tokens=tokens.astype("<i4").tobytes(),
            step_s=STEP_S,
        )
        return pb.AttachRequest(result=result).SerializeToString()


def _column(packed: bytes) -> Ints:
    return np.frombuffer(packed, "<i4")
