"""Fills an executor's next step: the plain planner, written to be read. It is the oracle of the fast one.

One plan:

1. One token is set aside for each running call that decodes, so long prompts never delay decoding; what is
   left of the token budget goes to prefill chunks in order.
2. Running and waiting calls are gone through in the order of the queue. A running one gets its row. A waiting
   one is admitted, until the first that does not fit: nobody overtakes it, unless `backfill` lets those pass
   that need no more memory than there is. A call whose last token is in flight keeps its seat and gets no
   row; one that was preempted with a result in flight is passed over until that came.
3. The batch is every running call that got a row, in the order of the queue. It becomes a plan: the handles
   in full, and sparsely what the executor does not know yet.

Source: Autellix Alg. 1, the batch.
"""

from collections.abc import Iterator

from scheduler_svc.core.call import Call
from scheduler_svc.core.call_states import CallState
from scheduler_svc.core.columns import Column
from scheduler_svc.core.config import Fit
from scheduler_svc.core.drafting import Draft, Drafter
from scheduler_svc.core.effects import Effect, Plan, SendPlan
from scheduler_svc.core.executor import Executor
from scheduler_svc.core.ids import BlockId
from scheduler_svc.core.lifecycle import Lifecycle
from scheduler_svc.core.planned import PlannedRow, StepInFlight
from scheduler_svc.core.step_cost import StepFeatures

BACKFILL_TRIES = 8
"""Waiting calls that are tried in one plan after one that did not fit."""


class Planner:
    """Makes plans for executors, one at a time."""

    def __init__(self, lifecycle: Lifecycle, outbox: list[Effect]) -> None:
        self._lifecycle = lifecycle
        self._drafter = Drafter(lifecycle)
        self._outbox = outbox

    def plan(self, executor: Executor, now: float) -> bool:
        """Makes the executor's next plan, if it can take one and there is something to say.

        A plan without rows is made only to release calls or to copy blocks, and only when no result is due
        that could bring rows.

        Returns: whether a plan was made.
        """
        if not executor.can_take_plan:
            return False
        draft = self._fill(executor, now)
        has_news = executor.to_release or executor.kv.swaps_pending
        if not draft.rows and (executor.in_flight or not has_news):
            return False
        self._send(draft)
        return True

    def _fill(self, executor: Executor, now: float) -> Draft:
        running = [call for call in executor.queue.running() if not call.awaits_last_token]
        decoding = sum(call.is_decoding for call in running)
        draft = Draft(executor, executor.spec.max_num_batched_tokens - decoding)
        for call in running:
            self._admit_before(draft, call, now)
            if call.state is CallState.RUNNING:
                self._drafter.proceed(draft, call, now)
        self._admit_before(draft, None, now)
        return draft

    def _admit_before(self, draft: Draft, running: Call | None, now: float) -> None:
        """Admits waiting calls, in order, that go before a running one (None: all)."""
        while draft.admitting:
            call = first_able(draft)
            if call is None or (running is not None and not draft.executor.queue.goes_before(call, running)):
                return
            if self._drafter.admit(draft, call, now):
                continue
            draft.passed.add(call)
            backfills = self._lifecycle.config.fit is Fit.BACKFILL
            draft.admitting = backfills and len(draft.passed) <= BACKFILL_TRIES

    def _send(self, draft: Draft) -> None:
        executor = draft.executor
        batch = [call for call in executor.queue.running() if call in draft.rows]
        rows = [draft.rows[call] for call in batch]
        swap_out, swap_in = executor.kv.drain_swaps()
        plan = Plan(
            step=executor.next_step,
            handles=Column.of([row.handle for row in rows]),
            chunks={i: row.count for i, row in enumerate(rows) if row.count != 1},
            joined={i: row.start for i, row in enumerate(rows) if row.handle not in executor.last_batch},
            blocks=dict(_blocks_to_tell(draft, rows)),
            released=Column.of(executor.to_release),
            swap_out=swap_out,
            swap_in=swap_in,
        )
        executor.in_flight.append(
            StepInFlight(step=plan.step, rows={row.handle: row for row in rows}, features=_features_of(rows))
        )
        executor.next_step += 1
        executor.last_batch = frozenset(row.handle for row in rows)
        executor.to_release.clear()
        self._outbox.append(SendPlan(executor_id=executor.executor_id, plan=plan))


def first_able(draft: Draft) -> Call | None:
    """The first waiting call that may be started in this plan."""
    first = draft.executor.queue.waiting_first()
    if first is None or (first.in_flight == 0 and not draft.preempted and not draft.passed):
        return first
    for call in draft.executor.queue.waiting():
        if call.in_flight == 0 and call not in draft.preempted and call not in draft.passed:
            return call
    return None


def _features_of(rows: list[PlannedRow]) -> StepFeatures:
    """What the step-cost model is told of a step: a row of one token that samples is a decode row."""
    decodes = [row for row in rows if row.count == 1 and row.samples]
    features = StepFeatures(len(decodes), sum(row.start + 1 for row in decodes), 0, 0)
    for row in rows:
        if row.count > 1 or not row.samples:
            features = features.with_chunk(row.start, row.count)
    return features


def _blocks_to_tell(draft: Draft, rows: list[PlannedRow]) -> Iterator[tuple[int, tuple[BlockId, ...]]]:
    """(row, block ids): the whole table of a row that joins, what is new of another."""
    for index, row in enumerate(rows):
        joins = row.handle not in draft.executor.last_batch
        blocks = row.call.blocks if joins else draft.new_blocks.get(row.call, ())
        if blocks:
            yield index, tuple(blocks)
