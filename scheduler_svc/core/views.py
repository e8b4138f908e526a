"""Makes the frozen snapshots that the core shows. Reads, never changes."""

from collections.abc import Iterable
from dataclasses import asdict, replace

from scheduler_svc.core.call import Call
from scheduler_svc.core.call_registry import FrontendCalls
from scheduler_svc.core.call_states import CallState
from scheduler_svc.core.counters import Counters
from scheduler_svc.core.executor import Executor
from scheduler_svc.core.fleet import Fleet
from scheduler_svc.core.process_table import Program
from scheduler_svc.core.snapshots import (
    EngineSnapshot,
    ExecutorSnapshot,
    ModelSnapshot,
    ProgramSnapshot,
    ProgramState,
    StatisticsSnapshot,
)


def program_snapshot(program: Program, fleet: Fleet, now: float, *, entry_level: int) -> ProgramSnapshot:
    """A row of the process table.

    Args:
        entry_level: The level that the program's next call would get.
    """
    completed_s = program.last_completion_s
    return ProgramSnapshot(
        program_id=program.program_id,
        tenant=program.tenant,
        session_key=program.session_key,
        class_name=program.class_name,
        state=_state_of(program),
        live_calls=len(program.live_calls),
        finished_calls=program.finished_calls,
        tokens=program.tokens,
        attained_service_s=program.service_s,
        waiting_s=program.waiting_s(now),
        level=min((call.level for call in program.live_calls.values()), default=entry_level),
        age_s=now - program.opened_s,
        response_s=0.0 if completed_s is None else completed_s - program.opened_s,
        executor_ids=tuple(program.executor_ids),
        prompt_tokens=program.prompt_tokens,
        preemptions=program.preemptions,
        attained_cost_s=program.cost_s,
        kv_blocks=sum(executor.kv.footprint(program.key) for executor in fleet),
    )


def _state_of(program: Program) -> ProgramState:
    if program.ended is not None:
        return program.ended
    if not program.live_calls:
        return ProgramState.IDLE
    runs = any(call.state is CallState.RUNNING for call in program.live_calls.values())
    return ProgramState.RUNNING if runs else ProgramState.WAITING


def executor_snapshot(executor: Executor) -> ExecutorSnapshot:
    """An attached executor."""
    spec = executor.spec
    running = executor.queue.running_count
    return ExecutorSnapshot(
        executor_id=spec.executor_id,
        epoch=spec.epoch,
        model=spec.model,
        runner=spec.runner,
        device=spec.device,
        running=running,
        waiting=len(executor.calls) - running,
        num_blocks=spec.num_blocks,
        free_blocks=executor.kv.plain,
        steps=executor.steps_done,
        draining=executor.draining,
        simulated=spec.simulated,
        host_blocks=executor.kv.host_size,
        free_host_blocks=executor.kv.host_plain,
    )


def model_snapshots(fleet: Fleet) -> list[ModelSnapshot]:
    """Models with an executor, by name."""
    names = sorted({executor.spec.model for executor in fleet})
    return [_model_snapshot(name, fleet) for name in names]


def _model_snapshot(name: str, fleet: Fleet) -> ModelSnapshot:
    specs = fleet.specs_of(name)
    formats = set(specs[0].params_formats).intersection(*(spec.params_formats for spec in specs))
    return ModelSnapshot(
        model=name,
        tokenizer_fingerprint=specs[0].tokenizer_fingerprint,
        max_model_len=min(spec.max_model_len for spec in specs),
        block_size=min(spec.block_size for spec in specs),
        num_blocks=sum(spec.num_blocks for spec in specs),
        executors=len(specs),
        structured_output_backend=specs[0].structured_output_backend,
        reasoning_parser=specs[0].reasoning_parser,
        params_formats=tuple(sorted(formats)),
        max_call_tokens=min(spec.max_call_tokens for spec in specs),
        simulated=all(spec.simulated for spec in specs),
    )


def statistics_snapshot(
    counters: Counters, fleet: Fleet, *, policy: str, live_calls: int, open_programs: int
) -> StatisticsSnapshot:
    """Counters and gauges."""
    total = replace(counters)
    for executor in fleet:
        total.add_kv(executor.kv)
    return StatisticsSnapshot(
        **asdict(total),
        policy=policy,
        live_calls=live_calls,
        open_programs=open_programs,
        waiting_programs=sum(len(executor.gate) for executor in fleet),
    )


def live_calls_by_level(fleet: Fleet, levels: int) -> list[int]:
    """Live calls per level, level 0 first. Shape: (levels,). Only calls outside of queues (in preparation, or
    without an executor) are visited one by one."""
    counts = [0] * levels
    for executor in fleet:
        counts = [sum(pair) for pair in zip(counts, executor.queue.level_counts(levels), strict=True)]
        if len(executor.queue) < len(executor.calls):
            _count([call for call in executor.calls.values() if call.queue_key is None], counts)
    _count(fleet.unplaced.values(), counts)
    return counts


def _count(calls: Iterable[Call], counts: list[int]) -> None:
    for call in calls:
        counts[call.level] += 1


def engine_snapshot(frontend: FrontendCalls, fleet: Fleet) -> EngineSnapshot:
    """Gauges for one frontend."""
    blocks = held = 0
    for executor in fleet:
        blocks += executor.kv.size
        held += executor.kv.held
    return EngineSnapshot(
        running=frontend.running,
        waiting=len(frontend.live) - frontend.running,
        kv_usage=held / blocks if blocks else 0.0,
    )
