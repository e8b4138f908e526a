"""The multi-level queue of one executor.

Every call placed on the executor that may be planned is here, waiting or running. The order is: level, then
running before waiting (a running call is never preempted for one of its own level), then the policy's tie-
break. Waiting and running calls are kept in two ordered maps, so starting, stopping, demoting or adding a
call costs O(log n), and a walk costs what it visits, however many calls wait.

Source: Autellix Alg. 1, with these traps resolved: no demotion below the last level, no promotion from the
first; promotion sets level and quantum; service at promotion is remembered next to the lifetime counters, not
zeroed in them; a call or program without any service does not divide by zero.
"""

from collections.abc import Iterator
from heapq import merge
from itertools import pairwise

from sortedcontainers import SortedDict

from scheduler_svc.core.call import Call
from scheduler_svc.core.call_states import CallState
from scheduler_svc.core.policies import Policy

QueueKey = tuple[int, ...]
"""(level, *tie-break of the policy)"""


class MultilevelQueue:
    """Calls of one executor in the order in which they are served."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._waiting: SortedDict[QueueKey, Call] = SortedDict()
        self._running: SortedDict[QueueKey, Call] = SortedDict()

    def __len__(self) -> int:
        return len(self._waiting) + len(self._running)

    def __contains__(self, call: Call) -> bool:
        key = call.queue_key
        return key is not None and (self._waiting.get(key) is call or self._running.get(key) is call)

    @property
    def running_count(self) -> int:
        return len(self._running)

    @property
    def waiting_count(self) -> int:
        return len(self._waiting)

    def level_counts(self, levels: int) -> list[int]:
        """Calls per level, for levels 0..levels-1, without a walk: O(levels * log n). Shape: (levels,)."""
        below = [
            self._waiting.bisect_left((level,)) + self._running.bisect_left((level,))
            for level in range(levels + 1)
        ]
        return [after - before for before, after in pairwise(below)]

    def running(self) -> Iterator[Call]:
        """Running calls in order."""
        return iter(self._running.values())

    def add(self, call: Call) -> None:
        """Takes in a call that is in no queue; its state tells where."""
        key = (call.level, *self._policy.tie(call))
        self._side(call)[key] = call
        call.queue_key = key

    def discard(self, call: Call) -> None:
        """Takes a call out, if it is here."""
        key = call.queue_key
        for side in (self._waiting, self._running):
            if key is not None and side.get(key) is call:
                del side[key]
                call.queue_key = None

    def refile(self, call: Call) -> None:
        """Puts a call where its level and state now say."""
        self.discard(call)
        self.add(call)

    def walk(self) -> Iterator[Call]:
        """All calls in order, lazily. Do not change the queue during a walk."""
        running = (((key[0], 0), call) for key, call in self._running.items())
        waiting = (((key[0], 1), call) for key, call in self._waiting.items())
        return (call for _, call in merge(running, waiting, key=lambda entry: entry[0]))

    def running_after(self, call: Call) -> Iterator[Call]:
        """Running calls that come after `call`, the last of all first: those it may displace."""
        for key in reversed(self._running):
            if not self._displaces(call, key):
                return
            yield self._running[key]

    def _displaces(self, call: Call, other_key: QueueKey) -> bool:
        key = call.queue_key
        assert key is not None, "the call is in no queue"
        if call.state is CallState.RUNNING:
            return key < other_key
        return key[0] < other_key[0]

    def _side(self, call: Call) -> "SortedDict[QueueKey, Call]":
        return self._running if call.state is CallState.RUNNING else self._waiting


def charge_quantum(call: Call, service_s: float, policy: Policy) -> bool:
    """Charges service against the call's quantum and demotes it by one level when that is used up.

    Returns: whether the level changed (the caller refiles the call).
    """
    call.quantum_used_s += service_s
    levels = policy.levels
    if call.level == levels.last or call.quantum_used_s < levels.quanta_s[call.level]:
        return False
    call.level += 1
    call.quantum_used_s = 0.0
    return True


def promote(call: Call, now: float) -> None:
    """Moves a starving call to the first level with a fresh quantum (the caller refiles it)."""
    call.level = 0
    call.quantum_used_s = 0.0
    call.service_at_promotion_s = call.service_s
    call.waited_at_promotion_s = call.waiting_s(now)


def starves_in_s(call: Call, beta: float, now: float) -> float | None:
    """Seconds until a waiting call starves if nothing else happens; <= 0: it does now. None: it cannot.

    A call starves when (W_program + W_call) / (T_program + T_call) >= beta, W and T being waiting and service
    of the program's completed calls, and of this call since its last promotion. A call of the first level
    never starves.
    """
    if call.level == 0:
        return None
    waited_s = call.program.completed_waiting_s + call.waiting_s(now) - call.waited_at_promotion_s
    service_s = call.program.completed_service_s + call.service_s - call.service_at_promotion_s
    return beta * service_s - waited_s
