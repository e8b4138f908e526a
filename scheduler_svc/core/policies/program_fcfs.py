"""First come, first served, program by program: a program's next call goes before those of later programs.

Inputs: the order in which programs were opened. Complexity: O(1). Ties: calls of a program by arrival;
programs of one anonymous call come after all others. Starvation: a program waits only for earlier ones,
anonymous calls for every identified program there is. Head-of-line blocking: a long program delays short
ones, but few programs are in progress at a time, which is kind to the KV cache.
"""

from typing import TYPE_CHECKING, ClassVar

from scheduler_svc.core.policies.base import by_program
from scheduler_svc.core.policies.fcfs import Fcfs

if TYPE_CHECKING:
    from scheduler_svc.core.call import Call


class ProgramFcfs(Fcfs):
    """One level, in order of program arrival. A running call keeps its seat until it ends."""

    name: ClassVar[str] = "program_fcfs"

    def tie(self, call: "Call", _enqueued: int) -> tuple[int, ...]:
        """By arrival of the program, then of the call."""
        return by_program(call)
