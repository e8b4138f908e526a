"""A plan that is being put together: what one call can be given, and who must give way for it.

These are the moves that every planner is made of; which calls make them, and in which order, is the planner's
business (`planner`). A move either happens as a whole or changes nothing.

- `proceed`: a running call gets its row and the blocks for it, or sits this step out with its KV in place.
- `admit`: a waiting call gets a seat, what is still found of its KV, and a first chunk; or it does not fit.
- Both may preempt running calls, the last ones in order first, only such as come after the taker, and only
  if that is enough. A victim always comes after its taker, so no row of a plan is ever undone.

Why a planner never gets stuck: the first running call in order can take every block from the others, and
alone each call fits, because it was checked at the door.
"""

from scheduler_svc.core import call_kv
from scheduler_svc.core.call import Call
from scheduler_svc.core.executor import Executor, Misfit
from scheduler_svc.core.ids import BlockId
from scheduler_svc.core.lifecycle import Lifecycle
from scheduler_svc.core.planned import PlannedRow
from scheduler_svc.core.prices import PS_PER_S

_MISFIT_STEPS = 16
"""A call that did not fit is looked at again after this many steps, or as soon as more memory is free."""


class Draft:
    """A plan that is being put together."""

    def __init__(self, executor: Executor, prefill_tokens_left: int) -> None:
        self.executor = executor
        self.prefill_tokens_left = prefill_tokens_left
        self.admitting = True
        """Cleared by the first waiting call that does not fit."""
        self.preempted: set[Call] = set()
        """Not started again within the plan. Only asked, never walked."""
        self.passed: set[Call] = set()
        """Waiting calls that did not fit."""
        self.rows: dict[Call, PlannedRow] = {}
        """In the order in which they were given."""
        self.new_blocks: dict[Call, list[BlockId]] = {}
        """Blocks that a call got with its row, where it got any."""
        self.steady: list[Call] = []
        """Calls without a row of their own, in the lane, that got a block."""
        self.steady_blocks: list[BlockId] = []
        """Those blocks."""


class Drafter:
    """The moves, on calls and blocks."""

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle

    def proceed(self, draft: Draft, call: Call, now: float) -> None:
        """Gives a running call its row, or leaves it in place for a step."""
        decodes = call.is_decoding
        count = 1 if decodes else min(call.known - call.planned, draft.prefill_tokens_left)
        if count <= 0:
            return
        missing = draft.executor.blocks_for(call.planned + count) - len(call.blocks)
        if not self._make_room(draft, call, now, blocks=missing, seats=0):
            return
        if not decodes:
            draft.prefill_tokens_left -= count
        self._add_row(draft, call, count, missing)

    def admit(self, draft: Draft, call: Call, now: float) -> bool:
        """Starts a waiting call with what is found of its KV and a first chunk; False: it does not fit."""
        executor, kv = draft.executor, draft.executor.kv
        if draft.prefill_tokens_left <= 0 or self._is_known_misfit(draft, call):
            return False
        found = kv.find(call_kv.keys_of(executor, call))
        found_tokens = call_kv.tokens_in(executor, call, found)
        count = min(call.known - found_tokens, draft.prefill_tokens_left)
        missing = executor.blocks_for(found_tokens + count) - len(found)
        available = kv.available
        kv.hold(found)
        needed = missing + found.to_bring
        lacks_memory = needed > kv.available
        if not self._make_room(draft, call, now, blocks=needed, seats=1):
            kv.let_go(found)
            executor.misfit = Misfit(call, available, executor.next_step) if lacks_memory else None
            return False
        executor.misfit = None
        self._lifecycle.start(call, now, cached_tokens=found_tokens)
        call.blocks = call_kv.take_back(executor, call, found)
        call.computed = call.planned = found_tokens
        call.computed_ever = max(call.computed_ever, found_tokens)
        draft.prefill_tokens_left -= count
        self._add_row(draft, call, count, missing)
        return True

    def _is_known_misfit(self, draft: Draft, call: Call) -> bool:
        """Whether nothing has changed for the better since the call did not fit. Cheap on purpose."""
        executor = draft.executor
        if executor.queue.may_displace(call):
            return False
        if executor.queue.running_count >= executor.spec.max_num_seqs:
            return True
        misfit = executor.misfit
        return (
            misfit is not None
            and misfit.call is call
            and executor.kv.available <= misfit.available
            and executor.next_step < misfit.step + _MISFIT_STEPS
        )

    def _make_room(self, draft: Draft, call: Call, now: float, *, blocks: int, seats: int) -> bool:
        """Preempts the last running calls after `call` until blocks and seats are free; none, if not enough
        are."""
        executor = draft.executor
        blocks_short = blocks - executor.kv.available
        seats_short = executor.queue.running_count + seats - executor.spec.max_num_seqs
        if blocks_short <= 0 and seats_short <= 0:
            return True
        victims = self._victims(executor, call, blocks_short, seats_short)
        for victim in victims or ():
            self._lifecycle.preempt(victim, now)
            draft.preempted.add(victim)
        return victims is not None

    def _victims(
        self, executor: Executor, call: Call, blocks_short: int, seats_short: int
    ) -> list[Call] | None:
        """The fewest last running calls after `call` whose leaving frees what is short; None if all are not
        enough.

        A block that several calls hold is free when the last of them has left. While only a seat is short, a
        call that has just been started keeps its own.
        """
        grace_ps = self._lifecycle.config.preemption_grace_s * PS_PER_S
        victims: list[Call] = []
        departures = executor.kv.departures()
        for victim in executor.queue.running_after(call):
            executor.bring_up_to_date(victim)
            if victim.awaits_last_token or (blocks_short <= 0 and victim.ran_ps < grace_ps):
                continue
            victims.append(victim)
            blocks_short -= departures.add(victim.blocks, victim.block_hashes)
            if blocks_short <= 0 and len(victims) >= seats_short:
                return victims
        return None

    def _add_row(self, draft: Draft, call: Call, count: int, missing: int) -> None:
        if missing:
            draft.new_blocks[call] = taken = draft.executor.kv.take(missing)
            call.blocks += taken
        handle = call.handle
        assert handle is not None, "a running call has a handle"
        samples = call.planned + count == call.known
        draft.rows[call] = PlannedRow(call, handle, call.planned, count, samples)
        call.planned += count
        call.in_flight += 1
        call.sampling += samples
