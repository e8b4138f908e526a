"""A runner without a model: obeys plans to the letter, takes a real device's time, makes up the tokens.

Theory of operation: for tests and benches of everything but the model. A step (1) lets rows leave and calls
be released, (2) copies swapped blocks, (3) lets rows join and grow, (4) computes each row's tokens into its
blocks, (5) samples for rows whose tokens are now all computed, and (6) waits until the cost model's time
has passed since it began, so that bookkeeping is not added to it. Every contradiction between a plan and
what calls and blocks really hold is a `PlanViolation`: a scheduler that passes here would not corrupt a
real KV cache. After a violation the state is undefined until `reset`.

Many of these live on a small machine, so a step costs what changes, not what runs: rows are columns (see
simulated_batch.py), the rows that compute one token are checked and advanced together, and only a row that
an event touches (it joins, leaves, grows, computes a chunk) is looked at by itself. When the common check
fails, the rows are computed again one by one, in order, which finds the culprit and says what is wrong.
"""

import time
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NoReturn, Protocol

import numpy as np

from executor_svc.cost_model import StepCost
from executor_svc.runner import AnnouncedCall, PlanViolation, RunnerInfo, StepPlan, StepResult
from executor_svc.simulated_batch import ALL, Batch, Selection, SimulatedCall
from executor_svc.simulated_kv import BlockLedger, all_of
from executor_svc.simulated_tokens import TokenRule, hash_prefixes

PARAMS_FORMATS = ("vllm-0.32.0/msgpack", "simulated")
"""Named at registration; params are not read, whatever their format."""


class StepClock(Protocol):
    """Passes the time of a step."""

    def now_s(self) -> float:
        """Monotonic seconds."""
        ...

    def wait_until(self, deadline_s: float) -> None:
        """Returns when `now_s()` has reached the deadline."""
        ...


class PreciseClock:
    """Sleeps most of the way and spins the rest: sleeping alone comes back up to 0.1 ms late."""

    SPIN_S = 150e-6

    def now_s(self) -> float:
        """Monotonic seconds."""
        return time.perf_counter()

    def wait_until(self, deadline_s: float) -> None:
        """Blocks the calling thread until the deadline."""
        while (left_s := deadline_s - time.perf_counter()) > 0:
            time.sleep(max(0.0, left_s - self.SPIN_S))


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedConfig:
    """What is simulated. Lengths in tokens."""

    model: str
    model_fingerprint: str
    tokenizer_fingerprint: str
    cost_name: str
    cost: StepCost
    tokens: TokenRule
    block_size: int = 16
    num_blocks: int = 4096
    """Device blocks, the null block included."""
    host_blocks: int = 0
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    max_model_len: int = 8192
    max_plans_in_flight: int = 2
    structured_output_backend: str = ""
    reasoning_parser: str = ""


@dataclass(frozen=True, slots=True)
class FinishedStep:
    """A `Pending` whose result is known."""

    value: StepResult

    def result(self) -> StepResult:
        """The result, at once."""
        return self.value


class SimulatedRunner:
    """Obeys plans without a model; see the module's docstring."""

    def __init__(self, config: SimulatedConfig, *, clock: StepClock | None = None) -> None:
        self._config = config
        self._block_bytes = config.block_size * config.cost.kv_bytes_per_token
        self._clock = clock or PreciseClock()
        self.reset()

    @property
    def info(self) -> RunnerInfo:
        """What is simulated, as registered."""
        config = self._config
        return RunnerInfo(
            model=config.model,
            model_fingerprint=config.model_fingerprint,
            tokenizer_fingerprint=config.tokenizer_fingerprint,
            runner=f"simulated ({config.cost_name})",
            simulated=True,
            block_size=config.block_size,
            num_blocks=config.num_blocks,
            host_blocks=config.host_blocks,
            block_bytes=self._block_bytes,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            max_model_len=config.max_model_len,
            vocab_size=config.tokens.vocab_size,
            max_plans_in_flight=config.max_plans_in_flight,
            params_formats=PARAMS_FORMATS,
            structured_output_backend=config.structured_output_backend,
            reasoning_parser=config.reasoning_parser,
            world_size=1,
            device="simulated",
            prefix_caching=True,
            dtype="none",
        )

    def announce(self, call: AnnouncedCall) -> None:
        """Takes a call in; see `Runner.announce`.

        Raises: PlanViolation when the handle is in use.
        """
        if call.handle in self._calls:
            raise PlanViolation(f"handle {call.handle} is announced twice")
        tokens = [*call.prompt_token_ids, *call.output_token_ids]
        vocab_size = self._config.tokens.vocab_size
        inside = not tokens or 0 <= min(tokens) <= max(tokens) < vocab_size
        failure = "" if inside else f"a token id is not in 0..{vocab_size - 1}"
        self._calls[call.handle] = SimulatedCall(hash_prefixes(tokens), failure)

    def prepare(self, handle: int) -> str:
        """Nothing to prepare: ready."""
        return ""

    def execute(self, plan: StepPlan) -> FinishedStep:
        """Executes a step and returns when its time has passed.

        Raises: PlanViolation when the plan contradicts what calls and blocks hold.
        """
        started_s = self._clock.now_s()
        regrouped = bool(plan.joined) or plan.handles != self._batch.handles
        if regrouped:
            self._check_known(plan.handles)
        self._check_limits(plan)
        leaving = self._leave(plan.handles) if regrouped else []
        self._release(plan)
        swapped_blocks = self._swap(plan)
        if regrouped:
            self._regroup(plan, leaving)
        self._grow(plan)
        step_s = self._step_s(plan)
        self._compute(plan.chunks)
        handles, tokens = self._sample(plan)
        swap_bytes = swapped_blocks * self._block_bytes
        result = StepResult(
            step=plan.step,
            handles=handles,
            tokens=tokens,
            step_s=step_s,
            failures=self._failures() if self._batch.has_failed else {},
            swap_s=self._config.cost.swap_s(swap_bytes),
            swap_bytes=swap_bytes,
        )
        self._clock.wait_until(started_s + result.step_s + result.swap_s)
        return FinishedStep(result)

    def reset(self) -> None:
        """Forgets all calls and blocks."""
        config = self._config
        self._calls: dict[int, SimulatedCall] = {}
        self._batch = Batch(
            seats=config.max_num_seqs, block_size=config.block_size, length_max=config.max_model_len
        )
        self._kv = BlockLedger(
            block_size=config.block_size, num_blocks=config.num_blocks, host_blocks=config.host_blocks
        )

    def close(self) -> None:
        """Nothing to free."""

    # ── before the forward pass ─────────────────────────────────────────────────────────────────────

    def _check_known(self, handles: Sequence[int]) -> None:
        for handle in handles:
            if handle not in self._calls:
                raise PlanViolation(f"handle {handle} is not known")

    def _check_limits(self, plan: StepPlan) -> None:
        config = self._config
        if len(plan.handles) > config.max_num_seqs:
            raise PlanViolation(f"{len(plan.handles)} rows, max_num_seqs is {config.max_num_seqs}")
        total = len(plan.handles) - len(plan.chunks) + sum(plan.chunks.values())
        if total > config.max_num_batched_tokens:
            raise PlanViolation(f"{total} tokens, max_num_batched_tokens is {config.max_num_batched_tokens}")

    def _leave(self, handles: Sequence[int]) -> list[int]:
        """Rows of the last batch that are not among `handles` leave; returns them."""
        leaving = self._batch.leaving(handles)
        for row in leaving:
            self._calls[self._batch.handles[row]].hashes = self._batch.hashes(row).copy()
            self._kv.leave(self._batch.table(row))
        return leaving

    def _release(self, plan: StepPlan) -> None:
        """Released calls are forgotten; none of them is a row."""
        for handle in plan.released:
            self._check_known((handle,))
            if handle in plan.handles:
                raise PlanViolation(f"handle {handle} is released while it is a row")
            del self._calls[handle]

    def _swap(self, plan: StepPlan) -> int:
        for device_block, host_block in plan.swap_out:
            self._kv.swap_out(device_block, host_block)
        for host_block, device_block in plan.swap_in:
            self._kv.swap_in(host_block, device_block)
        return len(plan.swap_out) + len(plan.swap_in)

    def _regroup(self, plan: StepPlan, leaving: Sequence[int]) -> None:
        """The batch is the plan's from now on. Rows that join are exactly those that were not in it."""
        entering = self._batch.entering(plan.handles)
        if plan.joined.keys() != set(entering):
            row = min(plan.joined.keys() ^ set(entering))
            was = "was already" if row in plan.joined else "was not"
            raise PlanViolation(f"row {row} (handle {plan.handles[row]}) {was} in the previous batch")
        self._batch.regroup(plan.handles, leaving, entering)

    def _grow(self, plan: StepPlan) -> None:
        """Rows join with their tables, others grow; all users of blocks are known before any is checked."""
        if plan.blocks:
            lists = list(plan.blocks.values())
            blocks = np.fromiter(chain.from_iterable(lists), np.intp)
            self._kv.use(blocks)
            self._batch.give_blocks(
                np.fromiter(plan.blocks, np.intp), np.fromiter(map(len, lists), np.intp), blocks
            )
        for row, computed in plan.joined.items():
            self._join(row, self._calls[plan.handles[row]], computed)

    def _join(self, row: int, call: SimulatedCall, computed: int) -> None:
        table = self._batch.table(row)
        if computed >= len(call.hashes):
            raise PlanViolation(f"row {row}: {computed} tokens computed, the call has {len(call.hashes)}")
        if computed > len(table) * self._config.block_size:
            raise PlanViolation(f"row {row}: {computed} computed tokens exceed its {len(table)} blocks")
        self._kv.check_holds(table, call.hashes, computed)
        self._batch.open(row, call, computed)

    # ── the forward pass ────────────────────────────────────────────────────────────────────────────

    def _step_s(self, plan: StepPlan) -> float:
        """A row of one token that continues a computed context counts as a decode row."""
        batch = self._batch
        prefills = []
        if plan.chunks or plan.joined or batch.has_failed:
            chunks = dict.fromkeys(np.flatnonzero(batch.computed == 0).tolist(), 1)
            chunks.update((row, count) for row, count in plan.chunks.items() if count != 1)
            prefills = [(int(batch.computed[row]), count) for row, count in sorted(chunks.items())]
        decode_rows = len(plan.handles) - len(prefills)
        return self._config.cost.mixed_step_s(
            decode_rows=decode_rows,
            context_tokens=batch.computed_sum - sum(before for before, _ in prefills) + decode_rows,
            prefills=prefills,
        )

    def _compute(self, chunks: Mapping[int, int]) -> None:
        """Computes the KV of each row's tokens, that of the decode rows together."""
        batch = self._batch
        if not batch.compute_each(self._decoding(chunks), self._kv):
            self._find_violation(chunks)
        for row, count in chunks.items():
            if not batch.failed[row]:
                self._compute_row(row, count)

    def _decoding(self, chunks: Mapping[int, int]) -> Selection:
        if not chunks and not self._batch.has_failed:
            return ALL
        decoding = self._batch.failed == 0
        decoding[list(chunks)] = False
        return np.flatnonzero(decoding)

    def _find_violation(self, chunks: Mapping[int, int]) -> NoReturn:
        """Computes row after row until the first that must not be."""
        for row in np.flatnonzero(self._batch.failed == 0).tolist():
            self._compute_row(row, chunks.get(row, 1))
        raise AssertionError("rows cannot be computed together, but one by one they can")

    def _compute_row(self, row: int, count: int) -> None:
        """Computes `count` tokens of one row."""
        batch = self._batch
        known = int(batch.known[row])
        start = int(batch.computed[row])
        end = start + count
        if end > known:
            raise PlanViolation(f"row {row}: plans {end} computed tokens, the call has {known}")
        if end > self._config.max_model_len:
            raise PlanViolation(f"row {row}: {end} tokens, max_model_len is {self._config.max_model_len}")
        self._kv.write(batch.table(row), batch.hashes(row), start, end)
        batch.computed_one(row, end)

    def _sample(self, plan: StepPlan) -> tuple[Sequence[int], Sequence[int]]:
        """The next token of every row whose tokens are all computed; returns handles and tokens."""
        batch = self._batch
        due = batch.sampling()
        rows: Selection = ALL
        handles = plan.handles
        if not all_of(due):
            rows = np.flatnonzero(due)
            handles = [handles[row] for row in rows.tolist()]
        return handles, array("i", batch.sample(rows, self._config.tokens).tobytes())

    def _failures(self) -> dict[int, str]:
        """Why calls of this batch cannot run, each told once."""
        failures = {}
        for row in np.flatnonzero(self._batch.failed).tolist():
            handle = self._batch.handles[row]
            call = self._calls[handle]
            if not call.failure_reported:
                failures[handle] = call.failure
                call.failure_reported = True
        return failures
