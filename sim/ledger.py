"""What the frontends know: every call, what it must generate, what came and how it ended. Judges as it goes.

Each effect for a frontend is held against the record of its call, at once: a token that is wrong, lost,
doubled or late, a second end, an end without a cause, a refusal without a reason raises `Broken` in the very
event that brought it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from scheduler_svc.core.effects import EmitTokens, FinishCall, FinishReason, RefuseCall, ReportStarted
from scheduler_svc.core.events import CallSpec, CancelReason
from scheduler_svc.core.ids import CallId, FrontendId, StreamHandle
from sim.broken import Broken, require
from sim.executor import HeldCall
from sim.model import Expected

ABORTING = frozenset({CancelReason.CLIENT, CancelReason.PROGRAM, CancelReason.FRONTEND_LOST})


@dataclass(slots=True, eq=False)
class CallRecord:
    """One submitted call as its frontend sees it."""

    spec: CallSpec
    expected: Expected
    fingerprint: str
    """Of the model when the call was submitted."""
    output: list[int]
    """Starts with what came with the call."""
    submitted_s: float = 0.0
    refusals: frozenset[str] = frozenset()
    """Reasons for which it may be refused."""
    must_refuse: bool = False
    preparation_error: str = ""
    """What its executor will answer when it prepares the call."""
    script: Any = None
    """Whoever wants to know when it has ended."""
    accepted: bool = False
    started: bool = False
    refused: RefuseCall | None = None
    end: FinishCall | None = None
    acknowledged: bool = False
    cancelling: CancelReason | None = None
    """Set while an event that cancels it is handled."""
    may_fail: set[str] = field(default_factory=set)
    """Reasons for which it may fail from now on."""
    losses: int = 0
    """Executors lost while it was in their batch."""
    held: HeldCall | None = None
    """What its present executor knows of it."""
    held_by: Any = None
    """That executor."""

    @property
    def is_live(self) -> bool:
        return self.accepted and self.end is None

    def due_s(self) -> float | None:
        """When its deadline passes."""
        return None if self.spec.deadline_s is None else self.submitted_s + self.spec.deadline_s


class Ledger:
    """All calls of an episode by id, and by the names that their frontends gave them."""

    def __init__(self) -> None:
        self.records: dict[CallId, CallRecord] = {}
        self.live: dict[CallId, CallRecord] = {}
        """In order of submission."""
        self.ended: list[CallRecord] = []
        """Those that ended since somebody last took them from here, in order."""
        self.tokens = 0
        """Tokens that came."""
        self._streams: dict[FrontendId, dict[StreamHandle, CallRecord]] = {}

    def submitted(self, record: CallRecord) -> None:
        """Enters a call just before the core gets it."""
        spec = record.spec
        require(spec.stream_handle not in self._stream(spec.frontend_id), "the simulation reuses a handle")
        self._stream(spec.frontend_id)[spec.stream_handle] = record
        self.records.setdefault(spec.call_id, record)

    def accepted(self, record: CallRecord) -> None:
        """The core has taken the call."""
        require(not record.must_refuse, f"a call that must be refused was taken: {record.spec}")
        record.accepted = True
        if record.end is None:
            self.live[record.spec.call_id] = record

    def of_program(self, tenant: str, program_id: str) -> Iterator[CallRecord]:
        """Live calls of a program."""
        return (
            record
            for record in self.live.values()
            if (record.spec.tenant, record.spec.program_id) == (tenant, program_id)
        )

    def of_frontend(self, frontend_id: FrontendId) -> Iterator[CallRecord]:
        """Live calls of a frontend."""
        return (record for record in self.live.values() if record.spec.frontend_id == frontend_id)

    # ── what the core says ──────────────────────────────────────────────────────────────────────────

    def started(self, effect: ReportStarted) -> None:
        """A call is in a plan for the first time."""
        record = self._record(effect.frontend_id, effect.handle)
        require(not record.started and record.end is None, "a start after the start or the end")
        require(0 <= effect.cached_tokens <= len(record.spec.prompt_token_ids), "more cached than there is")
        require(effect.queued_s >= 0, "a negative wait")
        record.started = True

    def emitted(self, effect: EmitTokens) -> None:
        """Tokens of one step."""
        stream = self._streams[effect.frontend_id]
        count = 0
        for handle, token in zip(effect.handles, effect.tokens, strict=True):
            record = stream[StreamHandle(handle)]
            output, expected = record.output, record.expected.tokens
            index = len(output)
            if record.end is not None or not record.started:
                raise Broken(f"{record.spec.call_id} got a token before its start or after its end")
            if index >= len(expected) or expected[index] != token:
                raise Broken(
                    f"{record.spec.call_id} got token {token} at {index} instead of {expected[index:][:1]}"
                )
            output.append(token)
            count += 1
        require(count > 0, "an empty column of tokens")
        self.tokens += count

    def refused(self, effect: RefuseCall) -> None:
        """A call was not taken."""
        record = self._record(effect.frontend_id, effect.handle)
        reason = effect.refusal.reason
        require(record.refused is None and not record.accepted, "refused twice, or after it was taken")
        require(reason in record.refusals, f"refused for {reason}: {effect.refusal.message} {record.spec}")
        record.refused = effect

    def finished(self, effect: FinishCall) -> CallRecord:
        """A call ended; whoever caused it must have said so."""
        record = self._record(effect.frontend_id, effect.handle)
        require(record.end is None, f"{record.spec.call_id} ended twice")
        require((effect.error is not None) == (effect.reason is FinishReason.ERROR), "error without reason")
        require(effect.service_s >= 0 and effect.waiting_s >= -1e-9, "negative time")
        _judge_end(record, effect)
        record.end = effect
        if record.held is not None:
            record.held.ended = True
        self.live.pop(record.spec.call_id, None)
        self.ended.append(record)
        return record

    def _record(self, frontend_id: FrontendId, handle: StreamHandle) -> CallRecord:
        record = self._stream(frontend_id).get(handle)
        if record is None:
            raise Broken(f"frontend {frontend_id} never submitted {handle}")
        return record

    def _stream(self, frontend_id: FrontendId) -> dict[StreamHandle, CallRecord]:
        return self._streams.setdefault(frontend_id, {})


def _judge_end(record: CallRecord, effect: FinishCall) -> None:
    """Whether a call may end as it did, now.

    Raises: Broken.
    """
    expected = record.expected
    whole = record.output == expected.tokens
    natural = (effect.reason, effect.stop_token_id) == (expected.reason, expected.stop_token_id)
    if record.cancelling is not None:
        ok = _fits_cancel(record.cancelling, effect)
    elif effect.error is not None:
        ok = effect.error.reason in record.may_fail
    else:
        ok = whole and natural
    if not ok:
        raise Broken(
            f"{record.spec.call_id} ended by {effect.reason.name} (error {effect.error}) with "
            f"{len(record.output)} of {len(expected.tokens)} tokens; expected {expected.reason.name}, "
            f"cancelling {record.cancelling}, may fail for {sorted(record.may_fail)}"
        )


def _fits_cancel(reason: CancelReason, effect: FinishCall) -> bool:
    if reason is CancelReason.DEADLINE:
        return effect.error is not None and effect.error.reason == "DEADLINE_EXCEEDED"
    if reason is CancelReason.STOP_STRING:
        return effect.reason in (FinishReason.STOP, FinishReason.ABORT)
    return reason in ABORTING and effect.reason is FinishReason.ABORT
