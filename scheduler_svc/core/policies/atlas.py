"""Adaptive thread-level attained service: a call is placed by the longest path of calls that led to it.

Inputs: the path that the call inherited when it arrived, p = max over its parents k of (p(k) + t(k)). A call
that names its parents gets exactly that; one that does not gets its program's longest path so far, the
paper's rule of one scalar a program (`process_table`). Complexity: O(log K); a named parent is one look-up
more. Ties: by arrival of the program (or as `CoreConfig.tie` says), then of the call. Starvation: bounded by
promotion. For a chain of calls it is the same as PLAS; parallel branches do not add up. Source: Autellix
section on ATLAS.
"""

from typing import TYPE_CHECKING, ClassVar

from scheduler_svc.core.policies.base import LevelPolicy

if TYPE_CHECKING:
    from scheduler_svc.core.call import Call
    from scheduler_svc.core.process_table import Program


class Atlas(LevelPolicy):
    """K levels by critical path."""

    name: ClassVar[str] = "atlas"

    def level_at_arrival(self, call: "Call") -> int:
        """By the inherited path."""
        return self.levels.level_of(call.entry_path.of(self.unit) + call.used_ps(self.unit))

    def level_of_next(self, program: "Program") -> int:
        """By the longest path so far."""
        return self.levels.level_of(program.path.of(self.unit))
