"""What a frontend is to be told of its calls, collected until its writer is free: one StepOutputs."""

from protos.autellix.scheduler.v1 import scheduler_pb2 as pb
from scheduler_svc.core.effects import EmitTokens, FinishCall, ReportStarted
from scheduler_svc.shell import frontend_wire
from svc_runtime.columns import pack_i32

TOKEN_BYTES = 8
RECORD_BYTES = 128
"""Rough costs, for bounds on what is collected: one token of one call; one start, end or payload."""


class OutputColumns:
    """Outputs in the order in which the core emitted them, for one frontend."""

    def __init__(self) -> None:
        self._clear()

    def __bool__(self) -> bool:
        return bool(self._handles or self._started or self._finished)

    @property
    def cost_bytes(self) -> int:
        """About what is collected, in bytes."""
        return self._cost_bytes

    def emit(self, effect: EmitTokens) -> None:
        """One step's tokens."""
        offset = len(self._handles)
        self._handles += effect.handles
        self._tokens += effect.tokens
        self._cost_bytes += TOKEN_BYTES * len(effect.tokens)
        for index, payload in effect.payloads.items():
            self._payloads.append(pb.TokenPayload(index=offset + index, payload=payload))
            self._cost_bytes += len(payload) + RECORD_BYTES

    def started(self, effect: ReportStarted) -> None:
        """The start of a call."""
        self._started.append(frontend_wire.call_started(effect))
        self._cost_bytes += RECORD_BYTES

    def finished(self, effect: FinishCall) -> None:
        """The end of a call."""
        self._finished.append(frontend_wire.call_finished(effect))
        self._cost_bytes += RECORD_BYTES

    def take(self, status: pb.EngineStatus) -> pb.StepOutputs:
        """Encodes and forgets what is collected."""
        outputs = pb.StepOutputs(
            handles=pack_i32(self._handles),
            tokens=pack_i32(self._tokens),
            started=self._started,
            finished=self._finished,
            payloads=self._payloads,
            status=status,
        )
        self._clear()
        return outputs

    def _clear(self) -> None:
        self._handles: list[int] = []
        self._tokens: list[int] = []
        self._payloads: list[pb.TokenPayload] = []
        self._started: list[pb.CallStarted] = []
        self._finished: list[pb.CallFinished] = []
        self._cost_bytes = 0
