"""What the executor holds of each call, and the check of every plan against it.

A call lives from its announcement until a plan releases it. `computed` counts the tokens whose KV its blocks
hold, the steps that are still running included; `in_flight` counts tokens sampled by such steps, not yet
known here:

    prompt + outputs         in_flight
    |---------------------|  |------|     a plan may compute up to here
    |-------- computed ------|

A plan is checked completely before anything changes, so a violation leaves the book as it was. What the
blocks of either tier hold is the scheduler's to know; the copies between them are checked to name blocks that
exist, and no target twice in one list.
A failed call stays in the book: its rows are skipped, for the plan that names it may be under way already.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from executor_svc.runner import PlanViolation, StepPlan

if TYPE_CHECKING:  # the rules of plans need no vllm, and their tests have none
    from vllm.sampling_params import SamplingParams
    from vllm.v1.request import Request


@dataclass(slots=True, eq=False, kw_only=True)
class Call:
    """One announced call."""

    handle: int
    req_id: str
    """Name inside vLLM; never used twice in the life of the runner."""
    prompt: list[int]
    outputs: list[int]
    params: SamplingParams | None = None
    """None only for a failed call."""
    grammar: Request | None = None
    """vLLM's request object, kept for calls with a grammar: the grammar manager works on it."""
    grammar_ready: bool = False
    computed: int = 0
    in_flight: int = 0
    blocks_held: int = 0
    in_worker: bool = False
    """The model runner holds the call's state."""
    failure: str = ""
    failure_reported: bool = False

    @property
    def num_tokens(self) -> int:
        """Prompt and output, tokens still in flight included."""
        return len(self.prompt) + len(self.outputs) + self.in_flight


class Row(NamedTuple):
    """One call's part of a step. A tuple, for every step makes one of every call."""

    call: Call
    joined: bool
    start: int
    """Tokens whose KV is there before the step."""
    chunk: int
    """Tokens the step computes, > 0."""
    blocks: Sequence[int]
    """The whole table of a joined row; ids to append otherwise."""
    samples: bool
    """The step reaches the call's last token."""


@dataclass(frozen=True, slots=True)
class Batch:
    """A checked plan: the rows that run, what ends, what has to be told."""

    step: int
    rows: list[Row]
    left: list[Call]
    """In the previous batch, not in this one, not released."""
    released: list[Call]
    failed: list[Call]
    """Named by the plan for the first time since they failed."""
    swap_out: np.ndarray
    """(device block, host block) of each copy done first. int64, shape (copies, 2)."""
    swap_in: np.ndarray
    """(host block, device block) of each copy done second."""

    @property
    def copies(self) -> int:
        """Blocks copied between the tiers."""
        return len(self.swap_out) + len(self.swap_in)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a plan must respect."""

    num_blocks: int
    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    host_blocks: int = 0


@dataclass(slots=True)
class CallBook:
    """All calls of one epoch."""

    limits: Limits
    calls: dict[int, Call] = field(default_factory=dict)
    _last_step: int = 0
    _last_batch: dict[int, Call] = field(default_factory=dict)
    _last_run: dict[int, Call] = field(default_factory=dict)

    def add(self, call: Call) -> None:
        """Takes a call in.

        Raises: PlanViolation when the handle is in use.
        """
        if call.handle in self.calls:
            raise PlanViolation(f"handle {call.handle} is announced twice")
        self.calls[call.handle] = call

    def compose(self, plan: StepPlan) -> Batch:
        """Checks a plan and makes it the current step: counters move, released calls are forgotten.

        Raises: PlanViolation, with nothing changed.
        """
        self._check_plan(plan)
        named = {handle: self._known(handle) for handle in plan.handles}
        rows = self._rows(plan, named)
        self._check_budget(rows)
        swap_out, swap_in = _pairs(plan.swap_out), _pairs(plan.swap_in)
        if len(swap_out) or len(swap_in):
            self._check_swaps(plan.step, swap_out, swap_in)
        released = [self._known(handle) for handle in plan.released]
        batch = Batch(
            step=plan.step,
            rows=rows,
            left=self._left(rows, released),
            released=released,
            failed=[call for call in named.values() if call.failure and not call.failure_reported],
            swap_out=swap_out,
            swap_in=swap_in,
        )
        self._commit(batch, named)
        return batch

    def _check_plan(self, plan: StepPlan) -> None:
        if plan.step != self._last_step + 1:
            raise PlanViolation(f"step {plan.step} follows step {self._last_step}")
        if len(set(plan.handles)) != len(plan.handles):
            raise PlanViolation(f"step {plan.step} names a handle twice")
        if not set(plan.released).isdisjoint(plan.handles):
            raise PlanViolation(f"step {plan.step} runs a call that it releases")
        rows = {*plan.chunks, *plan.joined, *plan.blocks}
        if rows and (min(rows) < 0 or max(rows) >= len(plan.handles)):
            raise PlanViolation(f"step {plan.step} describes a row outside its {len(plan.handles)} handles")

    def _known(self, handle: int) -> Call:
        call = self.calls.get(handle)
        if call is None:
            raise PlanViolation(f"handle {handle} is not known")
        return call

    def _rows(self, plan: StepPlan, named: dict[int, Call]) -> list[Row]:
        changed = {*plan.chunks, *plan.joined, *plan.blocks}
        rows = []
        for index, call in enumerate(named.values()):
            if not call.failure:
                row = None if index in changed else self._steady_row(call)
                rows.append(row or self._row(plan, index, call))
        return rows

    def _steady_row(self, call: Call) -> Row | None:
        """The row of a call that goes on by one token, which is nearly every row; None: to be looked at."""
        start, total = call.computed, len(call.prompt) + len(call.outputs) + call.in_flight
        fits = start < total < self.limits.max_model_len and start < call.blocks_held * self.limits.block_size
        if fits and call.handle in self._last_batch:
            return Row(call, False, start, 1, (), samples=start + 1 == total)
        return None

    def _row(self, plan: StepPlan, index: int, call: Call) -> Row:
        joined = index in plan.joined
        if joined == (call.handle in self._last_batch):
            state = "was" if joined else "was not"
            raise PlanViolation(f"handle {call.handle} {state} in the batch of step {plan.step - 1}")
        if joined and call.in_flight:
            raise PlanViolation(f"handle {call.handle} rejoins while a token of it is in flight")
        start = plan.joined[index] if joined else call.computed
        chunk = plan.chunks.get(index, 1)
        blocks = plan.blocks.get(index, ())
        self._check_extent(call, start, chunk)
        self._check_blocks(call, blocks, (0 if joined else call.blocks_held) + len(blocks), start + chunk)
        return Row(call, joined, start, chunk, blocks, samples=start + chunk == call.num_tokens)

    def _check_extent(self, call: Call, start: int, chunk: int) -> None:
        end, limit = start + chunk, self.limits.max_model_len
        if chunk < 1 or start < 0:
            raise PlanViolation(f"handle {call.handle} computes {chunk} tokens from token {start}")
        if end > call.num_tokens:
            raise PlanViolation(f"handle {call.handle} computes up to token {end} of {call.num_tokens}")
        if end == call.num_tokens and end >= limit:
            raise PlanViolation(f"handle {call.handle} has {end} tokens, the model takes {limit}")

    def _check_blocks(self, call: Call, blocks: Sequence[int], held: int, tokens: int) -> None:
        for block in blocks:
            if not 0 < block < self.limits.num_blocks:
                raise PlanViolation(
                    f"block {block} of handle {call.handle} is not in 1..{self.limits.num_blocks - 1}"
                )
        if held * self.limits.block_size < tokens:
            raise PlanViolation(f"handle {call.handle} has {held} blocks for {tokens} tokens")

    def _check_budget(self, rows: Sequence[Row]) -> None:
        limits = self.limits
        if len(rows) > limits.max_num_seqs:
            raise PlanViolation(f"{len(rows)} rows, the limit is {limits.max_num_seqs}")
        if (tokens := sum(row.chunk for row in rows)) > limits.max_num_batched_tokens:
            raise PlanViolation(f"{tokens} tokens in a step, the limit is {limits.max_num_batched_tokens}")

    def _check_swaps(self, step: int, swap_out: np.ndarray, swap_in: np.ndarray) -> None:
        limits = self.limits
        if not limits.host_blocks:
            raise PlanViolation(f"step {step} swaps, but the executor has no host blocks")
        for blocks in (swap_out[:, 0], swap_in[:, 1]):
            _check_ids("swapped block", blocks, 1, limits.num_blocks)
        for blocks in (swap_out[:, 1], swap_in[:, 0]):
            _check_ids("host block", blocks, 0, limits.host_blocks)
        for targets in (swap_out[:, 1], swap_in[:, 1]):
            if len(targets) != len(np.unique(targets)):
                raise PlanViolation(f"step {step} copies two blocks of one list to the same place")

    def _left(self, rows: Sequence[Row], released: Sequence[Call]) -> list[Call]:
        staying = {row.call.handle for row in rows} | {call.handle for call in released}
        return [call for handle, call in self._last_run.items() if handle not in staying]

    def _commit(self, batch: Batch, named: dict[int, Call]) -> None:
        for row in batch.rows:
            call = row.call
            call.computed = row.start + row.chunk
            call.blocks_held = len(row.blocks) + (0 if row.joined else call.blocks_held)
            call.in_flight += row.samples
        for call in batch.failed:
            call.failure_reported = True
        for call in batch.released:
            del self.calls[call.handle]
        self._last_step = batch.step
        self._last_batch = named
        self._last_run = {row.call.handle: row.call for row in batch.rows}


_NO_PAIRS = np.empty((0, 2), dtype=np.int64)


def _pairs(swaps: Sequence[tuple[int, int]]) -> np.ndarray:
    return np.array(swaps, dtype=np.int64).reshape(-1, 2) if len(swaps) else _NO_PAIRS


def _check_ids(name: str, blocks: np.ndarray, least: int, end: int) -> None:
    """Raises: PlanViolation when an id is outside [least, end)."""
    wrong = blocks[(blocks < least) | (blocks >= end)]
    if len(wrong):
        raise PlanViolation(f"{name} {wrong[0]} is not in {least}..{end - 1}")
