"""What must hold between two events, checked from scratch. Slow on purpose: for tests and simulation."""

from collections import Counter
from itertools import chain

from scheduler_svc.core.call import Call
from scheduler_svc.core.call_states import CallState
from scheduler_svc.core.core import Core
from scheduler_svc.core.executor import Executor
from scheduler_svc.core.lifecycle import bring_up_to_date


def check(core: Core) -> None:
    """Checks every invariant of the core.

    Raises: AssertionError that names what broke.
    """
    bring_up_to_date(core.registry.all_live())
    core.table.check()
    _check_registry(core)
    _check_level_counts(core)
    for executor in core.fleet:
        _check_executor(executor)
    for call in core.registry.all_live():
        _check_call(core, call)


def _check_registry(core: Core) -> None:
    live = {call.spec.call_id: call for call in core.registry.all_live()}
    assert len(live) == core.registry.live_count
    of_programs = chain.from_iterable(program.live_calls for program in core.table.all())
    assert sorted(of_programs) == sorted(live), "programs and registry know different live calls"
    placed = [*chain.from_iterable(executor.calls for executor in core.fleet), *core.fleet.unplaced]
    assert sorted(placed) == sorted(live), "a live call is in no place or in two"


def _check_level_counts(core: Core) -> None:
    levels = Counter(call.level for call in core.registry.all_live())
    assert core.live_calls_by_level() == [levels[level] for level in range(len(core.policy.levels))]


def _check_executor(executor: Executor) -> None:
    spec = executor.spec
    executor.kv.check(call.blocks for call in executor.calls.values())
    assert executor.kv.held + executor.kv.available == spec.num_blocks - 1
    assert not executor.kv.swaps_pending or not executor.can_take_plan, "copies that no plan carries"
    assert executor.queue.running_count <= spec.max_num_seqs, "more calls run than there are seats"
    assert len(executor.in_flight) <= spec.max_plans_in_flight
    assert len({call.handle for call in executor.by_handle.values()}) == len(executor.by_handle)
    ordered = list(executor.queue.walk())
    assert len(ordered) == len(executor.queue) == len(set(ordered)), "a call is queued twice"
    assert [call.level for call in ordered] == sorted(call.level for call in ordered)
    for call in ordered:
        key = (call.level, *executor.queue.policy.tie(call, call.enqueued))
        assert call.queue_key == key, f"{call.spec.call_id} stands where the policy does not say"
    in_flight = [executor.rows_of(step) for step in executor.in_flight]
    for batch in in_flight:
        assert len(batch) <= spec.max_num_seqs
        assert sum(row.count for row in batch.values()) <= spec.max_num_batched_tokens
    for call in executor.calls.values():
        rows = [batch[call.handle] for batch in in_flight if call.handle in batch]
        assert call.in_flight == len(rows), f"{call.spec.call_id}: rows in flight"
        assert call.sampling == sum(row.samples for row in rows)
        if call.state is CallState.RUNNING:
            ends = [call.computed, *(row.start + row.count for row in rows)]
            starts = [*(row.start for row in rows), call.planned]
            assert starts == ends, f"{call.spec.call_id}: its rows in flight do not join up"


def _check_call(core: Core, call: Call) -> None:
    name = call.spec.call_id
    assert call.is_live
    assert 0 <= call.computed <= call.planned <= call.known, name
    assert 0 <= call.level <= core.policy.levels.last
    assert call.output_len <= call.spec.max_tokens, f"{name} has a token too many"
    assert call.known - call.prompt_len <= call.spec.max_tokens, f"{name} plans a token too many"
    assert (call.waiting_since_s is None) == (call.state is CallState.RUNNING), name
    assert (name in core.fleet.unplaced) == (call.executor is None)
    if call.executor is None:
        assert (call.state, call.blocks, call.handle) == (CallState.QUEUED, [], None), name
        return
    places = (call in call.executor.queue, call in call.executor.gate, call.state is CallState.PREPARING)
    assert sum(places) == 1, f"{name} is in no place or in two"
    block_size = call.executor.spec.block_size
    blocks = -(-call.planned // block_size) if call.state is CallState.RUNNING else 0
    assert len(call.blocks) == blocks, f"{name} holds {len(call.blocks)} blocks instead of {blocks}"
    assert call.state is CallState.RUNNING or call.planned == 0, f"{name} has KV and no blocks"
    if call.kept is not None:
        assert call.state is CallState.QUEUED, f"{name} left KV behind and holds it"
        assert 0 < call.kept.tokens <= call.known, f"{name} left KV behind of tokens that it does not have"
