"""A second bookkeeper beside the core: it knows events, effects and price lists, and does every sum anew.

Service is added up from plans and results, useful cost token by token, the path of ATLAS by asking every
parent, levels by the words of Algorithm 1. Nothing here is quick or clever. What it cannot know from outside
(who is in the batch, who was promoted) it takes from the core and then holds against the rules.

Source: Autellix sections on PLAS and ATLAS, Alg. 1.
"""

from collections import Counter, deque
from dataclasses import dataclass, field, replace

from scheduler_svc.core.call_states import CallState
from scheduler_svc.core.config import CoreConfig, ServiceUnit
from scheduler_svc.core.core import Core
from scheduler_svc.core.critical_path import ENDS_OF_ANY_PROGRAM, ENDS_WHERE_PARENTS_ARE_NAMED
from scheduler_svc.core.effects import (
    AnnounceCall,
    CloseExecutor,
    Effect,
    EmitTokens,
    FinishCall,
    FinishReason,
    Plan,
    RefuseCall,
    ReportStarted,
    SendPlan,
)
from scheduler_svc.core.events import (
    CallSpec,
    CallSubmitted,
    Event,
    ExecutorJoined,
    ExecutorLost,
    PolicyChanged,
    ProgramOpened,
    StepCompleted,
    TimePassed,
)
from scheduler_svc.core.ids import CallHandle, CallId, ExecutorId, StreamHandle
from scheduler_svc.core.prices import Prices
from scheduler_svc.core.process_table import ProgramKey
from tests.property.naive_levels import NaiveLevels

UNITS = (ServiceUnit.SECONDS, ServiceUnit.COST)
Sums = dict[ServiceUnit, int]
"""Picoseconds by unit."""


def nothing() -> Sums:
    return dict.fromkeys(UNITS, 0)


def longest(paths: list[Sums]) -> Sums:
    return {unit: max((path[unit] for path in paths), default=0) for unit in UNITS}


@dataclass(eq=False)
class ProgramBook:
    """What a program has used."""

    calls: list["CallBook"] = field(default_factory=list)
    """All that were accepted, in order of submission."""
    ended: list["CallBook"] = field(default_factory=list)
    """In order of ending."""
    ended_before: int = 0
    """How many had ended before the last event."""
    names_parents: bool = False
    remembered: list[CallId] = field(default_factory=list)
    """Ended calls whose path is still known, in order of ending."""

    def used(self) -> Sums:
        return {unit: sum(call.used[unit] for call in self.calls) for unit in UNITS}

    def completed(self) -> Sums:
        """The PLAS counter."""
        return {unit: sum(call.used[unit] for call in self.ended) for unit in UNITS}

    def path(self) -> Sums:
        """The ATLAS counter."""
        return longest([call.path() for call in self.ended])

    def named(self, call_id: CallId) -> "CallBook | None":
        """A call whose path is known: a live one, or an ended one that is remembered."""
        known = (call for call in self.calls if call.spec.call_id == call_id)
        return next((call for call in known if call.live or call_id in self.remembered), None)


@dataclass(eq=False)
class CallBook:
    """What a call has used."""

    spec: CallSpec
    program: ProgramBook
    arrived_s: float
    live: bool = True
    used: Sums = field(default_factory=nothing)
    inherited: Sums = field(default_factory=nothing)
    """The path that led to it, of what was known when it arrived."""
    parents: list["CallBook"] = field(default_factory=list)
    """Those that it named, if all were known then; what they use later counts when this call ends."""
    waited_s: float = 0.0
    computed: set[int] = field(default_factory=set)
    """Positions whose KV was ever there."""
    level: int = 0
    quantum_used_ps: int = 0
    promoted_at: tuple[float, Sums] = (0.0, {})
    starves_since_s: float | None = None
    final_path: Sums | None = None
    """Where its path ended; None while it is live."""

    def path(self) -> Sums:
        """Where its path ends: max over parents, then what it used itself."""
        if self.final_path is not None:
            return self.final_path
        return {unit: self.inherited[unit] + self.used[unit] for unit in UNITS}


@dataclass(eq=False)
class Row:
    """A call's share of a plan."""

    call: CallBook
    handle: CallHandle
    start: int
    end: int
    samples: bool


@dataclass(eq=False)
class ExecutorBook:
    """What an executor was told since it joined."""

    calls: dict[CallHandle, CallBook] = field(default_factory=dict)
    known: dict[CallHandle, int] = field(default_factory=dict)
    """Tokens of each call, those to be sampled by plans in flight included."""
    planned: dict[CallHandle, int] = field(default_factory=dict)
    plans: deque[list[Row]] = field(default_factory=deque)

    def announce(self, handle: CallHandle, call: CallBook, output_len: int) -> None:
        self.calls[handle] = call
        self.known[handle] = len(call.spec.prompt_token_ids) + output_len

    def plan(self, plan: Plan) -> None:
        rows = []
        for index, handle in enumerate(plan.handles):
            if index in plan.joined:
                self.planned[handle] = plan.joined[index]
                found = range(self.in_flight_from(handle, plan.joined[index]))
                self.calls[handle].computed.update(found)
            start = self.planned[handle]
            end = start + plan.chunks.get(index, 1)
            samples = end == self.known[handle]
            self.known[handle] += samples
            self.planned[handle] = end
            rows.append(Row(self.calls[handle], handle, start, end, samples))
        self.plans.append(rows)

    def in_flight_from(self, handle: CallHandle, end: int) -> int:
        """Where the rows of a call that are in flight begin; `end` if there are none."""
        rows = (row for plan in self.plans for row in plan if row.handle == handle)
        return min((row.start for row in rows), default=end)


class Bookkeeper:
    """Told of every event before and after the core takes it in."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.config: CoreConfig = core.config
        self.levels = NaiveLevels(core)
        self.programs: dict[ProgramKey, ProgramBook] = {}
        self.calls: dict[CallId, CallBook] = {}
        self.of_stream: dict[StreamHandle, CallBook] = {}
        self.executors: dict[ExecutorId, ExecutorBook] = {}
        self.counts: Counter[str] = Counter()
        """As in `StatisticsSnapshot`."""
        self._now = float("-inf")
        self._waiting: list[CallBook] = []
        """Live calls that were not in a batch after the last event."""

    # ── before the core ─────────────────────────────────────────────────────────────────────────────

    def before(self, event: Event, now: float) -> None:
        for call in self._waiting:
            call.waited_s += now - self._now
        self._now = now
        for program in self.programs.values():
            program.ended_before = len(program.ended)
        match event:
            case CallSubmitted(call=spec):
                self._submitted(spec)
            case StepCompleted():
                self._step_completed(event)
            case ExecutorJoined(executor=spec):
                self.executors[spec.executor_id] = ExecutorBook()
            case ExecutorLost(executor_id=executor_id):
                del self.executors[executor_id]
            case PolicyChanged(changes=changes):
                self.config = replace(self.config, **changes)
            case ProgramOpened():
                if self.core.table.get(event.tenant, event.program_id) is None:
                    self.programs[event.tenant, event.program_id] = ProgramBook()

    def _submitted(self, spec: CallSpec) -> None:
        program = self.programs.get((spec.tenant, spec.program_id), ProgramBook())
        call = CallBook(spec, program, self._now)
        self.of_stream[spec.stream_handle] = call
        parents = [program.named(call_id) for call_id in spec.parent_call_ids]
        if parents and None not in parents:
            call.parents = [parent for parent in parents if parent is not None]
            call.inherited = longest([parent.path() for parent in call.parents])
        else:
            call.inherited = program.path()

    def _step_completed(self, result: StepCompleted) -> None:
        """Source: Autellix Alg. 1: service of every call of the step, then demotion."""
        executor = self.core.fleet.get(result.executor_id)
        assert executor is not None
        self.counts["steps"] += 1
        step_ps = round(result.step_s * 1e12)
        for row in self.executors[result.executor_id].plans.popleft():
            call = row.call
            if not call.live:
                continue
            call.used[ServiceUnit.SECONDS] += step_ps
            cost_ps = useful_cost_ps(row, executor.prices)
            call.used[ServiceUnit.COST] += cost_ps
            if row.handle not in result.failures:
                again = call.computed.intersection(range(row.start, row.end))
                self.counts["recomputed_tokens"] += len(again)
                call.computed.update(range(row.start, row.end))
            charges_seconds = self.config.service_unit is ServiceUnit.SECONDS and cost_ps > 0
            used_ps = step_ps if charges_seconds else cost_ps
            self.counts["demotions"] += self.levels.use_quantum(self.config, call, used_ps)

    # ── after the core ──────────────────────────────────────────────────────────────────────────────

    def after(self, event: Event, effects: list[Effect]) -> None:
        if isinstance(event, CallSubmitted) and not any(isinstance(e, RefuseCall) for e in effects):
            self._accepted(self.of_stream[event.call.stream_handle])
        for effect in effects:
            self._note(effect)
        if isinstance(event, TimePassed):
            self.counts["timed out"] += sum(isinstance(effect, FinishCall) for effect in effects)
        if isinstance(event, PolicyChanged):
            for call in self.live_calls():
                call.level = self.levels.at_arrival(self.config, call)
                call.quantum_used_ps = 0
        self.levels.take_promotions(self, self._now)
        if isinstance(event, TimePassed):
            self.levels.check_no_starvation(self, self._now)
        self._waiting = [call for call in self.live_calls() if not self._runs(call)]

    def _accepted(self, call: CallBook) -> None:
        self.counts["calls_submitted"] += 1
        self.calls[call.spec.call_id] = call
        call.program.calls.append(call)
        call.program.names_parents |= bool(call.spec.parent_call_ids)
        call.level = self.levels.at_arrival(self.config, call)

    def _note(self, effect: Effect) -> None:
        match effect:
            case AnnounceCall():
                call = self.calls[effect.call.call_id]
                book = self.executors[effect.executor_id]
                book.announce(effect.handle, call, len(effect.output_token_ids))
            case SendPlan():
                self.executors[effect.executor_id].plan(effect.plan)
                self.counts["swapped_out_blocks"] += len(effect.plan.swap_out)
                self.counts["swapped_in_blocks"] += len(effect.plan.swap_in)
            case CloseExecutor():
                del self.executors[effect.executor_id]
            case EmitTokens():
                self.counts["tokens"] += len(effect.tokens)
            case ReportStarted():
                self.counts["cached_tokens"] += effect.cached_tokens
            case RefuseCall():
                self.counts["calls_refused"] += 1
            case FinishCall():
                self._finished(effect)

    def _finished(self, effect: FinishCall) -> None:
        call = self.of_stream[effect.handle]
        ways = {FinishReason.ABORT: "calls_cancelled", FinishReason.ERROR: "calls_failed"}
        self.counts[ways.get(effect.reason, "calls_finished")] += 1
        self.counts["preemptions of ended calls"] += effect.preemptions
        assert round(effect.service_s * 1e12) == call.used[ServiceUnit.SECONDS]
        assert abs(effect.waiting_s - call.waited_s) < 1e-6
        call.final_path = self._final_path(call)
        call.live = False
        program = call.program
        program.ended.append(call)
        program.remembered.append(call.spec.call_id)
        most = ENDS_WHERE_PARENTS_ARE_NAMED if program.names_parents else ENDS_OF_ANY_PROGRAM
        if len(program.remembered) > most:
            del program.remembered[0]

    def _final_path(self, call: CallBook) -> Sums:
        remembered = [
            parent for parent in call.parents if parent.live or parent.spec.call_id in call.program.remembered
        ]
        entry = longest([call.inherited, *(parent.path() for parent in remembered)])
        return {unit: entry[unit] + call.used[unit] for unit in UNITS}

    # ── looking ─────────────────────────────────────────────────────────────────────────────────────

    def live_calls(self) -> list[CallBook]:
        return [call for call in self.calls.values() if call.live]

    def _runs(self, call: CallBook) -> bool:
        known = self.core.registry.live(call.spec.call_id)
        assert known is not None
        return known.state is CallState.RUNNING

    def compare(self) -> None:
        """Holds the core's books against these; its records of steady calls must be up to date.

        Raises: AssertionError.
        """
        self._compare_statistics()
        for program in self.core.table.all():
            book = self.programs[program.key]
            assert program.service_ps == book.used()[ServiceUnit.SECONDS]
            assert program.cost_ps == book.used()[ServiceUnit.COST]
            assert program.completed_service_ps == book.completed()[ServiceUnit.SECONDS], "PLAS"
            assert program.completed_cost_ps == book.completed()[ServiceUnit.COST], "PLAS"
            assert program.path.service_ps == book.path()[ServiceUnit.SECONDS], "ATLAS"
            assert program.path.cost_ps == book.path()[ServiceUnit.COST], "ATLAS"
            waited_s = sum(call.waited_s for call in book.calls)
            assert abs(program.waiting_s(self._now) - waited_s) < 1e-6
        for known in self.core.registry.all_live():
            call = self.calls[known.spec.call_id]
            assert known.service_ps == call.used[ServiceUnit.SECONDS]
            assert known.cost_ps == call.used[ServiceUnit.COST]
            stands = (known.level, known.quantum_used_ps)
            assert stands == (call.level, call.quantum_used_ps), f"{stands} of {known.spec.call_id}"

    def _compare_statistics(self) -> None:
        statistics = self.core.statistics()
        live = list(self.core.registry.all_live())
        for name in COUNTED:
            assert getattr(statistics, name) == self.counts[name], name
        preemptions = self.counts["preemptions of ended calls"] + sum(call.preemptions for call in live)
        assert statistics.preemptions == preemptions
        assert statistics.live_calls == len(self.live_calls())
        unseen = statistics.promotions - self.counts["promotions"]
        assert 0 <= unseen <= self.counts["timed out"], "promotions"


COUNTED = (
    "calls_submitted",
    "calls_finished",
    "calls_cancelled",
    "calls_failed",
    "calls_refused",
    "demotions",
    "tokens",
    "recomputed_tokens",
    "cached_tokens",
    "steps",
    "swapped_out_blocks",
    "swapped_in_blocks",
)


def useful_cost_ps(row: Row, prices: Prices) -> int:
    """Token by token: a token that is sampled from costs a decode, another one a prefill if it is new."""
    cost_ps = 0
    for position in range(row.start, row.end):
        if row.samples and position == row.end - 1:
            cost_ps += prices.decode_ps(position, position + 1)
        elif position not in row.call.computed:
            cost_ps += prices.prefill_ps(position, position + 1)
    return cost_ps
