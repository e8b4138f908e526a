"""A simulated executor: it obeys plans to the letter and fails on any that it could not obey.

It executes a plan when the plan comes and keeps the result until virtual time has passed for it; whether the
core hears of it, late or never, is the world's business. Order inside a plan: swaps out, swaps in, rows,
releases.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from scheduler_svc.core.effects import AnnounceCall, Plan
from scheduler_svc.core.events import CallSpec, ExecutorSpec, StepCompleted
from scheduler_svc.core.ids import CallHandle, CallId
from sim.broken import Broken, require
from sim.memory import BlockMemory
from sim.model import start_state, token_after


@dataclass(slots=True)
class HeldCall:
    """A call that the executor knows."""

    spec: CallSpec
    begin: int
    """The model's state before its first token."""
    tokens: list[int]
    """Prompt and output as far as the executor has sampled it."""
    table: list[int] = field(default_factory=list)
    computed: int = 0
    failed: bool = False
    """Reported once; rows of it that were planned meanwhile are passed over."""
    ended: bool = False
    """Its frontend was told that it ended: a plan that names it is wrong."""
    service_s: float = 0.0
    """Seconds of the steps it took part in, here and on the executors before."""


@dataclass(slots=True)
class Pending:
    """A plan that was executed and whose result the core has not got."""

    handles: list[CallHandle]
    samplers: list[CallHandle]
    """Rows that sampled a token."""
    result: StepCompleted
    busy_s: float
    """Virtual seconds that the executor was at it, copies included."""


@dataclass(frozen=True, slots=True)
class StepCost:
    """Virtual seconds of a step."""

    fixed_s: float
    token_s: float
    block_copy_s: float


@dataclass(slots=True)
class Work:
    """What an executor has done, for the summary. Counts."""

    steps: int = 0
    call_steps: int = 0
    computed_tokens: int = 0
    blocks_swapped_out: int = 0
    blocks_swapped_in: int = 0
    released: int = 0


class SimulatedExecutor:
    """One registration of an executor: a memory, the calls it knows, results under way."""

    def __init__(self, spec: ExecutorSpec, *, cost: StepCost, work: Work) -> None:
        self.spec = spec
        self.calls: dict[CallHandle, HeldCall] = {}
        self.pending: deque[Pending] = deque()
        """Oldest first."""
        self.failing: dict[CallId, str] = {}
        """Calls that fail in their next row, and why."""
        self.busy_until_s = 0.0
        self.draining = False
        self._cost = cost
        self._work = work
        self._memory = BlockMemory(
            block_size=spec.block_size,
            num_blocks=spec.num_blocks,
            host_blocks=spec.host_blocks,
        )
        self._last_handle = 0
        self._last_step = 0
        self._last_batch: set[CallHandle] = set()

    # ── calls ───────────────────────────────────────────────────────────────────────────────────────

    def announce(self, effect: AnnounceCall) -> HeldCall:
        """Learns of a call.

        Raises: Broken when its handle is not a new one.
        """
        require(effect.handle > self._last_handle, f"handle {effect.handle} is not a new one")
        self._last_handle = effect.handle
        begin = start_state(effect.call, self.spec.model_fingerprint)
        tokens = [*effect.call.prompt_token_ids, *effect.output_token_ids]
        held = self.calls[effect.handle] = HeldCall(effect.call, begin, tokens)
        return held

    def had(self, handle: CallHandle) -> bool:
        """Whether `handle` ever named a call here."""
        return 0 < handle <= self._last_handle

    # ── steps ───────────────────────────────────────────────────────────────────────────────────────

    def execute(self, plan: Plan) -> Pending:
        """Executes a plan; its result is the last of `pending` then.

        Raises: Broken when it cannot be obeyed.
        """
        require(plan.step == self._last_step + 1, f"step {plan.step} came after step {self._last_step}")
        require(len(self.pending) < self.spec.max_plans_in_flight, "a plan too many in flight")
        self._last_step = plan.step
        swapped_out = self._memory.swap_out(plan.swap_out)
        swapped_in = self._memory.swap_in(plan.swap_in)
        handles = [int(handle) for handle in plan.handles]
        tokens = self._check_rows(plan, handles)
        copied = swapped_out + swapped_in
        require(bool(handles or copied or len(plan.released)), "an empty plan")
        result = self._run_rows(plan, [CallHandle(handle) for handle in handles], tokens, copied)
        for released in map(CallHandle, map(int, plan.released)):
            require(released in self.calls, f"call {released} is released and unknown")
            del self.calls[released]
        self._count(plan, tokens, swapped_out, swapped_in)
        self._last_batch = set(result.handles)
        self.pending.append(result)
        return result

    def _check_rows(self, plan: Plan, handles: list[int]) -> int:
        """Checks the columns of a plan and returns how many tokens it computes."""
        batch = set(handles)
        require(len(batch) == len(handles), "a call has two rows")
        require(len(handles) <= self.spec.max_num_seqs, "more rows than seats")
        joined = {row for row, handle in enumerate(handles) if handle not in self._last_batch}
        require(set(plan.joined) == joined, f"rows {sorted(plan.joined)} join instead of {sorted(joined)}")
        for column in (plan.chunks, plan.blocks):
            require(all(0 <= row < len(handles) for row in column), "a column names a row that is not there")
        require(all(count > 1 for count in plan.chunks.values()), "a chunk of less than two tokens")
        tokens = len(handles) - len(plan.chunks) + sum(plan.chunks.values())
        require(tokens <= self.spec.max_num_batched_tokens, f"{tokens} tokens are over the budget")
        return int(tokens)

    def _run_rows(self, plan: Plan, handles: list[CallHandle], tokens: int, copied: int) -> Pending:
        sampled: list[CallHandle] = []
        sampled_tokens: list[int] = []
        failures: dict[CallHandle, str] = {}
        chunks, blocks, joined, calls = plan.chunks, plan.blocks, plan.joined, self.calls
        for row, handle in enumerate(handles):
            call = calls.get(handle)
            if call is None or call.ended:
                raise Broken(f"the plan names call {handle}, which {'has ended' if call else 'is unknown'}")
            if call.failed:
                continue
            if row in blocks or row in joined:
                self._take_blocks(call, blocks.get(row, ()), joined.get(row))
            token = self._run(call, chunks.get(row, 1))
            if self.failing and call.spec.call_id in self.failing:
                call.failed = True
                failures[handle] = self.failing.pop(call.spec.call_id)
            elif token is not None:
                call.tokens.append(token)
                sampled.append(handle)
                sampled_tokens.append(token)
        step_s = self._cost.fixed_s + tokens * self._cost.token_s if handles else 0.0
        swap_s = self._cost.block_copy_s * copied
        result = StepCompleted(
            executor_id=self.spec.executor_id,
            step=plan.step,
            handles=sampled,
            tokens=sampled_tokens,
            step_s=step_s,
            failures=failures,
            swap_s=swap_s,
            swap_bytes=copied * self.spec.block_bytes,
        )
        return Pending(handles, sampled, result, step_s + swap_s)

    def _take_blocks(self, call: HeldCall, blocks: Sequence[int], joined_at: int | None) -> None:
        new = [int(block) for block in blocks]
        if joined_at is None:
            call.table += new
        else:
            call.table, call.computed = new, int(joined_at)
        for block in new:
            require(0 < block < self.spec.num_blocks, f"block {block} is not there")
        require(len(set(call.table)) == len(call.table), f"a block is twice in a table: {call.table}")

    def _run(self, call: HeldCall, count: int) -> int | None:
        start, end = call.computed, call.computed + count
        known = len(call.tokens)
        if end > known or end >= self.spec.max_model_len:
            raise Broken(f"tokens up to {end} are to be computed of {call.spec.call_id}, {known} are known")
        if end > len(call.table) * self.spec.block_size:
            raise Broken(f"{call.spec.call_id} has too few blocks for {end} tokens")
        state = self._memory.compute(call.begin, call.table, start, call.tokens[start:end])
        call.computed = end
        return token_after(state) if end == known else None

    def _count(self, plan: Plan, tokens: int, swapped_out: int, swapped_in: int) -> None:
        work = self._work
        work.steps += 1
        work.call_steps += len(plan.handles)
        work.computed_tokens += tokens
        work.blocks_swapped_out += swapped_out
        work.blocks_swapped_in += swapped_in
        work.released += len(plan.released)
