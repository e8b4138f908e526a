"""Fills an executor's next step. The plain object-loop planner, written to be read.

One plan in six moves:

1. Candidates: walk the queue in order and take as many calls as there are seats. A call whose last token is
in flight
   keeps its seat and gets no row; a call that was preempted with a result in flight is passed over until that
   came.
2. Tokens: one is set aside for each decoding candidate, so long prompts never delay decoding; what is left of
the
   token budget goes to prefill chunks in order.
3. In order, each candidate gets the blocks for its row. A candidate that is not running needs a seat as well
and looks
   for its prefix in the cache first.
4. What is missing, seats or blocks, is taken from the last running calls in order, but only from calls that
come after
   the candidate, and only if that is enough; otherwise a running candidate sits this step out with its KV in
   place, and a waiting one ends admission (strict stop: nobody overtakes it).
5. Once admission has ended, tokens that are left go to the running calls behind the candidates.
6. The rows become a plan: the handles in full, and sparsely what the executor does not know yet.

Why it never gets stuck: the first running call in order can take every block from the others, and alone each
call fits, because it was checked at the door. A victim always comes after its taker, so no row of this plan
is undone.

Cost: O(rows + what changes), whatever waits. Source: Autellix Alg. 1, the batch.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

from scheduler_svc.core.call import Call
from scheduler_svc.core.call_states import CallState
from scheduler_svc.core.effects import Effect, Plan, SendPlan
from scheduler_svc.core.executor import Executor, PlannedRow, StepInFlight
from scheduler_svc.core.ids import BlockId
from scheduler_svc.core.kv import extend_hashes, root_hash
from scheduler_svc.core.lifecycle import Lifecycle


@dataclass(slots=True)
class Draft:
    """A plan that is being put together."""

    executor: Executor
    prefill_tokens_left: int
    admitting: bool = True
    """Cleared by the first waiting call that does not fit."""
    preempted: set[Call] = field(default_factory=set)
    """Not started again within the plan. Only asked, never walked."""
    rows: list[PlannedRow] = field(default_factory=list)
    blocks: dict[int, list[BlockId]] = field(default_factory=dict)
    """row -> blocks to tell the executor."""


class Planner:
    """Makes plans for executors, one at a time."""

    def __init__(self, lifecycle: Lifecycle, outbox: list[Effect]) -> None:
        self._lifecycle = lifecycle
        self._outbox = outbox

    def plan(self, executor: Executor, now: float) -> bool:
        """Makes the executor's next plan, if it can take one and there is something to say.

        A plan without rows is made only to release calls, and only when no result is due that could bring
        rows.

        Returns: whether a plan was made.
        """
        if not executor.can_take_plan:
            return False
        draft = self._fill(executor, now)
        if not draft.rows and (executor.in_flight or not executor.to_release):
            return False
        self._send(draft)
        return True

    # ── who gets what ───────────────────────────────────────────────────────────────────────────────

    def _fill(self, executor: Executor, now: float) -> Draft:
        candidates = list(_candidates(executor))
        decoding = sum(call.is_decoding for call in candidates)
        draft = Draft(executor, executor.spec.max_num_batched_tokens - decoding)
        for call in candidates:
            if call.state is CallState.RUNNING:
                self._continue(draft, call, now)
            elif call in draft.preempted or not self._admit(draft, call, now):
                draft.admitting = False
        if not draft.admitting:
            self._fill_up(draft, candidates, now)
        return draft

    def _fill_up(self, draft: Draft, candidates: list[Call], now: float) -> None:
        """Gives tokens that are left to running calls behind the candidates: who waits for room has not
        taken their seats, so they need not stand still."""
        offered = set(candidates)
        for call in list(draft.executor.queue.running()):
            if call in offered or call.awaits_last_token or call.state is not CallState.RUNNING:
                continue
            if draft.prefill_tokens_left == 0:
                return
            draft.prefill_tokens_left -= call.is_decoding
            self._continue(draft, call, now)

    def _continue(self, draft: Draft, call: Call, now: float) -> None:
        """Gives a running call its row, or leaves it in place for a step."""
        decodes = call.is_decoding
        count = 1 if decodes else min(call.known - call.planned, draft.prefill_tokens_left)
        if count == 0:
            return
        missing = _blocks_for(draft.executor, call.planned + count) - len(call.blocks)
        if not self._make_room(draft, call, now, blocks=missing, seats=0):
            return
        if not decodes:
            draft.prefill_tokens_left -= count
        self._add_row(draft, call, count, draft.executor.pool.take(missing))

    def _admit(self, draft: Draft, call: Call, now: float) -> bool:
        """Starts a waiting call with what is cached of it and a first chunk; False: it does not fit."""
        if not draft.admitting or draft.prefill_tokens_left == 0:
            return False
        executor = draft.executor
        cached = _find_prefix(executor, call)
        cached_tokens = len(cached) * executor.spec.block_size
        count = min(call.known - cached_tokens, draft.prefill_tokens_left)
        missing = _blocks_for(executor, cached_tokens + count) - len(cached)
        executor.pool.hold(cached)
        if not self._make_room(draft, call, now, blocks=missing, seats=1):
            executor.pool.release(cached)
            return False
        self._lifecycle.start(call, now, cached_tokens=cached_tokens)
        call.blocks = cached
        call.computed = call.planned = cached_tokens
        call.computed_ever = max(call.computed_ever, cached_tokens)
        draft.prefill_tokens_left -= count
        self._add_row(draft, call, count, executor.pool.take(missing))
        return True

    def _make_room(self, draft: Draft, call: Call, now: float, *, blocks: int, seats: int) -> bool:
        """Preempts the last running calls after `call` until blocks and seats are free; none, if not enough
        are."""
        executor = draft.executor
        blocks_short = blocks - executor.pool.available
        seats_short = executor.queue.running_count + seats - executor.spec.max_num_seqs
        if blocks_short <= 0 and seats_short <= 0:
            return True
        victims = _victims(executor, call, blocks_short, seats_short)
        for victim in victims or ():
            self._lifecycle.preempt(victim, now)
            draft.preempted.add(victim)
        return victims is not None

    def _add_row(self, draft: Draft, call: Call, count: int, new_blocks: list[BlockId]) -> None:
        call.blocks += new_blocks
        handle = call.handle
        assert handle is not None, "a running call has a handle"
        joins = handle not in draft.executor.last_batch
        tell = list(call.blocks) if joins else new_blocks
        if tell:
            draft.blocks[len(draft.rows)] = tell
        samples = call.planned + count == call.known
        draft.rows.append(
            PlannedRow(call=call, handle=handle, start=call.planned, count=count, samples=samples)
        )
        call.planned += count
        call.in_flight += 1
        call.sampling += samples

    # ── out ─────────────────────────────────────────────────────────────────────────────────────────

    def _send(self, draft: Draft) -> None:
        executor = draft.executor
        handles = tuple(row.handle for row in draft.rows)
        plan = Plan(
            step=executor.next_step,
            handles=handles,
            chunks={i: row.count for i, row in enumerate(draft.rows) if row.count != 1},
            joined={
                i: row.start for i, row in enumerate(draft.rows) if row.handle not in executor.last_batch
            },
            blocks={i: tuple(blocks) for i, blocks in draft.blocks.items()},
            released=tuple(executor.to_release),
        )
        executor.in_flight.append(StepInFlight(step=plan.step, rows={row.handle: row for row in draft.rows}))
        executor.next_step += 1
        executor.last_batch = frozenset(handles)
        executor.to_release.clear()
        self._outbox.append(SendPlan(executor_id=executor.executor_id, plan=plan))


def _candidates(executor: Executor) -> Iterator[Call]:
    """The calls that belong in the batch, in order."""
    queue = executor.queue
    seats = executor.spec.max_num_seqs - sum(call.awaits_last_token for call in queue.running())
    able = (call for call in queue.walk() if _may_have_row(call))
    return islice(able, seats)


def _may_have_row(call: Call) -> bool:
    if call.state is CallState.RUNNING:
        return not call.awaits_last_token
    return call.in_flight == 0


def _victims(executor: Executor, call: Call, blocks_short: int, seats_short: int) -> list[Call] | None:
    """The fewest last running calls after `call` whose leaving frees what is short; None if all are not
    enough.

    A block that several calls hold is free when the last of them has left.
    """
    victims: list[Call] = []
    given_up: Counter[BlockId] = Counter()
    for victim in executor.queue.running_after(call):
        if victim.awaits_last_token:
            continue
        victims.append(victim)
        for block in victim.blocks:
            given_up[block] += 1
            blocks_short -= given_up[block] == executor.pool.references(block)
        if blocks_short <= 0 and len(victims) >= seats_short:
            return victims
    return None


def _find_prefix(executor: Executor, call: Call) -> list[BlockId]:
    """Blocks of the call's longest cached prefix: full ones, and never the newest token, which must be
    computed."""
    if not executor.spec.prefix_caching or call.spec.skip_reading_prefix_cache:
        return []
    hash_blocks(executor, call, (len(call.tokens) - 1) // executor.spec.block_size)
    return executor.pool.find(call.block_hashes[: (len(call.tokens) - 1) // executor.spec.block_size])


def hash_blocks(executor: Executor, call: Call, blocks: int) -> None:
    """Makes sure that the hashes of the call's first full blocks are known."""
    root = root_hash(call.spec.tenant, call.spec.cache_salt)
    extend_hashes(call.block_hashes, root, call.tokens, blocks, executor.spec.block_size)


def _blocks_for(executor: Executor, tokens: int) -> int:
    return -(-tokens // executor.spec.block_size)
