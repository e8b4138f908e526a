"""The multi-level queue of one executor.

Every call placed on the executor that may be planned is here, waiting or running. The order is: level, then,
if the policy says so, running before waiting (a running call is never preempted for one of its own level),
then the policy's tie-break. Waiting and running calls are kept in two ordered maps (`lineup`), so starting,
stopping, demoting or adding a call costs O(log n), and a walk costs what it visits, however many calls wait.

A call that enters a level gets the next number of a count, for policies that go first in, first out; starting
and preempting it leave it in line.

Source: Autellix Alg. 1, with these traps resolved:

- no demotion below the last level, where calls take turns instead (first in, first out) or stay as they are;
- no promotion from the first level;
- promotion sets level, quantum and place in line;
- promotion remembers the counters as they were, next to the lifetime counters, instead of zeroing these:
  service that the program is charged for is never lost;
- what is waited and used since the promotion is counted of program and call alike: if only the call began
  anew, a call of a long program would wait beta times its program's service for every further quantum;
- steps that only recompute what was dropped use up no quantum: calls whose prompts take longer than it would
  else push each other out of memory for ever;
- a call or program without any service does not divide by zero: it starves at once, if it is not in Q1;
- a call that finishes leaves its queue whatever becomes of its quantum: the finished branch does not fall
  through;
- demotions of a step come before the arrivals that its results cause, because events are handled in that
  order.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from heapq import merge
from itertools import pairwise

from scheduler_svc.core.call import Call
from scheduler_svc.core.call_states import CallState
from scheduler_svc.core.config import ServiceUnit
from scheduler_svc.core.critical_path import Path
from scheduler_svc.core.lineup import Lineup, QueueKey
from scheduler_svc.core.policies import Policy
from scheduler_svc.core.prices import PS_PER_S


class MultilevelQueue:
    """Calls of one executor in the order in which they are served."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        """What orders the calls."""
        self._entries = 0
        self._waiting = Lineup()
        self._running = Lineup()

    # ── counts ──────────────────────────────────────────────────────────────────────────────────────

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

    def running_upto(self, level: int) -> int:
        """Running calls of `level` or a better one. O(log n)."""
        return self._running.count_before((level + 1,))

    def level_counts(self, levels: int) -> list[int]:
        """Calls per level, for levels 0..levels-1, without a walk: O(levels * log n). Shape: (levels,)."""
        below = [
            self._waiting.count_before((level,)) + self._running.count_before((level,))
            for level in range(levels + 1)
        ]
        return [after - before for before, after in pairwise(below)]

    # ── changes ─────────────────────────────────────────────────────────────────────────────────────

    def add(self, call: Call) -> None:
        """Takes in a call that is in no queue, at the tail of its level; its state tells where."""
        self._entries += 1
        call.enqueued = self._entries
        self._file(call, (call.level, *self.policy.tie(call, call.enqueued)))

    def discard(self, call: Call) -> None:
        """Takes a call out, if it is here."""
        key = call.queue_key
        if key is None:
            return
        for side in (self._running, self._waiting):
            if side.get(key) is call:
                side.remove(key)
                call.queue_key = None

    def refile(self, call: Call) -> None:
        """Puts a call where its level and state now say: at the tail if the level is new, else it keeps its
        place in line."""
        key = call.queue_key
        self.discard(call)
        if key is not None and key[0] == call.level:
            self._file(call, key)
        else:
            self.add(call)

    def to_tail(self, call: Call) -> None:
        """Puts a call at the tail of its level."""
        self.discard(call)
        self.add(call)

    def use(self, policy: Policy) -> None:
        """Orders all calls anew by another policy, which has given them their levels; of those that it has
        nothing to say about, the earlier in line stays the earlier."""
        calls = list(self.walk())
        self._waiting.clear()
        self._running.clear()
        self.policy = policy
        for call in calls:
            self.add(call)

    def _file(self, call: Call, key: QueueKey) -> None:
        call.queue_key = key
        side = self._running if call.state is CallState.RUNNING else self._waiting
        side.add(key, call)

    # ── walks: lazy; do not change the queue meanwhile ──────────────────────────────────────────────

    def walk(self) -> Iterator[Call]:
        """All calls in order."""
        running, waiting = self._running.items(), self._waiting.items()
        if self.policy.running_first:
            running, waiting = _by_level(running, 0), _by_level(waiting, 1)
        for _, call in merge(running, waiting, key=lambda entry: entry[0]):
            yield call

    def running(self) -> Iterator[Call]:
        """Running calls in order."""
        return self._running.calls()

    def waiting(self) -> Iterator[Call]:
        """Waiting calls in order."""
        return self._waiting.calls()

    def waiting_first(self) -> Call | None:
        """The first waiting call."""
        return self._waiting.first()

    def running_after(self, call: Call) -> Iterator[Call]:
        """Running calls that come after `call`, the last of all first: those it may displace."""
        key = self.displacing_key(call)
        for other_key, other in self._running.backwards():
            if other_key <= key:
                return
            yield other

    def may_displace(self, call: Call) -> bool:
        """Whether any running call comes after `call`. O(1)."""
        last_key = self._running.last_key()
        return last_key is not None and last_key > self.displacing_key(call)

    def goes_before(self, waiting: Call, running: Call) -> bool:
        """Whether a waiting call is served before a running one."""
        assert running.queue_key is not None, "the call is in no queue"
        return self.displacing_key(waiting) < running.queue_key

    def displacing_key(self, call: Call) -> QueueKey:
        """Running calls with a larger key come after `call`."""
        assert call.queue_key is not None, "the call is in no queue"
        if call.state is not CallState.RUNNING and self.policy.running_first:
            return (call.level + 1,)
        return call.queue_key


def _by_level(entries: Iterator[tuple[QueueKey, Call]], rank: int) -> Iterator[tuple[QueueKey, Call]]:
    """The same calls, but of all that is known of their order only the level is left; of two kinds the lower
    rank goes first."""
    for key, call in entries:
        yield (key[0], rank), call


def use_quantum(call: Call, used_ps: int, policy: Policy) -> bool:
    """Charges service, in the policy's unit, against the call's quantum; when that is used up the policy says
    which level is next, with a fresh quantum.

    Returns: whether it was used up (the caller puts the call at the tail of its level).
    """
    call.quantum_used_ps += used_ps
    if call.quantum_used_ps < policy.quantum_ps(call.level):
        return False
    call.level = policy.level_after_quantum(call)
    call.quantum_used_ps = 0
    return True


@dataclass(frozen=True, slots=True)
class Standing:
    """What a call and the completed calls of its program have waited and used together: W and T of Algorithm
    1."""

    waited_s: float
    used: Path

    @classmethod
    def of(cls, call: Call, now: float) -> "Standing":
        """As it is now."""
        program = call.program
        service_ps = program.completed_service_ps + call.service_ps
        used = Path(service_ps, program.completed_cost_ps + call.cost_ps)
        return cls(program.completed_waiting_s + call.waiting_s(now), used)


def promote(call: Call, now: float) -> None:
    """Moves a starving call to the first level with a fresh quantum (the caller refiles it)."""
    call.level = 0
    call.quantum_used_ps = 0
    call.promoted_at = Standing.of(call, now)


def starves_in_s(call: Call, beta: float, now: float, unit: ServiceUnit) -> float | None:
    """Seconds until a waiting call starves if nothing else happens; <= 0: it does now. None: it cannot.

    A call starves when (W_program + W_call) / (T_program + T_call) >= beta, W and T being waiting and service
    (in the policy's unit) of the program's completed calls and of this call, since its last promotion. A call
    of the first level never starves.
    """
    if call.level == 0:
        return None
    standing, before = Standing.of(call, now), call.promoted_at
    waited_s, used_ps = standing.waited_s, standing.used.of(unit)
    if before is not None:
        waited_s -= before.waited_s
        used_ps -= before.used.of(unit)
    return beta * (used_ps / PS_PER_S) - waited_s
