"""Working-set admission: new programs wait while the KV of those that live fills an executor's memory.

Theory of operation: a program's calls come back to the KV of the calls before. Once more programs take turns
than memory has room for, each one's KV is pushed out before it comes back, and most of what is computed is
computed again. So a program that has not run yet stays at the gate until its first prompt fits beside what is
retained for the programs that live; programs that were let in never wait here again. An executor with nothing
else to do lets the first one in whatever its size.

What is retained counts each block of a program once: the branches of a tree search share their prefix. A
program that was let in and has not computed its prompt yet counts with the blocks that this will take.

Option `CoreConfig.admission`; without it nothing waits here. Source: ours; the effect is known from virtual
memory (Denning's working sets).
"""

from collections.abc import Callable, Iterator

from scheduler_svc.core.call import Call
from scheduler_svc.core.ids import CallId
from scheduler_svc.core.kv import KvCache
from scheduler_svc.core.process_table import Program, ProgramKey


class WorkingSetGate:
    """The programs that wait for room on one executor, in order of their first calls."""

    def __init__(self, kv: KvCache, blocks_for: Callable[[int], int]) -> None:
        """
        Args:
            blocks_for: Blocks that so many tokens take.
        """
        self._kv = kv
        self._blocks_for = blocks_for
        self._held: dict[ProgramKey, dict[CallId, Call]] = {}
        self._reserved: dict[ProgramKey, int] = {}
        """Blocks that programs which were let in will take for their first prompt."""

    def __len__(self) -> int:
        """Programs that wait."""
        return len(self._held)

    def __contains__(self, call: Call) -> bool:
        return call.spec.call_id in self._held.get(call.program.key, ())

    def is_open_to(self, program: Program, *, has_run: bool) -> bool:
        """Whether calls of a program need not wait.

        Args:
            has_run: Whether a call of it ran on this executor.
        """
        return has_run or program.key in self._reserved

    def hold(self, call: Call) -> None:
        """Lets a call wait with its program."""
        self._held.setdefault(call.program.key, {})[call.spec.call_id] = call

    def discard(self, call: Call) -> None:
        """Takes a call away, if it waits here."""
        calls = self._held.get(call.program.key) if self._held else None
        if calls is not None and calls.pop(call.spec.call_id, None) is not None and not calls:
            del self._held[call.program.key]

    def let_in(self, *, is_idle: bool) -> Iterator[Call]:
        """Yields the calls of programs for which there is room now; they wait here no longer.

        Args:
            is_idle: Whether the executor has no other call to run; asked once.
        """
        if not self._held:
            return
        used = self._kv.live_footprint + self._promised()
        while self._held:
            key = next(iter(self._held))
            need = max(self._blocks_for(call.prompt_len + 1) for call in self._held[key].values())
            if used + need > self._kv.size and not is_idle:
                return
            is_idle = False
            used += need
            self._reserved[key] = need
            yield from self._held.pop(key).values()

    def _promised(self) -> int:
        """Blocks reserved beyond what is retained already; what is retained in full needs no promise."""
        for key, need in list(self._reserved.items()):
            if self._kv.footprint(key) >= need:
                del self._reserved[key]
        return sum(need - self._kv.footprint(key) for key, need in self._reserved.items())

    def forget(self, key: ProgramKey) -> None:
        """A program has ended, or is idle: room that it has not taken is not kept for it."""
        self._reserved.pop(key, None)
