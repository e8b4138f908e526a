"""The process table: every program, open or recently ended, under (tenant, program).

A program is open until its client ends or cancels it, its only call ends (`single_call`), or it had no live
call for the idle time-out. An ended program takes no further calls; it stays here while calls of it are live
and is then listed for a while among the recent ones. Memory is bounded by `open_programs_max` +
`recent_programs_max` + live calls.

All counters of all policies are kept for every program: the sum of completed calls' service (PLAS), the
longest path (ATLAS), and the running sum that includes live calls (what is shown). Source: Autellix, process
table.
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

from scheduler_svc.core.call import Call
from scheduler_svc.core.errors import Refused
from scheduler_svc.core.events import ProgramOpened
from scheduler_svc.core.ids import CallId, ExecutorId, ProgramId, TenantId
from scheduler_svc.core.refusals import program_ended, program_limit, program_unknown
from scheduler_svc.core.snapshots import ProgramState

ProgramKey = tuple[TenantId, ProgramId]

_EXECUTORS_LISTED = 64


@dataclass(slots=True, eq=False, kw_only=True)
class Program:
    """One agent run."""

    tenant: TenantId
    program_id: ProgramId
    session_key: str
    class_name: str
    single_call: bool
    seq: int
    """Order of opening in this core."""
    opened_s: float
    ended: ProgramState | None = None
    """How it ended; None while it is open."""
    live_calls: dict[CallId, Call] = field(default_factory=dict)
    """In order of submission."""
    pins: dict[str, ExecutorId] = field(default_factory=dict)
    """model -> the executor that its long calls go to."""
    executor_ids: dict[ExecutorId, None] = field(default_factory=dict)
    """Executors that ran its calls, first one first; at most 64 are listed."""

    service_s: float = 0.0
    """Seconds of the steps its calls took part in, live calls included. Only grows."""
    completed_service_s: float = 0.0
    """The same of completed calls only: the PLAS counter. Invariant: <= service_s."""
    critical_path_s: float = 0.0
    """Longest chain of completed calls, by the one-scalar rule: the ATLAS counter."""
    completed_waiting_s: float = 0.0
    finished_calls: int = 0
    tokens: int = 0
    prompt_tokens: int = 0
    preemptions: int = 0
    last_arrival_s: float | None = None
    last_completion_s: float | None = None

    @property
    def key(self) -> ProgramKey:
        return (self.tenant, self.program_id)

    def waiting_s(self, now: float) -> float:
        """Seconds its calls were live but not in a batch, live calls included."""
        return self.completed_waiting_s + sum(call.waiting_s(now) for call in self.live_calls.values())

    def call_arrived(self, call: Call, now: float) -> None:
        """Enters a live call."""
        self.live_calls[call.spec.call_id] = call
        self.prompt_tokens += call.prompt_len
        self.last_arrival_s = now

    def call_ended(self, call: Call, now: float) -> None:
        """Books a call that ended, any way. Source: Autellix Alg. 1, the finished branch."""
        del self.live_calls[call.spec.call_id]
        self.finished_calls += 1
        self.completed_service_s += call.service_s
        self.completed_waiting_s += call.waiting_s(now)
        self.critical_path_s = max(self.critical_path_s, call.entry_path_s + call.service_s)
        self.last_completion_s = now

    def ran_on(self, executor_id: ExecutorId) -> None:
        """Remembers an executor that runs one of its calls."""
        if len(self.executor_ids) < _EXECUTORS_LISTED:
            self.executor_ids[executor_id] = None


class ProcessTable:
    """Programs by (tenant, program), by session key, and in order of opening."""

    def __init__(self, *, open_programs_max: int, recent_programs_max: int) -> None:
        self._open_programs_max = open_programs_max
        self._recent_programs_max = recent_programs_max
        self._programs: dict[TenantId, dict[ProgramId, Program]] = {}
        """Open ones, and ended ones that still have live calls or are recent."""
        self._recent: OrderedDict[ProgramKey, Program] = OrderedDict()
        """Ended ones without live calls, in order of ending."""
        self._of_session: dict[tuple[TenantId, str], Program] = {}
        """Open ones."""
        self._opened = 0
        self.open_count = 0

    def get(self, tenant: TenantId, program_id: ProgramId) -> Program | None:
        """A program of this tenant, ended or not."""
        return self._programs.get(tenant, {}).get(program_id)

    def find(self, tenant: TenantId, session_key: str) -> Program | None:
        """The open program of a session key."""
        return self._of_session.get((tenant, session_key))

    def known(self, tenant: TenantId, program_id: ProgramId) -> Program:
        """As `get`.

        Raises: Refused(PROGRAM_UNKNOWN).
        """
        program = self.get(tenant, program_id)
        if program is None:
            raise Refused(program_unknown(program_id))
        return program

    def all(self, tenant: TenantId | None = None) -> Iterator[Program]:
        """Programs of one tenant, or of all, each tenant's in order of opening."""
        tenants = self._programs.values() if tenant is None else [self._programs.get(tenant, {})]
        return (program for programs in tenants for program in programs.values())

    def open(self, event: ProgramOpened, now: float) -> Program:
        """Makes a program; opening an open one again changes nothing.

        Raises: Refused(PROGRAM_ENDED, PROGRAM_LIMIT).
        """
        known = self.get(event.tenant, event.program_id)
        if known is not None:
            if known.ended is not None:
                raise Refused(program_ended(known.program_id, known.ended.value))
            return known
        if self.open_count >= self._open_programs_max:
            raise Refused(program_limit(self._open_programs_max))
        return self._make(event, now)

    def _make(self, event: ProgramOpened, now: float) -> Program:
        self._opened += 1
        program = Program(
            tenant=event.tenant,
            program_id=event.program_id,
            session_key=event.session_key,
            class_name=event.class_name,
            single_call=event.single_call,
            seq=self._opened,
            opened_s=now,
        )
        self._programs.setdefault(program.tenant, {})[program.program_id] = program
        if program.session_key:
            self._of_session[program.tenant, program.session_key] = program
        self.open_count += 1
        return program

    def end(self, program: Program, how: ProgramState) -> None:
        """Closes a program to further calls; ending it again changes nothing."""
        if program.ended is None:
            program.ended = how
            self.open_count -= 1
            if self.find(program.tenant, program.session_key) is program:
                del self._of_session[program.tenant, program.session_key]
        if not program.live_calls:
            self._retire(program)

    def _retire(self, program: Program) -> None:
        self._recent.setdefault(program.key, program)
        while len(self._recent) > self._recent_programs_max:
            (tenant, program_id), _ = self._recent.popitem(last=False)
            programs = self._programs[tenant]
            del programs[program_id]
            if not programs:
                del self._programs[tenant]

    def check(self) -> None:
        """Checks that indices and counters agree.

        Raises: AssertionError.
        """
        assert self.open_count == sum(program.ended is None for program in self.all())
        assert all(program.ended is None for program in self._of_session.values())
        assert len(self._recent) <= self._recent_programs_max
        for program in self.all():
            is_recent = program.key in self._recent
            assert is_recent == (program.ended is not None and not program.live_calls), program.program_id
            assert program.completed_service_s <= program.service_s + 1e-6
