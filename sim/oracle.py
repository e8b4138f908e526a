"""What must hold when an episode is over: everything ended, nothing is held, the books add up."""

from scheduler_svc.core.invariants import check
from sim.broken import require
from sim.traffic import Traffic
from sim.world import World


def check_end(world: World, traffic: Traffic) -> None:
    """Checks a world in which nothing is left to do.

    Raises: Broken; AssertionError from the invariants.
    """
    check(world.core)
    _check_calls(world)
    _check_counters(world)
    traffic.check_books()
    _check_blocks(world)
    _check_forgetting(world)


def _check_calls(world: World) -> None:
    for record in world.ledger.records.values():
        accepted, refused = record.accepted, record.refused is not None
        require(accepted != refused, f"{record.spec.call_id} was neither taken nor refused")
        require(refused or record.end is not None, f"{record.spec.call_id} never ended")


def _check_counters(world: World) -> None:
    statistics = world.core.statistics()
    accepted = [record for record in world.ledger.records.values() if record.accepted]
    ended = statistics.calls_finished + statistics.calls_cancelled + statistics.calls_failed
    require(statistics.live_calls == 0, f"{statistics.live_calls} calls live on")
    require(statistics.calls_submitted == ended == len(accepted), "calls do not add up")
    require(statistics.tokens == world.ledger.tokens, "tokens do not add up")
    work = world.tally.work
    swapped = (
        work.blocks_swapped_out - world.swapped_before[0],
        work.blocks_swapped_in - world.swapped_before[1],
    )
    told = (statistics.swapped_out_blocks, statistics.swapped_in_blocks)
    require(told == swapped, f"{told} blocks were swapped out and in by the books, {swapped} by executors")
    failed = sum(record.end is not None and record.end.error is not None for record in accepted)
    require(statistics.calls_failed == failed, "failures do not add up")
    preemptions = sum(record.end.preemptions for record in accepted if record.end is not None)
    require(statistics.preemptions == preemptions, "preemptions do not add up")


def _check_blocks(world: World) -> None:
    for executor in world.core.fleet:
        name = executor.executor_id
        require(executor.kv.held == 0, f"{name}: {executor.kv.held} blocks are held by nobody")
        require(not executor.calls and not executor.by_handle, f"{name}: calls are left")
        require(not executor.in_flight, f"{name}: a plan is still in flight")
        require(executor.kv.available == executor.spec.num_blocks - 1, f"{name}: blocks are lost")
    for attached in world.attached.values():
        name = attached.spec.executor_id
        require(not attached.calls, f"{name} was not told to forget {len(attached.calls)} calls")


def _check_forgetting(world: World) -> None:
    """Acknowledged calls are forgotten, idle programs end."""
    for record in world.ledger.records.values():
        if record.accepted:
            world.acknowledge(record)
            require(record.spec.call_id not in world.core.registry, "an acknowledged call is kept")
    world.agenda.now += world.core.config.idle_timeout_s + 1.0
    world.tick()
    require(world.core.statistics().open_programs == 0, "an idle program stays open")
    check(world.core)
