"""Program-level attained service: the more a program's completed calls have used, the later its next call is
served.

Inputs: the sum over the program's completed calls. Complexity: O(log K). Ties: by arrival of the program (or
as `CoreConfig.tie` says), then of the call. Starvation: bounded by promotion (`CoreConfig.starvation_beta`).
Source: Autellix section on PLAS, p(c_j) = sum of t_k over the earlier calls.
"""

from typing import TYPE_CHECKING, ClassVar

from scheduler_svc.core.policies.base import LevelPolicy

if TYPE_CHECKING:
    from scheduler_svc.core.call import Call
    from scheduler_svc.core.process_table import Program


class Plas(LevelPolicy):
    """K levels by the service of the program's completed calls."""

    name: ClassVar[str] = "plas"

    def level_at_arrival(self, call: "Call") -> int:
        """By the sum over completed calls: other calls that still run do not count, so parallel calls start
        level."""
        return self.levels.level_of(call.program.completed_ps(self.unit) + call.used_ps(self.unit))

    def level_of_next(self, program: "Program") -> int:
        """By the sum over completed calls."""
        return self.levels.level_of(program.completed_ps(self.unit))
