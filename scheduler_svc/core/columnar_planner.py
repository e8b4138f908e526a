"""Fills an executor's next step at the cost of what changes: the planner of `lane`.

It makes the plans of the plain planner (`planner`), the oracle, with the same moves (`drafting`) in the same
order. Only *needy* calls are gone through:

- rows of the lane that enter a new block: most get it and stay in the lane;
- running calls that are not in the lane: prompts, calls that joined, calls that sat a step out;
- waiting calls, as far as they fit.

All other rows of the lane are in the plan without being looked at: they change nothing that a needy one could
see, so that it does not matter when they would have had their turn. The decode tokens of the lane are set
aside in one subtraction.
"""

from bisect import bisect_left
from collections.abc import Sequence

from scheduler_svc.core.call import Call
from scheduler_svc.core.call_states import CallState
from scheduler_svc.core.columns import EMPTY, Column
from scheduler_svc.core.config import Fit
from scheduler_svc.core.drafting import Draft, Drafter
from scheduler_svc.core.effects import Effect, Plan, SendPlan
from scheduler_svc.core.executor import Executor
from scheduler_svc.core.ids import BlockId
from scheduler_svc.core.lane import Batch, Lane
from scheduler_svc.core.lifecycle import Lifecycle
from scheduler_svc.core.lineup import QueueKey
from scheduler_svc.core.planned import ColumnsInFlight, PlannedRow
from scheduler_svc.core.planner import BACKFILL_TRIES, first_able
from scheduler_svc.core.prices import context_reads
from scheduler_svc.core.step_cost import StepFeatures

Needy = list[tuple[QueueKey, Call]]
"""In the order of the queue; no two keys are equal, so calls are never compared."""


class ColumnarPlanner:
    """Makes plans for executors with a lane, one at a time."""

    def __init__(self, lifecycle: Lifecycle, outbox: list[Effect]) -> None:
        self._lifecycle = lifecycle
        self._drafter = Drafter(lifecycle)
        self._outbox = outbox

    def plan(self, executor: Executor, now: float) -> bool:
        """As `Planner.plan`."""
        lane = executor.lane
        assert lane is not None, "the executor has no lane"
        if not executor.can_take_plan:
            return False
        lane.retire_before(executor.next_step)
        draft = self._fill(executor, lane, now)
        if not lane.rows and not draft.rows:
            has_news = executor.to_release or executor.kv.swaps_pending
            if executor.in_flight or not has_news:
                return False
        self._send(draft, lane)
        return True

    # ── who gets what ───────────────────────────────────────────────────────────────────────────────

    def _fill(self, executor: Executor, lane: Lane, now: float) -> Draft:
        loose = [call for call in lane.loose if not call.awaits_last_token] if lane.loose else ()
        decoding = lane.rows + sum(call.is_decoding for call in loose)
        draft = Draft(executor, executor.spec.max_num_batched_tokens - decoding)
        entering = lane.entering_blocks(executor.next_step)
        nobody_starts = _is_full(executor)
        if loose or not nobody_starts or executor.kv.available < len(entering):
            self._go_through(draft, lane, _merged(loose, entering), now, nobody_starts=nobody_starts)
        elif entering:
            _give_blocks(draft, [call for _, call in entering])
        return draft

    def _go_through(self, draft: Draft, lane: Lane, needy: Needy, now: float, *, nobody_starts: bool) -> None:
        """Each in its turn: a waiting call before the first running one that it goes before.

        Args:
            nobody_starts: No waiting call can start unless a running one is preempted.
        """
        done = self._proceed(draft, lane, needy, now, until_preempted=True) if nobody_starts else 0
        if nobody_starts and not draft.preempted:
            return
        while draft.admitting and (call := first_able(draft)) is not None:
            before = bisect_left(needy, (draft.executor.queue.displacing_key(call),), done)
            if done < before:
                self._proceed(draft, lane, needy[done:before], now)
                done = before
            if not self._drafter.admit(draft, call, now):
                draft.passed.add(call)
                backfills = self._lifecycle.config.fit is Fit.BACKFILL
                draft.admitting = backfills and len(draft.passed) <= BACKFILL_TRIES
        if done < len(needy):
            self._proceed(draft, lane, needy[done:], now)

    def _proceed(
        self, draft: Draft, lane: Lane, needy: Needy, now: float, *, until_preempted: bool = False
    ) -> int:
        """Returns: how many had their turn: all, or those up to the first that had another preempted."""
        step, kv = draft.executor.next_step, draft.executor.kv
        steady: list[Call] = []
        """Those before the one in turn that only need a block, and can have it: they get theirs together."""
        available = kv.available
        for index, (_, call) in enumerate(needy):
            missing = _missing_if_steady(draft.executor, lane, call)
            if missing is not None and len(steady) + missing <= available:
                if call in lane.loose:
                    lane.enter(call, step)
                if missing:
                    steady.append(call)
                continue
            _give_blocks(draft, steady)
            steady.clear()
            self._proceed_alone(draft, lane, call, now)
            if until_preempted and draft.preempted:
                return index + 1
            available = kv.available
        _give_blocks(draft, steady)
        return len(needy)

    def _proceed_alone(self, draft: Draft, lane: Lane, call: Call, now: float) -> None:
        """A call that is not steady, or cannot be since there is no block for it."""
        if call.seat is not None and call.seat.steady:
            lane.leave(call)
        if call.state is CallState.RUNNING:  # it may have been preempted since the plan was begun
            self._drafter.proceed(draft, call, now)

    # ── the plan ────────────────────────────────────────────────────────────────────────────────────

    def _send(self, draft: Draft, lane: Lane) -> None:
        executor = draft.executor
        joined = _arrange(draft, lane) if lane.loose or draft.rows else ()
        batch = lane.order.batch()
        rows = list(draft.rows.values())
        step = executor.next_step
        executor.in_flight.append(
            ColumnsInFlight(
                step,
                {row.handle: row for row in rows},
                _features_of(lane, step, rows),
                batch,
                _samplers_of(batch, lane, rows),
            )
        )
        executor.next_step = step + 1
        swap_out, swap_in = executor.kv.drain_swaps() if executor.kv.swaps_pending else ((), ())
        row_at = batch.row_of.item
        plan = Plan(
            step=step,
            handles=batch.handles,
            chunks={row_at(row.slot): row.count for row in rows if row.count != 1},
            joined={row_at(row.slot): row.start for row in joined},
            blocks=_blocks_to_tell(draft, batch, joined),
            released=Column.of(executor.to_release) if executor.to_release else EMPTY,
            swap_out=swap_out,
            swap_in=swap_in,
        )
        executor.to_release.clear()
        self._outbox.append(SendPlan(executor_id=executor.executor_id, plan=plan))


def _missing_if_steady(executor: Executor, lane: Lane, call: Call) -> int | None:
    """Blocks that a call is short of, 1 or 0, if it is in the lane or may enter it with the next plan."""
    seat = call.seat
    if seat is None:
        return None
    if seat.steady:
        return 1
    if lane.may_enter(call, executor.next_step):
        return executor.blocks_for(call.planned + 1) - len(call.blocks)
    return None


def _merged(loose: Sequence[Call], entering: Needy) -> Needy:
    needy = entering.copy()  # calls enter and leave the lane while this is gone through
    for call in loose:
        assert call.queue_key is not None, "a running call is in the queue"
        needy.append((call.queue_key, call))
    needy.sort()
    return needy


def _is_full(executor: Executor) -> bool:
    """Whether all seats are taken and the first waiting call comes after all who run: then none can start."""
    queue = executor.queue
    first = queue.waiting_first()
    if first is None:
        return True
    return queue.running_count >= executor.spec.max_num_seqs and not queue.may_displace(first)


def _give_blocks(draft: Draft, calls: Sequence[Call]) -> None:
    """One block for each steady row; there are enough."""
    if calls:
        taken = draft.executor.kv.take(len(calls))
        for call, block in zip(calls, taken, strict=True):
            call.blocks.append(block)
        draft.steady += calls
        draft.steady_blocks += taken


def _arrange(draft: Draft, lane: Lane) -> list[PlannedRow]:
    """Puts the rows that are objects into the order of the batch, and takes those out that have no row now.

    Returns: the rows of calls that were not in the batch before.
    """
    step = draft.executor.next_step
    for call in lane.loose:
        if call.seat is not None and call not in draft.rows:
            lane.order.remove(call.seat)
    joined = []
    for call, row in draft.rows.items():
        seat = lane.seat(call)
        lane.loose[call] = None
        if seat.key is None:
            lane.order.insert(seat)
        row.slot = seat.slot
        if seat.planned_step != step - 1:
            joined.append(row)
        seat.planned_step = step
    return joined


def _samplers_of(batch: Batch, lane: Lane, rows: Sequence[PlannedRow]) -> Batch:
    silent = {row.slot for row in rows if not row.samples}
    if not silent:
        return batch
    return lane.batch_of([slot for slot in batch.slots.tolist() if slot not in silent])


def _features_of(lane: Lane, step: int, rows: Sequence[PlannedRow]) -> StepFeatures:
    """As the plain planner's: a row of one token that samples is a decode row."""
    decodes, context = lane.rows, lane.offsets + lane.rows * (step + 1)
    prefill_tokens = prefill_context = 0
    for row in rows:
        if row.count > 1 or not row.samples:
            prefill_tokens += row.count
            prefill_context += context_reads(row.start, row.start + row.count)
        else:
            decodes += 1
            context += row.start + 1
    return StepFeatures(decodes, context, prefill_tokens, prefill_context)


def _blocks_to_tell(
    draft: Draft, batch: Batch, joined: Sequence[PlannedRow]
) -> dict[int, tuple[BlockId, ...]]:
    """row -> block ids: the whole table of a row that joins, what is new of another."""
    told: dict[int, tuple[BlockId, ...]] = {}
    row_at = batch.row_of.item
    for call, block in zip(draft.steady, draft.steady_blocks, strict=True):
        if call.seat is not None:
            told[row_at(call.seat.slot)] = (block,)
    for call, blocks in draft.new_blocks.items():
        told[row_at(draft.rows[call].slot)] = tuple(blocks)
    for row in joined:
        if row.call.blocks:
            told[row_at(row.slot)] = tuple(row.call.blocks)
    return told
