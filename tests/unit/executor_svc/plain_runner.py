"""`executor_svc.simulated_runner.SimulatedRunner` written without columns: the oracle of the fast one."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from executor_svc.runner import AnnouncedCall, PlanViolation, StepPlan, StepResult
from executor_svc.simulated_runner import SimulatedConfig
from executor_svc.simulated_tokens import extend_prefix
from tests.unit.executor_svc.plain_ledger import PlainLedger


@dataclass(slots=True)
class _Call:
    """A known call. Invariant: len(hashes) == tokens known == prompt + output."""

    hashes: list[int]
    """Hash of the prefix that ends at each position."""
    failure: str = ""
    """Why it cannot run; empty when it can."""
    failure_reported: bool = False
    computed: int = 0
    table: list[int] = field(default_factory=list)
    """Blocks of the current batch's row; empty while not in the batch."""


class PlainRunner:
    """What `SimulatedRunner` must equal, one row after the other."""

    def __init__(self, config: SimulatedConfig) -> None:
        self._config = config
        self.reset()

    def announce(self, call: AnnouncedCall) -> None:
        """Takes a call in; see `Runner.announce`.

        Raises: PlanViolation when the handle is in use.
        """
        if call.handle in self._calls:
            raise PlanViolation(f"handle {call.handle} is announced twice")
        known = _Call(hashes=[])
        for tokens in (call.prompt_token_ids, call.output_token_ids):
            if tokens and not 0 <= min(tokens) <= max(tokens) < self._config.tokens.vocab_size:
                known.failure = f"a token id is not in 0..{self._config.tokens.vocab_size - 1}"
            extend_prefix(known.hashes, tokens)
        self._calls[call.handle] = known

    def execute(self, plan: StepPlan) -> StepResult:
        """Executes a step; takes no time.

        Raises: PlanViolation when the plan contradicts what calls and blocks hold.
        """
        rows = [self._call(handle) for handle in plan.handles]
        self._check_limits(plan)
        self._leave(plan)
        swapped_blocks = self._swap(plan)
        self._enter(plan, rows)
        step_s = self._price(plan, rows)
        return self._compute(plan, rows, step_s, swapped_blocks)

    def reset(self) -> None:
        """Forgets all calls and blocks."""
        config = self._config
        self._calls: dict[int, _Call] = {}
        self._batch: Sequence[int] = ()
        self._kv = PlainLedger(
            block_size=config.block_size, num_blocks=config.num_blocks, host_blocks=config.host_blocks
        )

    def _call(self, handle: int) -> _Call:
        try:
            return self._calls[handle]
        except KeyError:
            raise PlanViolation(f"handle {handle} is not known") from None

    def _check_limits(self, plan: StepPlan) -> None:
        config = self._config
        if len(plan.handles) > config.max_num_seqs:
            raise PlanViolation(f"{len(plan.handles)} rows, max_num_seqs is {config.max_num_seqs}")
        total = len(plan.handles) - len(plan.chunks) + sum(plan.chunks.values())
        if total > config.max_num_batched_tokens:
            raise PlanViolation(f"{total} tokens, max_num_batched_tokens is {config.max_num_batched_tokens}")

    def _leave(self, plan: StepPlan) -> None:
        """Rows of the last batch that are not in this one leave; released calls are forgotten."""
        if plan.handles != self._batch:
            for handle in set(self._batch).difference(plan.handles):
                call = self._calls[handle]
                self._kv.leave(call.table)
                call.table = []
        for handle in plan.released:
            self._call(handle)
            if handle in plan.handles:
                raise PlanViolation(f"handle {handle} is released while it is a row")
            del self._calls[handle]

    def _swap(self, plan: StepPlan) -> int:
        for device_block, host_block in plan.swap_out:
            self._kv.swap_out(device_block, host_block)
        for host_block, device_block in plan.swap_in:
            self._kv.swap_in(host_block, device_block)
        return len(plan.swap_out) + len(plan.swap_in)

    def _enter(self, plan: StepPlan, rows: Sequence[_Call]) -> None:
        """Rows join with their tables, others grow; all users of blocks are known afterwards."""
        self._check_joined(plan)
        for row, blocks in plan.blocks.items():
            self._kv.use(blocks)
            rows[row].table.extend(blocks)
        for row, computed in plan.joined.items():
            call = rows[row]
            if computed >= len(call.hashes):
                raise PlanViolation(f"row {row}: {computed} tokens computed, the call has {len(call.hashes)}")
            if computed > len(call.table) * self._config.block_size:
                raise PlanViolation(
                    f"row {row}: {computed} computed tokens exceed its {len(call.table)} blocks"
                )
            self._kv.check_holds(call.table, call.hashes, computed)
            call.computed = computed
        self._batch = plan.handles

    def _check_joined(self, plan: StepPlan) -> None:
        """Rows that join are exactly those that were not in the previous batch."""
        if not plan.joined and plan.handles == self._batch:
            return
        before = set(self._batch)
        for row, handle in enumerate(plan.handles):
            if (row in plan.joined) == (handle in before):
                was = "was already" if handle in before else "was not"
                raise PlanViolation(f"row {row} (handle {handle}) {was} in the previous batch")

    def _price(self, plan: StepPlan, rows: Sequence[_Call]) -> float:
        """A row of one token that continues a computed context counts as a decode row."""
        decodes = []
        prefills = []
        for row, call in enumerate(rows):
            count = plan.chunks.get(row, 1)
            if count == 1 and call.computed:
                decodes.append(call.computed + 1)
            else:
                prefills.append((call.computed, count))
        return self._config.cost.step_s(decode_contexts=decodes, prefills=prefills)

    def _compute(
        self, plan: StepPlan, rows: Sequence[_Call], step_s: float, swapped_blocks: int
    ) -> StepResult:
        handles: list[int] = []
        tokens: list[int] = []
        failures: dict[int, str] = {}
        for row, (handle, call) in enumerate(zip(plan.handles, rows, strict=True)):
            if call.failure:
                if not call.failure_reported:
                    failures[handle] = call.failure
                    call.failure_reported = True
                continue
            token = self._compute_row(row, call, plan.chunks.get(row, 1))
            if token is not None:
                handles.append(handle)
                tokens.append(token)
        swap_bytes = swapped_blocks * self._config.block_size * self._config.cost.kv_bytes_per_token
        return StepResult(
            step=plan.step,
            handles=handles,
            tokens=tokens,
            step_s=step_s,
            failures=failures,
            swap_s=self._config.cost.swap_s(swap_bytes),
            swap_bytes=swap_bytes,
        )

    def _compute_row(self, row: int, call: _Call, count: int) -> int | None:
        """Computes `count` tokens of a row; returns the sampled token when none is left to compute."""
        end = call.computed + count
        if end > len(call.hashes):
            raise PlanViolation(f"row {row}: plans {end} computed tokens, the call has {len(call.hashes)}")
        if end > self._config.max_model_len:
            raise PlanViolation(f"row {row}: {end} tokens, max_model_len is {self._config.max_model_len}")
        self._kv.write(call.table, call.hashes, call.computed, end)
        call.computed = end
        if end < len(call.hashes):
            return None
        token = self._config.tokens.after(call.hashes[-1])
        extend_prefix(call.hashes, (token,))
        return token
