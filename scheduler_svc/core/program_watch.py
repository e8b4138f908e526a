"""When a program is over, and what its KV is worth until then.

    a call arrives ──> active ── its last live call ended ──> waiting ── 30 s ──> idle ── 600 s ──> ended
                         ^                                       │                  │
                         └───────────── a call arrives ──────────┴──────────────────┘

Most agents never say that they end. So the KV of a program that has had no live call for `idle_kv_s` gives
way before that of others, and after `idle_timeout_s` the program has ended: its KV is worth nothing then.

Calls come and go all the time, so they do not move a program's timer. One that comes up too early, because
calls have been live since it was set, is set again for the time that is right by then.
"""

from collections.abc import Iterator

from scheduler_svc.core.config import CoreConfig
from scheduler_svc.core.executor import Executor
from scheduler_svc.core.fleet import Fleet
from scheduler_svc.core.process_table import EXECUTORS_LISTED, ProcessTable, Program, ProgramKey
from scheduler_svc.core.snapshots import ProgramState
from scheduler_svc.core.timers import Timers


class ProgramWatch:
    """Times programs without live calls, and tells the caches of executors."""

    def __init__(self, config: CoreConfig, table: ProcessTable, fleet: Fleet) -> None:
        self._config = config
        self._table = table
        self._fleet = fleet
        self._timers: Timers[ProgramKey, float] = Timers()
        self._idle_kv_s = min(config.idle_kv_s, config.idle_timeout_s)

    def __len__(self) -> int:
        """Programs with a timer: the quiet ones, and some that were quiet lately."""
        return len(self._timers)

    def call_arrived(self, program: Program) -> None:
        """A call of the program is live."""
        if program.is_kv_idle:
            program.is_kv_idle = False
            self._timers.drop(program.key)  # it is too late for the next wait
            for executor in self._executors_of(program):
                executor.kv.program_active(program.key)

    def became_quiet(self, program: Program, now: float) -> None:
        """The program has no live call: it is over, or its idle time begins."""
        if program.ended is not None:
            self.end(program, program.ended)
        elif program.single_call and program.finished_calls:
            self.end(program, ProgramState.ENDED)
        else:
            program.quiet_since_s = now
            if program.key not in self._timers:
                self._timers.set(program.key, self._due_s(program))

    def _due_s(self, program: Program) -> float:
        """When a program that stays quiet is idle, or over if it is idle."""
        return program.quiet_since_s + (
            self._config.idle_timeout_s if program.is_kv_idle else self._idle_kv_s
        )

    def end(self, program: Program, how: ProgramState) -> None:
        """Closes a program to further calls. Its KV stays worth something while calls of it are live."""
        self._timers.drop(program.key)
        self._table.end(program, how)
        if not program.live_calls:
            for executor in self._executors_of(program):
                executor.kv.program_ended(program.key)
            self._release_room(program)

    def time_passed(self, now: float) -> None:
        """Looks at the programs that are due: they become idle, or have been idle for so long that they
        end."""
        for key in self._timers.pop_due(now):
            program = self._table.get(*key)
            if program is None or program.live_calls:
                continue
            if self._due_s(program) <= now:
                if program.is_kv_idle:
                    self.end(program, ProgramState.TIMED_OUT)
                    continue
                self._kv_idled(program)
            self._timers.set(key, self._due_s(program))

    def _kv_idled(self, program: Program) -> None:
        program.is_kv_idle = True
        for executor in self._executors_of(program):
            executor.kv.program_idle(program.key)
        self._release_room(program)

    def _release_room(self, program: Program) -> None:
        """Nothing is promised any more to a program that was let in, whether a call of it ran or not."""
        for executor in self._fleet:
            executor.gate.forget(program.key)

    def _executors_of(self, program: Program) -> Iterator[Executor]:
        """Attached executors that ran calls of the program; all of them when its list is full."""
        if len(program.executor_ids) >= EXECUTORS_LISTED:
            yield from self._fleet
            return
        for executor_id in program.executor_ids:
            executor = self._fleet.get(executor_id)
            if executor is not None:
                yield executor
