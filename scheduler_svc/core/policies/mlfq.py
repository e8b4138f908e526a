"""Multi-level feedback by call: the longer a call has run, the later it is served. The paper's other
baseline.

Inputs: the service of the call itself; its program does not matter. Complexity: O(log K). Ties: by arrival of
the program (or as `CoreConfig.tie` says). Starvation: bounded by promotion. Every call enters at Q1, so a
program of many short calls never leaves it: head-of-line blocking among programs remains. Source: Autellix,
the baselines.
"""

from typing import TYPE_CHECKING, ClassVar

from scheduler_svc.core.policies.base import LevelPolicy

if TYPE_CHECKING:
    from scheduler_svc.core.call import Call
    from scheduler_svc.core.process_table import Program


class Mlfq(LevelPolicy):
    """K levels by the service of the call itself."""

    name: ClassVar[str] = "mlfq"

    def level_at_arrival(self, call: "Call") -> int:
        """Q1: a call that arrives has used nothing."""
        return self.levels.level_of(call.used_ps(self.unit))

    def level_of_next(self, _program: "Program") -> int:
        """Q1."""
        return 0
