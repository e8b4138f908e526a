"""The unary side of SchedulerService: programs, executors, statistics.

Whatever changes something runs as one request inside a turn of the core loop, so that "find it, else open
it" is atomic. Looking needs no turn: a turn is never left half done. A program of another tenant is answered
exactly like one that does not exist.
"""

import dataclasses
from collections.abc import AsyncIterator, Iterable
from typing import Any, Protocol

import structlog

from protos.autellix.scheduler.v1 import scheduler_pb2 as pb
from scheduler_svc.core.effects import Effect
from scheduler_svc.core.errors import Refusal, Refused
from scheduler_svc.core.events import (
    Event,
    ExecutorDrainRequested,
    PolicyChanged,
    ProgramCancelled,
    ProgramEnded,
    ProgramOpened,
)
from scheduler_svc.core.ids import ExecutorId, FrontendId, ProgramId, TenantId
from scheduler_svc.core.snapshots import (
    EngineSnapshot,
    ExecutorSnapshot,
    ModelSnapshot,
    ProgramSnapshot,
    ProgramState,
    StatisticsSnapshot,
)
from scheduler_svc.shell.clock import Clock
from scheduler_svc.shell.core_loop import CoreLoop, Turn
from scheduler_svc.shell.door import Door
from scheduler_svc.shell.policy_request import policy_changes

log = structlog.get_logger(__name__)

TEXT_CHARS_MAX = 512
CLASS_NAME_CHARS_MAX = 64
WATCH_INTERVAL_S = 1.0
WATCH_INTERVAL_S_MIN = 0.1
WATCH_INTERVAL_S_MAX = 3600.0

_STATES = {
    ProgramState.RUNNING: pb.PROGRAM_STATE_RUNNING,
    ProgramState.WAITING: pb.PROGRAM_STATE_WAITING,
    ProgramState.IDLE: pb.PROGRAM_STATE_IDLE,
    ProgramState.ENDED: pb.PROGRAM_STATE_ENDED,
    ProgramState.TIMED_OUT: pb.PROGRAM_STATE_TIMED_OUT,
    ProgramState.CANCELLED: pb.PROGRAM_STATE_CANCELLED,
}


class CoreLike(Protocol):
    """What the shell needs of the core; documented at `scheduler_svc.core.core.Core`."""

    def handle(self, event: Event, now: float) -> list[Effect]: ...
    def find_program(self, tenant: TenantId, session_key: str) -> ProgramSnapshot | None: ...
    def program(self, tenant: TenantId, program_id: ProgramId) -> ProgramSnapshot | None: ...
    def programs(self, tenant: TenantId | None = None) -> list[ProgramSnapshot]: ...
    def executors(self) -> list[ExecutorSnapshot]: ...
    def models(self) -> list[ModelSnapshot]: ...
    def statistics(self) -> StatisticsSnapshot: ...
    def live_calls_by_level(self) -> list[int]: ...
    def engine_status(self, frontend_id: FrontendId) -> EngineSnapshot: ...


class ProgramDesk:
    """Answers unary requests."""

    def __init__(self, core: CoreLike, loop: CoreLoop, door: Door, clock: Clock) -> None:
        self._core = core
        self._loop = loop
        self._door = door
        self._clock = clock

    # ── programs ────────────────────────────────────────────────────────────────────────────────────

    async def open(self, request: pb.OpenProgramRequest) -> pb.OpenProgramResponse:
        """Finds the live program of a session key, else opens one. Safe to repeat.

        Raises: Refused.
        """
        self._door.check_open()
        _check_open_request(request)
        return await self._loop.request(lambda turn: self._find_or_open(request, turn))

    def _find_or_open(self, request: pb.OpenProgramRequest, turn: Turn) -> pb.OpenProgramResponse:
        tenant, program_id = TenantId(request.tenant), ProgramId(request.program_id)
        found = self._core.find_program(tenant, request.session_key) if request.session_key else None
        found = found or _still_open(self._core.program(tenant, program_id))
        turn.apply(
            ProgramOpened(
                tenant=tenant,
                program_id=found.program_id if found else program_id,
                session_key=request.session_key,
                class_name=request.class_name,
                single_call=request.single_call,
            )
        )  # one that is found stays as it is; its idle time begins anew, for a call is about to come
        if found is not None:
            return pb.OpenProgramResponse(program=program_record(found), created=False)
        return pb.OpenProgramResponse(program=self._record(tenant, program_id), created=True)

    async def end(self, request: pb.EndProgramRequest) -> pb.EndProgramResponse:
        """Raises: Refused with PROGRAM_UNKNOWN."""
        event = ProgramEnded(tenant=TenantId(request.tenant), program_id=ProgramId(request.program_id))
        return pb.EndProgramResponse(program=await self._change(event))

    async def cancel(self, request: pb.CancelProgramRequest) -> pb.CancelProgramResponse:
        """Raises: Refused with PROGRAM_UNKNOWN."""
        event = ProgramCancelled(tenant=TenantId(request.tenant), program_id=ProgramId(request.program_id))
        return pb.CancelProgramResponse(program=await self._change(event))

    async def _change(self, event: ProgramEnded | ProgramCancelled) -> pb.ProgramRecord:
        def decide(turn: Turn) -> pb.ProgramRecord:
            self._record(event.tenant, event.program_id)  # PROGRAM_UNKNOWN in our words, whoever asks
            turn.apply(event)
            return self._record(event.tenant, event.program_id)

        return await self._loop.request(decide)

    def get(self, request: pb.GetProgramRequest) -> pb.GetProgramResponse:
        """Raises: Refused with PROGRAM_UNKNOWN."""
        record = self._record(TenantId(request.tenant), ProgramId(request.program_id))
        return pb.GetProgramResponse(program=record)

    def list(self, tenant: str) -> pb.ListProgramsResponse:
        """Programs of a tenant, of all tenants when it is empty."""
        return pb.ListProgramsResponse(
            programs=[program_record(program) for program in self._programs(tenant)]
        )

    async def watch(self, request: pb.WatchProgramsRequest) -> AsyncIterator[pb.WatchProgramsResponse]:
        """The programs, whenever they changed, at most once per interval, for ever.

        Raises: Refused when the interval is out of bounds.
        """
        interval_s = _checked_interval(request.interval_s)
        shown: list[ProgramSnapshot] | None = None
        while True:
            programs = self._programs(request.tenant)
            ageless = [dataclasses.replace(program, age_s=0.0) for program in programs]
            if ageless != shown:
                shown = ageless
                yield pb.WatchProgramsResponse(programs=[program_record(program) for program in programs])
            await self._clock.sleep(interval_s)

    def _programs(self, tenant: str) -> Iterable[ProgramSnapshot]:
        return self._core.programs(TenantId(tenant) if tenant else None)

    def _record(self, tenant: TenantId, program_id: ProgramId) -> pb.ProgramRecord:
        program = self._core.program(tenant, program_id)
        if program is None:
            raise Refused(
                Refusal(
                    reason="PROGRAM_UNKNOWN",
                    message="no such program: it was never started here, or ended long ago",
                    field="program_id",
                    value=program_id,
                )
            )
        return program_record(program)

    # ── executors and statistics ────────────────────────────────────────────────────────────────────

    def list_executors(self) -> pb.ListExecutorsResponse:
        """The attached executors."""
        return pb.ListExecutorsResponse(
            executors=[_copy(pb.ExecutorRecord, item) for item in self._core.executors()]
        )

    def statistics(self) -> pb.GetStatisticsResponse:
        """Counters since start."""
        answer = _copy(pb.GetStatisticsResponse, self._core.statistics())
        answer.calls_refused += self._door.refused_calls  # these never reached the core
        return answer

    async def set_policy(self, request: pb.SetPolicyRequest) -> pb.SetPolicyResponse:
        """Changes the policy while calls live. Raises: Refused with PARAMETER_OUT_OF_RANGE; nothing was
        changed."""
        event = PolicyChanged(changes=policy_changes(request))
        answer = await self._loop.request(lambda turn: self._apply_policy(event, turn))
        log.info(
            "policy_changed",
            policy=answer.policy,
            requeued_calls=answer.requeued_calls,
            changes={name: getattr(value, "value", value) for name, value in event.changes.items()},
        )
        return answer

    def _apply_policy(self, event: PolicyChanged, turn: Turn) -> pb.SetPolicyResponse:
        turn.apply(event)
        statistics = self._core.statistics()
        return pb.SetPolicyResponse(policy=statistics.policy, requeued_calls=statistics.live_calls)

    async def drain_executor(self, request: pb.DrainExecutorRequest) -> pb.DrainExecutorResponse:
        """Raises: Refused with NO_EXECUTOR."""
        event = ExecutorDrainRequested(executor_id=ExecutorId(request.executor_id))
        await self._loop.request(lambda turn: turn.apply(event))
        return pb.DrainExecutorResponse()


def program_record(program: ProgramSnapshot) -> pb.ProgramRecord:
    """A row of the process table, as a message."""
    return _copy(pb.ProgramRecord, program, state=_STATES[program.state])


def _copy(message_type: Any, snapshot: Any, **replaced: Any) -> Any:
    """Snapshots name their fields as the messages do."""
    values = {item.name: getattr(snapshot, item.name) for item in dataclasses.fields(snapshot)}
    return message_type(**(values | replaced))


def _still_open(program: ProgramSnapshot | None) -> ProgramSnapshot | None:
    closed = (ProgramState.ENDED, ProgramState.TIMED_OUT, ProgramState.CANCELLED)
    return None if program is None or program.state in closed else program


def _check_open_request(request: pb.OpenProgramRequest) -> None:
    _check_length("program_id", request.program_id, 1, TEXT_CHARS_MAX)
    _check_length("tenant", request.tenant, 0, TEXT_CHARS_MAX)
    _check_length("session_key", request.session_key, 0, TEXT_CHARS_MAX)
    _check_length("class_name", request.class_name, 0, CLASS_NAME_CHARS_MAX)


def _check_length(field: str, text: str, least: int, most: int) -> None:
    if not least <= len(text) <= most:
        raise _out_of_range(field, f"{least} to {most} characters", f"{len(text)} characters")


def _checked_interval(interval_s: float) -> float:
    if interval_s == 0:
        return WATCH_INTERVAL_S
    if not WATCH_INTERVAL_S_MIN <= interval_s <= WATCH_INTERVAL_S_MAX:
        raise _out_of_range(
            "interval_s", f"{WATCH_INTERVAL_S_MIN} to {WATCH_INTERVAL_S_MAX} s", str(interval_s)
        )
    return interval_s


def _out_of_range(field: str, limit: str, value: str) -> Refused:
    message = f"{field} must be {limit}, got {value}"
    return Refused(
        Refusal(reason="PARAMETER_OUT_OF_RANGE", message=message, field=field, limit=limit, value=value)
    )
