"""A scheduler that is broken on purpose: `python -m tests.integration.broken_scheduler`.

A preempted call comes back with blocks of its own, but the plan claims that all its tokens except the newest
are already computed in them: the recomputation is left out. The contract test must notice.
"""

import sys

from scheduler_svc.__main__ import main
from scheduler_svc.core.call import Call
from scheduler_svc.core.planner import Draft, Planner

admit = Planner._admit


def admit_without_recomputation(self: Planner, draft: Draft, call: Call, now: float) -> bool:
    """Like `Planner._admit`, but a call that was preempted computes only its newest token."""
    if not call.preemptions:
        return admit(self, draft, call, now)
    if not draft.admitting or draft.prefill_tokens_left == 0:
        return False
    blocks = -(-call.known // draft.executor.spec.block_size)
    if not self._make_room(draft, call, now, blocks=blocks, seats=1):
        return False
    self._lifecycle.start(call, now, cached_tokens=0)
    call.computed = call.planned = call.known - 1
    draft.prefill_tokens_left -= 1
    self._add_row(draft, call, 1, draft.executor.pool.take(blocks))
    return True


if __name__ == "__main__":
    Planner._admit = admit_without_recomputation  # type: ignore[method-assign]
    sys.exit(main())
