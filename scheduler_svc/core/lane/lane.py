"""The steady rows of one executor: who enters, how far they are, what is due, and how they leave.

Plan numbers and result numbers are those of the executor's steps. A steady row takes part in the plans
`first`..`last`, so with the plans made and the results taken in there is nothing to count row by row:

    results taken (done)          plans made (made)
    ────────────┬────────────────────────┬──────────────> steps
    first ... done: computed,    done + 1 ... made:        last: samples its last token;
    tokens in the ring           rows in flight            retired from then on

Until a row's earlier rows, which were objects, have come back (done < first - 1), those are booked as
objects, on its call; the two never overlap.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from scheduler_svc.core.columns import Int32Array
from scheduler_svc.core.config import ServiceUnit
from scheduler_svc.core.ids import CallHandle
from scheduler_svc.core.lane.batch import Batch, BatchOrder, SlotArray
from scheduler_svc.core.lane.calendar import Calendar
from scheduler_svc.core.lane.seats import Seat, SeatTable
from scheduler_svc.core.lane.watch import StopWatch
from scheduler_svc.core.lineup import QueueKey
from scheduler_svc.core.planned import ColumnsInFlight, PlannedRow, StepInFlight
from scheduler_svc.core.policies.base import FOREVER_PS
from scheduler_svc.core.timers import Timers

if TYPE_CHECKING:
    from scheduler_svc.core.call import Call
    from scheduler_svc.core.executor import Executor

RESULTS_KEPT = 512
"""Results whose tokens the ring holds: a row is refreshed at least that often."""

Entering = list[tuple[QueueKey, "Call"]]
"""In the order of the queue; no two keys are equal, so calls are never compared."""


class Lane:
    """The lane of one executor, and the seats and the order of its whole batch."""

    def __init__(self, executor: "Executor", results_kept: int = RESULTS_KEPT) -> None:
        """
        Args:
            results_kept: Length of the ring. > 1.
        """
        spec = executor.spec
        self._executor = executor
        self._kept = results_kept
        self._block_size = spec.block_size
        self.watch = StopWatch(spec.vocab_size)
        self.table = SeatTable()
        self.order = BatchOrder(self.table)
        self.loose: dict[Call, None] = {}
        """Running calls that are not in the lane."""
        self.rows = 0
        """Rows of the lane in the next plan: those that are not retired."""
        self.offsets = 0
        """The sum of their offsets."""
        self.clock_ps = 0
        """Seconds of all steps so far."""
        self._clocks = [0] * results_kept
        """`clock_ps` after each result that the ring holds."""
        self._tokens = np.zeros((results_kept, 0), np.int32)
        """The ring. Shape: (results_kept, slots)."""
        self._buckets: list[dict[QueueKey, Call]] = [{} for _ in range(spec.block_size)]
        """By the plan number, modulo the block size, at which rows enter a block."""
        self._entering: list[Entering | None] = [None] * spec.block_size
        """The same in order; None: not put in order since the bucket was changed."""
        self._last_plans = Calendar()
        """Rows that are not retired, by their last plan."""
        self._results_due = Calendar()
        """Rows by the result at which they must be looked at."""
        self._clocks_due: Timers[Seat, int] = Timers()
        """Rows by the clock at which they must be looked at."""

    # ── the whole batch ─────────────────────────────────────────────────────────────────────────────

    def seat(self, call: "Call") -> Seat:
        """The seat of a running call; it gets one with its first row."""
        seat = call.seat
        if seat is None:
            seat = call.seat = self.table.take(call, self._executor.steps_done)
            if seat.slot >= self._tokens.shape[1]:
                self._grow()
        return seat

    def drop(self, call: "Call") -> None:
        """Brings a call up to date that is about to leave the batch, and frees its seat."""
        seat = call.seat
        if seat is None:
            return
        if seat.steady:
            self._end_steadiness(seat)
        else:
            self.loose.pop(call, None)
        if seat.key is not None:
            self.order.remove(seat)
        self.table.leave(seat, self._executor.next_step - 1)
        call.seat = None

    def reorder(self, call: "Call") -> None:
        """Puts a call's row where its place in the queue now says."""
        seat = call.seat
        if seat is None or seat.key is None or seat.key is call.queue_key:
            return
        if seat.steady and not seat.retired:
            self._leave_bucket(seat)
        self.order.remove(seat)
        self.order.insert(seat)
        if seat.steady and not seat.retired:
            self._enter_bucket(seat)

    def looked_at(self, call: "Call") -> None:
        """Something happened to a call in a result: its row may have another place, and is due again."""
        self.reorder(call)
        if call.seat is not None and call.seat.steady:
            self.rearm(call.seat)

    def seated(self, slot: int) -> Seat:
        """The seat of a taken slot."""
        seat = self.table.seats[slot]
        assert seat is not None, "the slot is free"
        return seat

    def batch_of(self, slots: Sequence[int]) -> Batch:
        """Some rows in this order."""
        return Batch(self.table, np.array(slots, np.int64))

    def _grow(self) -> None:
        slots = self._tokens.shape[1]
        tokens = np.zeros((self._kept, max(16, 2 * slots)), np.int32)
        tokens[:, :slots] = self._tokens
        self._tokens = tokens

    # ── in and out ──────────────────────────────────────────────────────────────────────────────────

    def may_enter(self, call: "Call", step: int) -> bool:
        """Whether a running call, up to date and not in the lane, is steady from plan `step` on: it decodes,
        and its newest row was in the plan before."""
        seat = call.seat
        return (
            seat is not None
            and seat.planned_step == step - 1
            and call.known - call.planned == 1
            and call.planned >= call.prompt_len
            and self.watch.vocab_size > 0
        )

    def enter(self, call: "Call", step: int) -> Seat:
        """Makes a call that may enter steady, from plan `step` on."""
        seat = call.seat
        assert seat is not None
        del self.loose[call]
        if seat.key is None:
            self.order.insert(seat)
        spec = call.spec
        seat.steady, seat.retired = True, False
        seat.first = step
        seat.base = seat.plan_base = step - 1
        seat.offset = call.planned - step
        seat.last = call.prompt_len + spec.max_tokens - 2 - seat.offset
        self.watch.add(spec)
        self.rows += 1
        self.offsets += seat.offset
        self._enter_bucket(seat)
        self._last_plans.put(seat.last, seat)
        self.rearm(seat)
        return seat

    def leave(self, call: "Call") -> None:
        """Makes a steady row an object row again, with its share of the plans in flight."""
        assert call.seat is not None, "a steady call has a seat"
        self._end_steadiness(call.seat)
        self.loose[call] = None

    def _end_steadiness(self, seat: Seat) -> None:
        self.refresh(seat)
        if self._executor.steps_done < seat.last:
            for step in self._executor.in_flight:
                if self._is_in_flight(seat, step.step):
                    row = self._row_of(seat, step.step)
                    step.rows[row.handle] = row
        if not seat.retired:
            self._last_plans.drop(seat.last, seat)
            self._stop_planning(seat)
        seat.planned_step = min(seat.last, self._executor.next_step - 1)
        seat.steady = False
        self.watch.remove(seat.call.spec)
        self._results_due.drop(seat.due, seat)
        self._clocks_due.drop(seat)

    def leave_all(self) -> None:
        """Makes all rows object rows, those in flight in the order of their plans; for what is rare."""
        for seat in self._steady():
            self.leave(seat.call)
        for step in self._executor.in_flight:
            step.rows = self.rows_of(step)

    def disband(self) -> None:
        """Makes all rows object rows and forgets their order: the queue is about to be ordered anew."""
        self.leave_all()
        for seat in self.table.seats:
            if seat is not None:
                self.order.remove(seat)

    def rows_of(self, step: StepInFlight) -> dict[CallHandle, PlannedRow]:
        """All rows of a plan in flight as objects, in plan order; for what is rare."""
        assert isinstance(step, ColumnsInFlight)
        rows = {row.slot: row for row in step.rows.values()}
        for seat in self._steady():
            if self._is_in_flight(seat, step.step):
                rows[seat.slot] = self._row_of(seat, step.step)
        return {rows[slot].handle: rows[slot] for slot in step.batch.slots.tolist()}

    def _is_in_flight(self, seat: Seat, step: int) -> bool:
        return max(seat.first, self._executor.steps_done + 1) <= step <= seat.last

    def _row_of(self, seat: Seat, step: int) -> PlannedRow:
        handle = seat.call.handle
        assert handle is not None, "a running call has a handle"
        return PlannedRow(seat.call, handle, seat.offset + step, 1, True, seat.slot)

    def _steady(self) -> list[Seat]:
        return [seat for seat in self.table.seats if seat is not None and seat.steady]

    def _stop_planning(self, seat: Seat) -> None:
        self.rows -= 1
        self.offsets -= seat.offset
        self._leave_bucket(seat)

    # ── plans ───────────────────────────────────────────────────────────────────────────────────────

    def retire_before(self, step: int) -> None:
        """Rows whose last token is in flight take part in no further plan; their results still come."""
        for seat in self._last_plans.take(step - 1):
            self._stop_planning(seat)
            self.order.remove(seat)
            seat.retired = True

    def entering_blocks(self, step: int) -> Entering:
        """Rows of the lane that enter a new block at plan `step`, in the order of the queue. Not to be
        changed."""
        number = step % self._block_size
        entering = self._entering[number]
        if entering is None:
            entering = self._entering[number] = sorted(self._buckets[number].items())
        return entering

    def _enter_bucket(self, seat: Seat) -> None:
        assert seat.key is not None, "a steady row is in the order"
        number = -seat.offset % self._block_size
        self._buckets[number][seat.key] = seat.call
        self._entering[number] = None

    def _leave_bucket(self, seat: Seat) -> None:
        assert seat.key is not None, "a steady row is in the order"
        number = -seat.offset % self._block_size
        del self._buckets[number][seat.key]
        self._entering[number] = None

    # ── results ─────────────────────────────────────────────────────────────────────────────────────

    def take_result(self, slots: SlotArray, tokens: Int32Array, step_ps: int) -> None:
        """Books the result that is the executor's newest by now: a token for each slot, whoever's it is."""
        self.pass_time(step_ps)
        self._tokens[self._executor.steps_done % self._kept][slots] = tokens

    def pass_time(self, step_ps: int) -> None:
        """Books the seconds of the result that is the executor's newest by now."""
        self.clock_ps += step_ps
        self._clocks[self._executor.steps_done % self._kept] = self.clock_ps

    def due(self) -> list[Seat]:
        """Rows that must be looked at after the newest result, in no order, some twice."""
        seats = list(self._results_due.take(self._executor.steps_done))
        if self._clocks_due:
            seats += self._clocks_due.pop_due(self.clock_ps)
        return seats

    def refresh(self, seat: Seat, *, without_newest: bool = False) -> None:
        """Brings the call of a steady row up to date.

        Args:
            without_newest: As if the newest result had not come yet.
        """
        executor, call = self._executor, seat.call
        plans = min(executor.next_step - 1, seat.last) - seat.plan_base
        if plans > 0:
            call.planned += plans
            call.in_flight += plans
            call.sampling += plans
            seat.plan_base += plans
        results = executor.steps_done - without_newest - seat.base
        if results > 0:
            self._book(seat, results)

    def refresh_all(self, calls: Iterable["Call"]) -> None:
        """The same for those of `calls` that are in the lane."""
        for call in calls:
            if call.seat is not None and call.seat.steady:
                self.refresh(call.seat)

    def _book(self, seat: Seat, results: int) -> None:
        call, program, base = seat.call, seat.call.program, seat.base
        done = base + results
        call.tokens.frombytes(self._tokens_of(seat.slot, base + 1, done))
        program.tokens += results
        start = seat.offset + base + 1
        call.in_flight -= results
        call.sampling -= results
        call.computed = call.computed_ever = start + results
        service_ps = self._clocks[done % self._kept] - self._clocks[base % self._kept]
        cost_ps = self._executor.prices.decode_ps(start, start + results)
        call.service_ps += service_ps
        program.service_ps += service_ps
        call.cost_ps += cost_ps
        program.cost_ps += cost_ps
        in_cost = self._executor.queue.policy.unit is ServiceUnit.COST
        call.quantum_used_ps += cost_ps if in_cost else service_ps
        seat.base = done

    def _tokens_of(self, slot: int, first: int, last: int) -> bytes:
        first, last = first % self._kept, last % self._kept
        if first <= last:
            return self._tokens[first : last + 1, slot].tobytes()
        return self._tokens[first:, slot].tobytes() + self._tokens[: last + 1, slot].tobytes()

    def rearm(self, seat: Seat) -> None:
        """Says when a steady row, up to date, must be looked at next. While earlier rows of it are in flight
        as objects, what it will have used is not known; they are looked at anyway."""
        if self._executor.steps_done < seat.first - 1:
            return
        call, policy = seat.call, self._executor.queue.policy
        result = min(seat.last, seat.base + self._kept - 1)
        quantum_ps = policy.quantum_ps(call.level)
        if quantum_ps < FOREVER_PS:
            left_ps = quantum_ps - call.quantum_used_ps
            if policy.unit is ServiceUnit.COST:
                result = self._quantum_used_up(seat, left_ps, result)
            else:
                self._clocks_due.set(seat, self._clocks[seat.base % self._kept] + left_ps)
        self._results_due.drop(seat.due, seat)
        self._results_due.put(result, seat)
        seat.due = result

    def _quantum_used_up(self, seat: Seat, left_ps: int, latest: int) -> int:
        """The result that uses up what is left of a row's quantum, or `latest` if that comes first."""
        prices, start = self._executor.prices, seat.offset + seat.base + 1
        if prices.decode_ps(start, start + latest - seat.base) < left_ps:
            return latest  # the usual case, at a fraction of the cost of solving for the result
        return min(latest, seat.base + prices.decodes_within(start, left_ps))

    def rearm_all(self) -> None:
        """Prices have changed; all rows were up to date before."""
        for seat in self._steady():
            self.rearm(seat)
