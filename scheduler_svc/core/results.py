"""Takes the result of a step in.

A result is checked as a whole before anything changes. Then, row by row: a row whose call has ended or moved
since the plan is discarded with its token; a row of a live call counts, also when the call was preempted
meanwhile. The prompt's full blocks become findable here: their tokens are certain now.
"""

from math import inf

from scheduler_svc.core import call_kv
from scheduler_svc.core.call import Call
from scheduler_svc.core.call_states import CallState
from scheduler_svc.core.counters import Counters
from scheduler_svc.core.effects import Effect, EmitTokens, FinishReason
from scheduler_svc.core.errors import ProtocolBroken
from scheduler_svc.core.events import StepCompleted
from scheduler_svc.core.executor import Executor
from scheduler_svc.core.ids import CallHandle, FrontendId, StreamHandle
from scheduler_svc.core.lifecycle import Lifecycle
from scheduler_svc.core.planned import PlannedRow, StepInFlight
from scheduler_svc.core.prices import PS_PER_S, Prices
from scheduler_svc.core.refusals import executor_failed

Ending = tuple[Call, FinishReason, int | None]


class TokenColumns:
    """One step's tokens, gathered by frontend."""

    def __init__(self) -> None:
        self._columns: dict[FrontendId, tuple[list[StreamHandle], list[int], dict[int, bytes]]] = {}

    def add(self, call: Call, token: int, payload: bytes | None) -> None:
        """Appends a token of a call."""
        handles, tokens, payloads = self._columns.setdefault(call.spec.frontend_id, ([], [], {}))
        if payload is not None:
            payloads[len(handles)] = payload
        handles.append(call.spec.stream_handle)
        tokens.append(token)

    def effects(self) -> list[EmitTokens]:
        """One effect a frontend."""
        return [
            EmitTokens(frontend_id=frontend_id, handles=handles, tokens=tokens, payloads=payloads)
            for frontend_id, (handles, tokens, payloads) in self._columns.items()
        ]


class ResultReader:
    """Applies results to calls, blocks and counters."""

    def __init__(self, lifecycle: Lifecycle, counters: Counters, outbox: list[Effect]) -> None:
        self._lifecycle = lifecycle
        self._counters = counters
        self._outbox = outbox

    def take(self, executor: Executor, result: StepCompleted, now: float) -> None:
        """Applies a result; effects: tokens, one a frontend, then the ends of calls.

        Raises: ProtocolBroken when it contradicts the plan; nothing was changed.
        """
        step = _check(executor, result)
        executor.in_flight.popleft()
        executor.steps_done += 1
        self._counters.steps += 1
        tokens = dict(zip(result.handles, result.tokens, strict=True))
        columns = TokenColumns()
        endings = self._apply_rows(executor, step, tokens, result, columns, now)
        learn_from(executor, step, result)
        self._outbox.extend(columns.effects())
        for call, reason, stop_token_id in endings:
            self._lifecycle.finish(call, now, reason, stop_token_id)
        for handle, message in result.failures.items():
            call_or_none = executor.by_handle.get(handle)
            if call_or_none is not None:
                self._lifecycle.fail(call_or_none, now, executor_failed(message))

    def _apply_rows(
        self,
        executor: Executor,
        step: StepInFlight,
        tokens: dict[CallHandle, int],
        result: StepCompleted,
        columns: TokenColumns,
        now: float,
    ) -> list[Ending]:
        endings: list[Ending] = []
        step_ps = round(result.step_s * PS_PER_S)
        for row in step.rows.values():
            if not executor.holds(row):
                continue
            token = tokens.get(row.handle)
            failed = row.handle in result.failures
            ending = self.apply_row(executor, row, now, token=token, failed=failed, step_ps=step_ps)
            if token is not None:
                columns.add(row.call, token, result.payloads.get(row.handle))
            if ending is not None:
                endings.append(ending)
        return endings

    def apply_row(
        self,
        executor: Executor,
        row: PlannedRow,
        now: float,
        *,
        token: int | None,
        failed: bool = False,
        step_ps: int,
    ) -> Ending | None:
        """Applies one row of a call that is still here.

        Args:
            token: What it sampled, if anything.
            step_ps: What the step took.

        Returns: how the call ends, if its token ends it; the caller ends it.
        """
        cost_ps = useful_cost_ps(row, executor.prices)
        self._settle_row(executor, row, failed=failed)
        self._lifecycle.charge(row.call, step_ps, cost_ps, now)
        if token is None:
            return None
        self._append(row.call, token)
        ending = stop_reason(row.call, token)
        return None if ending is None else (row.call, *ending)

    def _settle_row(self, executor: Executor, row: PlannedRow, *, failed: bool) -> None:
        """Books that a row's plan is done; its KV counts only while the call holds it."""
        call = row.call
        call.in_flight -= 1
        call.sampling -= row.samples
        if failed:
            return
        start, end, ever = row.start, row.start + row.count, call.computed_ever
        if start < ever:
            self._counters.recomputed_tokens += min(end, ever) - start
        if ever < end:
            call.computed_ever = end
        if call.state is CallState.RUNNING:
            call_kv.publish(executor, call, end)
            call.computed = end

    def _append(self, call: Call, token: int) -> None:
        call.tokens.append(token)
        call.program.tokens += 1
        self._counters.tokens += 1


def stop_reason(call: Call, token: int) -> tuple[FinishReason, int | None] | None:
    """How the newest token ends its call, if it does; the second value names a stop token of the request."""
    spec, output_len = call.spec, call.output_len
    if output_len >= spec.min_tokens:
        if token == spec.eos_token_id:
            return FinishReason.STOP, None
        if token in spec.stop_token_ids:
            return FinishReason.STOP, token
    if output_len >= spec.max_tokens:
        return FinishReason.LENGTH, None
    return None


def useful_cost_ps(row: PlannedRow, prices: Prices) -> int:
    """Modelled cost of the tokens of a row that advanced its call: what was computed before is not charged
    again. Ask before the row is settled."""
    end = row.start + row.count
    prompt_end = end - row.samples
    start = min(max(row.start, row.call.computed_ever), prompt_end)
    cost_ps = prices.prefill_ps(start, prompt_end)
    return cost_ps + prices.decode_ps(prompt_end, end) if row.samples else cost_ps


def learn_from(executor: Executor, step: StepInFlight, result: StepCompleted) -> None:
    """Tells the executor's cost model how long the step took."""
    executor.costs.observe(step.features, result.step_s)
    if result.swap_bytes:
        executor.costs.observe_swap(result.swap_bytes, result.swap_s)
    if executor.costs.prices() is not executor.prices:
        executor.reprice()


def _check(executor: Executor, result: StepCompleted) -> StepInFlight:
    """The plan that `result` answers.

    Raises: ProtocolBroken.
    """
    if not executor.in_flight or executor.in_flight[0].step != result.step:
        due = executor.in_flight[0].step if executor.in_flight else None
        raise ProtocolBroken(f"result of step {result.step} came, step {due} is due")
    step = executor.in_flight[0]
    if len(result.handles) != len(result.tokens):
        raise ProtocolBroken(f"{len(result.handles)} handles came with {len(result.tokens)} tokens")
    if not (0 <= result.step_s < inf and 0 <= result.swap_s < inf and result.swap_bytes >= 0):
        took = f"{result.step_s} seconds, {result.swap_bytes} bytes copied in {result.swap_s} seconds"
        raise ProtocolBroken(f"step {result.step} took {took}")
    _check_handles(executor, step, result)
    vocab_size = executor.spec.vocab_size
    if result.tokens and (min(result.tokens) < 0 or (vocab_size and max(result.tokens) >= vocab_size)):
        raise ProtocolBroken(f"step {result.step} has a token outside 0..{vocab_size - 1}")
    return step


def _check_handles(executor: Executor, step: StepInFlight, result: StepCompleted) -> None:
    sampled = set(result.handles)
    if len(sampled) != len(result.handles):
        raise ProtocolBroken(f"step {step.step} has two tokens of one call")
    for handle in result.handles:
        if handle not in step.rows or not step.rows[handle].samples:
            raise ProtocolBroken(f"step {step.step} has a token of call {handle} that was not asked for")
    for handle in result.failures:
        if not executor.was_given(handle):
            raise ProtocolBroken(f"step {step.step} has a failure of unknown call {handle}")
    for row in step.rows.values():
        answered = row.handle in sampled or row.handle in result.failures
        if row.samples and not answered and executor.holds(row):
            raise ProtocolBroken(f"step {step.step} lacks the token of call {row.handle}")
