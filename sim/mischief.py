"""Results and answers that break the executor protocol: the core must close that executor and lose nothing.

Each kind makes the event from the result that is due, or has none to offer for it.
"""

from collections.abc import Callable
from dataclasses import replace

from scheduler_svc.core.events import CallPrepared, StepCompleted
from scheduler_svc.core.ids import CallHandle
from sim.executor import Pending, SimulatedExecutor
from sim.model import VOCAB_SIZE
from sim.world import Spoiled, World

Spoiler = Callable[[World, SimulatedExecutor, Pending], Spoiled | None]


def _wrong_step(_world: World, _executor: SimulatedExecutor, pending: Pending) -> StepCompleted:
    return replace(pending.result, step=pending.result.step + 1)


def _columns_differ(_world: World, _executor: SimulatedExecutor, pending: Pending) -> StepCompleted:
    return replace(pending.result, tokens=[*pending.result.tokens, 1])


def _token_missing(world: World, executor: SimulatedExecutor, pending: Pending) -> StepCompleted | None:
    """Only the token of a call that is still here is missed."""
    result = pending.result
    for index, handle in enumerate(result.handles):
        record = world.record_of(executor, handle)
        if record is not None and record.is_live:
            return replace(
                result,
                handles=[*result.handles[:index], *result.handles[index + 1 :]],
                tokens=[*result.tokens[:index], *result.tokens[index + 1 :]],
            )
    return None


def _token_twice(_world: World, _executor: SimulatedExecutor, pending: Pending) -> StepCompleted | None:
    result = pending.result
    if not result.handles:
        return None
    return replace(
        result, handles=[*result.handles, result.handles[0]], tokens=[*result.tokens, result.tokens[0]]
    )


def _token_unasked(_world: World, executor: SimulatedExecutor, pending: Pending) -> StepCompleted | None:
    """A token of a call that is not in the plan, or whose chunk does not reach its end."""
    result = pending.result
    sampled = set(result.handles)
    unasked = [handle for handle in executor.calls if handle not in sampled]
    failed = set(result.failures)
    unasked = [handle for handle in unasked if handle not in failed and not executor.calls[handle].failed]
    if not unasked:
        return None
    return replace(result, handles=[*result.handles, unasked[0]], tokens=[*result.tokens, 1])


def _token_out_of_range(_world: World, executor: SimulatedExecutor, pending: Pending) -> StepCompleted | None:
    result = pending.result
    if not result.handles or not executor.spec.vocab_size:
        return None
    return replace(result, tokens=[*result.tokens[:-1], VOCAB_SIZE])


def _bad_seconds(world: World, _executor: SimulatedExecutor, pending: Pending) -> StepCompleted:
    return replace(pending.result, step_s=world.random.choice((-1.0, float("inf"), float("nan"))))


def _failure_of_unknown(_world: World, _executor: SimulatedExecutor, pending: Pending) -> StepCompleted:
    return replace(pending.result, failures={CallHandle(10**6): "who?"})


def _prepared_unknown(_world: World, executor: SimulatedExecutor, _pending: Pending) -> CallPrepared:
    return CallPrepared(executor_id=executor.spec.executor_id, handle=CallHandle(10**6))


def _prepared_unasked(world: World, executor: SimulatedExecutor, pending: Pending) -> CallPrepared | None:
    for handle in pending.handles:
        record = world.record_of(executor, handle)
        if record is not None and record.is_live:
            return CallPrepared(executor_id=executor.spec.executor_id, handle=handle)
    return None


SPOILERS: dict[str, Spoiler] = {
    "wrong step": _wrong_step,
    "columns differ": _columns_differ,
    "token missing": _token_missing,
    "token twice": _token_twice,
    "token unasked": _token_unasked,
    "token out of range": _token_out_of_range,
    "bad seconds": _bad_seconds,
    "failure of unknown": _failure_of_unknown,
    "prepared unknown": _prepared_unknown,
    "prepared unasked": _prepared_unasked,
}
"""What is wrong -> how to make it."""
