"""Schedulers that are broken on purpose: `python -m tests.integration.broken_scheduler`.

`BROKEN` in the environment says how; the contract tests must notice either.

- `recomputation`: a preempted call comes back with other blocks than those that hold its KV, and the plan
  claims that they do.
- `swap_in`: what a preempted call finds on the host is not copied back.
"""

import os
import sys
from collections.abc import Sequence

from scheduler_svc.__main__ import main
from scheduler_svc.core import call_kv, drafting
from scheduler_svc.core.call import Call
from scheduler_svc.core.executor import Executor
from scheduler_svc.core.ids import BlockId
from scheduler_svc.core.kv import Found, KvCache

take_back = call_kv.take_back
drain_swaps = KvCache.drain_swaps
Pairs = tuple[tuple[BlockId, BlockId], ...]


def take_back_nothing(executor: Executor, call: Call, found: Found) -> Sequence[BlockId]:
    """Gives a preempted call other blocks than those with its KV."""
    kept = call.kept
    table = take_back(executor, call, found)
    if kept is None or executor.kv.available < len(table):
        return table
    fresh = executor.kv.take(len(table))
    executor.kv.give_back(table, call.block_hashes[: min(len(table), kept.certain)], None)
    return fresh


def drain_swaps_out_only(self: KvCache) -> tuple[Pairs, Pairs]:
    """Leaves the copies back to the device out."""
    swap_out, _ = drain_swaps(self)
    return swap_out, ()


if __name__ == "__main__":
    match os.environ["BROKEN"]:
        case "recomputation":
            drafting.call_kv.take_back = take_back_nothing  # type: ignore[assignment]
        case "swap_in":
            KvCache.drain_swaps = drain_swaps_out_only  # type: ignore[method-assign]
        case other:
            sys.exit(f"BROKEN={other} is not known")
    sys.exit(main())
