"""The process table: every program, open or recently ended, under (tenant, program).

A program is open until its client ends or cancels it, its only call ends (`single_call`), or it had no live
call for the idle time-out. An ended program takes no further calls; it stays here while calls of it are live
and is then listed for a while among the recent ones. Memory is bounded by `open_programs_max` +
`recent_programs_max` + live calls.

All counters of all policies are kept for every program, each in wall picoseconds and in modelled cost: the
sum of completed calls' service (PLAS), the longest path (ATLAS), and the running sum that includes live calls
(Gittins, and what is shown). They are integers: sums are exact, whatever the order. Sizes of programs that
are over go to `history`.
Source: Autellix, process table.
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import reduce

from scheduler_svc.core.call import Call
from scheduler_svc.core.config import ServiceUnit
from scheduler_svc.core.critical_path import Path, PathEnds
from scheduler_svc.core.errors import Refused
from scheduler_svc.core.events import ProgramOpened
from scheduler_svc.core.ids import CallId, ExecutorId, ProgramId, TenantId
from scheduler_svc.core.prices import PS_PER_S
from scheduler_svc.core.refusals import program_ended, program_limit, program_unknown
from scheduler_svc.core.service_history import ServiceHistory
from scheduler_svc.core.snapshots import ProgramState

ProgramKey = tuple[TenantId, ProgramId]

EXECUTORS_LISTED = 64
"""Most executors that a program lists."""


@dataclass(slots=True, eq=False, kw_only=True)
class Program:
    """One agent run."""

    tenant: TenantId
    program_id: ProgramId
    session_key: str
    class_name: str
    single_call: bool
    key: ProgramKey = field(init=False)
    seq: int
    """Order of opening in this core."""
    opened_s: float
    quiet_since_s: float = 0.0
    """When it had no live call any more; of no meaning while it has one."""
    is_kv_idle: bool = False
    """Whether it had no live call for so long that its KV gives way before that of others."""
    ended: ProgramState | None = None
    """How it ended; None while it is open."""
    live_calls: dict[CallId, Call] = field(default_factory=dict)
    """In order of submission."""
    pins: dict[str, ExecutorId] = field(default_factory=dict)
    """model -> the executor that its long calls go to."""
    executor_ids: dict[ExecutorId, None] = field(default_factory=dict)
    """Executors that ran its calls, first one first; at most 64 are listed."""

    service_ps: int = 0
    """Picoseconds of the steps its calls took part in, live calls included. Only grows."""
    cost_ps: int = 0
    """Modelled price of the tokens that advanced its calls, live calls included. Only grows."""
    completed_service_ps: int = 0
    """Of completed calls only: the PLAS counter. Invariant: <= service_ps."""
    completed_cost_ps: int = 0
    """The same in cost. Invariant: <= cost_ps."""
    path: Path = field(default_factory=Path)
    """Longest path of completed calls: the ATLAS counter. Invariant: <= service_ps, cost_ps."""
    path_ends: PathEnds = field(default_factory=PathEnds)
    completed_waiting_s: float = 0.0
    finished_calls: int = 0
    tokens: int = 0
    prompt_tokens: int = 0
    preemptions: int = 0
    last_arrival_s: float | None = None
    last_completion_s: float | None = None

    def __post_init__(self) -> None:
        self.key = (self.tenant, self.program_id)

    @property
    def service_s(self) -> float:
        return self.service_ps / PS_PER_S

    @property
    def cost_s(self) -> float:
        return self.cost_ps / PS_PER_S

    @property
    def completed_service_s(self) -> float:
        return self.completed_service_ps / PS_PER_S

    @property
    def path_service_ps(self) -> int:
        return self.path.service_ps

    @property
    def path_cost_ps(self) -> int:
        return self.path.cost_ps

    def used_ps(self, unit: ServiceUnit) -> int:
        """What its calls have used, live ones included, in one unit."""
        return self.cost_ps if unit is ServiceUnit.COST else self.service_ps

    def completed_ps(self, unit: ServiceUnit) -> int:
        """What its completed calls have used, in one unit."""
        return self.completed_cost_ps if unit is ServiceUnit.COST else self.completed_service_ps

    def waiting_s(self, now: float) -> float:
        """Seconds its calls were live but not in a batch, live calls included."""
        return self.completed_waiting_s + sum(call.waiting_s(now) for call in self.live_calls.values())

    def call_arrived(self, call: Call, now: float) -> None:
        """Enters a live call; it inherits the path that led to it. Source: Autellix, ATLAS."""
        self._inherit_path(call)
        self.live_calls[call.spec.call_id] = call
        self.prompt_tokens += call.prompt_len
        self.last_arrival_s = now

    def call_ended(self, call: Call, now: float) -> None:
        """Books a call that ended, any way. Source: Autellix Alg. 1, the finished branch."""
        del self.live_calls[call.spec.call_id]
        self.finished_calls += 1
        self.completed_service_ps += call.service_ps
        self.completed_cost_ps += call.cost_ps
        self.completed_waiting_s += call.waiting_s(now)
        self._end_path(call)
        self.last_completion_s = now

    def _inherit_path(self, call: Call) -> None:
        parents = call.spec.parent_call_ids
        ends = [self._path_end_of(parent) for parent in parents]
        known = [end for end in ends if end is not None]
        if parents:
            self.path_ends.parents_are_named()
        if not parents or len(known) < len(parents):
            call.entry_path = self.path
        else:
            call.path_parents = parents
            call.entry_path = reduce(Path.longer, known)

    def _end_path(self, call: Call) -> None:
        """Parents that were live when the call arrived may have gone on since."""
        for parent in call.path_parents:
            end = self._path_end_of(parent)
            call.entry_path = call.entry_path if end is None else call.entry_path.longer(end)
        path_end = call.path_end
        self.path_ends.add(call.spec.call_id, path_end)
        self.path = self.path.longer(path_end)

    def _path_end_of(self, call_id: CallId) -> Path | None:
        live = self.live_calls.get(call_id)
        return self.path_ends.get(call_id) if live is None else live.path_end

    def ran_on(self, executor_id: ExecutorId) -> None:
        """Remembers an executor that runs one of its calls."""
        if len(self.executor_ids) < EXECUTORS_LISTED:
            self.executor_ids[executor_id] = None


class ProcessTable:
    """Programs by (tenant, program), by session key, and in order of opening."""

    def __init__(self, *, open_programs_max: int, recent_programs_max: int) -> None:
        self.history = ServiceHistory()
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
        for programs in tenants:
            yield from programs.values()

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
        if program.key not in self._recent:
            self._recent[program.key] = program
            program.path_ends.clear()
            if program.ended is not ProgramState.CANCELLED:
                self.history.program_ended(program)
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
            live = program.live_calls.values()
            assert program.service_ps == program.completed_service_ps + sum(call.service_ps for call in live)
            assert program.cost_ps == program.completed_cost_ps + sum(call.cost_ps for call in live)
            assert program.path.service_ps <= program.service_ps, program.program_id
            assert program.path.cost_ps <= program.cost_ps, program.program_id
