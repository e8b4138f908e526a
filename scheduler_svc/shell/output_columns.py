"""What a frontend is to be told of its calls, collected until its writer is free: one StepOutputs.

Tokens are not looked at one by one: the columns of each step are kept as the bytes they will be on the wire,
and joined when they are taken.
"""

from protos.autellix.scheduler.v1 import scheduler_pb2 as pb
from scheduler_svc.core.columns import Column
from scheduler_svc.core.effects import EmitTokens, FinishCall, ReportStarted
from scheduler_svc.shell import frontend_wire

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

    @property
    def changes_gauges(self) -> bool:
        """Whether a call started or ended."""
        return bool(self._started or self._finished)

    def emit(self, effect: EmitTokens) -> None:
        """One step's tokens."""
        count = len(effect.handles)
        self._handles.append(Column.of(effect.handles).packed)
        self._tokens.append(Column.of(effect.tokens).packed)
        for index, payload in effect.payloads.items():
            self._payloads.append(pb.TokenPayload(index=self._count + index, payload=payload))
            self._cost_bytes += len(payload) + RECORD_BYTES
        self._count += count
        self._cost_bytes += TOKEN_BYTES * count

    def started(self, effect: ReportStarted) -> None:
        """The start of a call."""
        self._started.append(effect)
        self._cost_bytes += RECORD_BYTES

    def finished(self, effect: FinishCall) -> None:
        """The end of a call."""
        self._finished.append(effect)
        self._cost_bytes += RECORD_BYTES

    def take(self, status: pb.EngineStatus | None = None) -> pb.ConnectResponse:
        """Encodes and forgets what is collected.

        Args:
            status: Gauges to send along; None: none.
        """
        response = pb.ConnectResponse()
        outputs = response.outputs
        outputs.SetInParent()
        outputs.handles = b"".join(self._handles)
        outputs.tokens = b"".join(self._tokens)
        for started in self._started:
            frontend_wire.fill_started(outputs.started.add(), started)
        for finished in self._finished:
            frontend_wire.fill_finished(outputs.finished.add(), finished)
        if self._payloads:
            outputs.payloads.extend(self._payloads)
        if status is not None:
            outputs.status.CopyFrom(status)
        self._clear()
        return response

    def _clear(self) -> None:
        self._handles: list[bytes] = []
        self._tokens: list[bytes] = []
        self._count = 0
        """Tokens collected."""
        self._payloads: list[pb.TokenPayload] = []
        self._started: list[ReportStarted] = []
        self._finished: list[FinishCall] = []
        self._cost_bytes = 0
