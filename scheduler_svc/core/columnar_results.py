"""Takes the result of a step in at the cost of what it touches: the results of `lane`.

A result that is just what was planned (a good token for each row that samples, no failures) is booked in the
columns, and only rows that something happens to are looked at, in plan order: those that are objects, those
whose token may stop them, and those that are due. Every other result goes the plain way (`results`), which is
the one truth about what is wrong with it; all rows leave the lane for that.
"""

from collections.abc import Iterable, Sequence
from math import inf

import numpy as np

from scheduler_svc.core.call import Call
from scheduler_svc.core.columns import Column
from scheduler_svc.core.counters import Counters
from scheduler_svc.core.effects import Effect, EmitTokens
from scheduler_svc.core.events import StepCompleted
from scheduler_svc.core.executor import Executor
from scheduler_svc.core.lane import Batch, Lane, Seat
from scheduler_svc.core.lifecycle import Lifecycle, bring_up_to_date
from scheduler_svc.core.planned import ColumnsInFlight, PlannedRow
from scheduler_svc.core.prices import PS_PER_S
from scheduler_svc.core.results import Ending, ResultReader, learn_from, stop_reason


class ColumnarReader:
    """Applies results to executors with a lane."""

    def __init__(
        self, plain: ResultReader, lifecycle: Lifecycle, counters: Counters, outbox: list[Effect]
    ) -> None:
        self._plain = plain
        self._lifecycle = lifecycle
        self._counters = counters
        self._outbox = outbox

    def take(self, executor: Executor, result: StepCompleted, now: float) -> None:
        """As `ResultReader.take`."""
        lane = executor.lane
        assert lane is not None, "the executor has no lane"
        step = _answered(executor, result)
        tokens = None if step is None else _tokens_of(result)
        suspects = None if tokens is None else lane.watch.look(tokens.array)
        if step is None or tokens is None or suspects is None:
            lane.disband()
            self._plain.take(executor, result, now)
            lane.pass_time(round(result.step_s * PS_PER_S))
            return
        endings, unheld = self._apply(executor, lane, step, tokens, suspects, result, now)
        learn_from(executor, step, result)
        if unheld or result.payloads:
            self._emit_part(step.samplers, tokens, unheld, result)
        else:
            self._emit(step.samplers, tokens)
        for call, reason, stop_token_id in endings:
            self._lifecycle.finish(call, now, reason, stop_token_id)

    # ── rows ────────────────────────────────────────────────────────────────────────────────────────

    def _apply(
        self,
        executor: Executor,
        lane: Lane,
        step: ColumnsInFlight,
        tokens: Column,
        suspects: list[int],
        result: StepCompleted,
        now: float,
    ) -> tuple[Sequence[Ending], list[int]]:
        """Returns: how calls end, and the sampling rows whose calls are not here any more."""
        executor.in_flight.popleft()
        executor.steps_done += 1
        self._counters.steps += 1
        self._counters.tokens += len(tokens) - sum(row.samples for row in step.rows.values())
        step_ps = round(result.step_s * PS_PER_S)
        lane.take_result(step.samplers.slots, tokens.array, step_ps)
        due = lane.due()
        if not (step.rows or due or suspects):
            return (), []
        objects = {row.slot: row for row in step.rows.values()}
        endings: list[Ending] = []
        unheld: list[int] = []
        for slot in _touched(step, objects, due, suspects):
            row = objects.get(slot)
            if row is None:
                ending = self._look_at(executor, lane, lane.seated(slot), step, now)
            else:
                at = step.samplers.row_of.item(slot) if row.samples else None
                if not executor.holds(row):
                    if at is not None:
                        unheld.append(at)
                    continue
                token = None if at is None else tokens.array.item(at)
                ending = self._apply_object(executor, lane, row, token, step, step_ps, now)
            if ending is not None:
                endings.append(ending)
        return endings, unheld

    def _apply_object(
        self,
        executor: Executor,
        lane: Lane,
        row: PlannedRow,
        token: int | None,
        step: ColumnsInFlight,
        step_ps: int,
        now: float,
    ) -> Ending | None:
        if executor.queue.policy.reads_live_service:
            self._book_siblings(executor, lane, row.call, row.slot, step)
        ending = self._plain.apply_row(executor, row, now, token=token, step_ps=step_ps)
        lane.looked_at(row.call)
        return ending

    def _look_at(
        self, executor: Executor, lane: Lane, seat: Seat, step: ColumnsInFlight, now: float
    ) -> Ending | None:
        """A row of the lane that is due, or whose token may stop it. One that ends leaves the lane for
        that."""
        call = seat.call
        lane.refresh(seat)
        if executor.queue.policy.reads_live_service:
            self._book_siblings(executor, lane, call, seat.slot, step)
        self._lifecycle.charge(call, 0, 0, now)
        ending = stop_reason(call, call.tokens[-1])
        if ending is not None:
            return (call, *ending)
        lane.looked_at(call)
        return None

    def _book_siblings(
        self, executor: Executor, lane: Lane, call: Call, slot: int, step: ColumnsInFlight
    ) -> None:
        """Before a call may change its level: a policy that looks at all calls of the program sees those of
        the rows before this one with the step, and those after it without."""
        row_of = step.batch.row_of
        for sibling in call.program.live_calls.values():
            seat = sibling.seat
            if seat is None or not seat.steady or sibling is call:
                continue
            if sibling.executor is not executor:
                bring_up_to_date((sibling,))
            elif seat.first <= step.step:
                comes_later = bool(row_of[seat.slot] > row_of[slot])
                lane.refresh(seat, without_newest=comes_later)

    # ── tokens ──────────────────────────────────────────────────────────────────────────────────────

    def _emit(self, samplers: Batch, tokens: Column) -> None:
        if not len(tokens):
            return
        for share in samplers.shares:
            of_share = tokens if share.rows is None else Column(tokens.array[share.rows])
            self._outbox.append(
                EmitTokens(frontend_id=share.frontend_id, handles=share.streams, tokens=of_share)
            )

    def _emit_part(self, samplers: Batch, tokens: Column, unheld: list[int], result: StepCompleted) -> None:
        """The same without the tokens of calls that are not here any more, and with payloads."""
        held = np.ones(len(tokens), np.bool_)
        held[unheld] = False
        parts: list[tuple[int, EmitTokens]] = []
        for share in samplers.shares:
            rows = np.arange(len(tokens)) if share.rows is None else share.rows
            kept = held[rows]
            rows = rows[kept]
            if not len(rows):
                continue
            handles = samplers.handles.array[rows].tolist() if result.payloads else ()
            payloads = {
                index: result.payloads[handle]
                for index, handle in enumerate(handles)
                if handle in result.payloads
            }
            emit = EmitTokens(
                frontend_id=share.frontend_id,
                handles=Column(share.streams.array[kept]),
                tokens=Column(tokens.array[rows]),
                payloads=payloads,
            )
            parts.append((int(rows[0]), emit))
        self._outbox.extend(emit for _, emit in sorted(parts, key=lambda part: part[0]))


def _answered(executor: Executor, result: StepCompleted) -> ColumnsInFlight | None:
    """The plan that a result answers, if it does so as planned."""
    step = executor.in_flight[0] if executor.in_flight else None
    if step is None or step.step != result.step or result.failures:
        return None
    if not (0 <= result.step_s < inf and 0 <= result.swap_s < inf and result.swap_bytes >= 0):
        return None
    assert isinstance(step, ColumnsInFlight)
    as_planned = len(result.handles) == len(result.tokens) and step.samplers.handles == result.handles
    return step if as_planned else None


def _tokens_of(result: StepCompleted) -> Column | None:
    try:
        return Column.of(result.tokens)
    except OverflowError:
        return None


def _touched(
    step: ColumnsInFlight, objects: Iterable[int], due: Sequence[Seat], suspects: Sequence[int]
) -> list[int]:
    """Slots of the rows to look at, in plan order."""
    slots = {*objects, *[seat.slot for seat in due]}
    if suspects:
        slots.update(step.samplers.slots[suspects].tolist())
    return sorted(slots, key=step.batch.row_of.item)
