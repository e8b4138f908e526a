"""Gittins index: those first who are likely to be done for little, as far as the past of their class tells.

The rank of a program that has used a is the least, over all d > 0, of

    E[service it uses until it is done or has used d more] / P[it is done by then]

given that it has used a: the price of one completion. Serving by least rank minimises the mean response time
of an M/G/1 queue among all policies that do not know sizes; where long runs predict longer ones it is least
attained service, where sizes are alike it stays with what has begun. Source: Aalto, Ayesta, Righter, "On the
Gittins index in the M/G/1 queue", Queueing Systems 63 (2009).

Inputs: what all calls of the program have used, and the sizes of ended programs by class name
(`service_history`, kept whatever the policy is; until a class has a past, a heavy-tailed prior makes this
close to PLAS). Ranks are times, so they are mapped to levels by the table that maps service for the others. A
level is looked at when a call arrives and when it has used its quantum, and a running call changes it only
when its rank is past the boundary by a quarter: nothing thrashes. Complexity: O(log K) a look. Ties: as
`CoreConfig.tie` says. Starvation: bounded by promotion.
"""

from typing import TYPE_CHECKING, ClassVar

from scheduler_svc.core.config import CoreConfig
from scheduler_svc.core.policies.base import FOREVER_PS, LevelPolicy
from scheduler_svc.core.service_history import ServiceHistory

if TYPE_CHECKING:
    from scheduler_svc.core.call import Call
    from scheduler_svc.core.process_table import Program


class Gittins(LevelPolicy):
    """K levels by Gittins rank."""

    name: ClassVar[str] = "gittins"
    reads_live_service: ClassVar[bool] = True

    def __init__(self, config: CoreConfig, history: ServiceHistory) -> None:
        super().__init__(config)
        self._history = history
        self._last_look_ps = self.levels.begins_ps[-1] or FOREVER_PS

    def level_at_arrival(self, call: "Call") -> int:
        """By the rank of the program as it stands."""
        return self.level_of_next(call.program)

    def level_of_next(self, program: "Program") -> int:
        """By the rank of the program as it stands."""
        return self.levels.level_of(self._rank_ps(program))

    def quantum_ps(self, level: int) -> int:
        """From the table; in the last level as much as it takes to get there, since ranks may fall."""
        return min(super().quantum_ps(level), self._last_look_ps)

    def level_after_quantum(self, call: "Call") -> int:
        """By rank again, up or down, but only for good reason: the level nearest to the present one among
        those that a rank of 4/5 to 5/4 of this one would have."""
        rank_ps = self._rank_ps(call.program)
        best = self.levels.level_of(rank_ps * 4 // 5)
        worst = self.levels.level_of(rank_ps * 5 // 4)
        return min(max(call.level, best), worst)

    def _rank_ps(self, program: "Program") -> int:
        return self._history.of(program, self.unit).rank_ps(program.used_ps(self.unit))
