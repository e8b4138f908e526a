"""Program-level attained service: the more a program's completed calls have used, the later its next call is
served.

Inputs: `Program.completed_service_s`, the sum over completed calls. Complexity: O(K) a call. Ties: by arrival
of the program (or of the call, `CoreConfig.tie`), then of the call. Starvation: bounded by promotion
(`CoreConfig.starvation_beta`). Source: Autellix section on PLAS, p(c_j) = sum of t_k over the earlier calls.
"""

from typing import TYPE_CHECKING

from scheduler_svc.core.config import CoreConfig
from scheduler_svc.core.policies.base import LevelTable, tie_by

if TYPE_CHECKING:
    from scheduler_svc.core.call import Call
    from scheduler_svc.core.process_table import Program


class Plas:
    """K levels by the service of the program's completed calls."""

    name = "plas"

    def __init__(self, config: CoreConfig) -> None:
        self.levels = LevelTable.from_config(config)
        self._tie = config.tie

    def service_at_arrival(self, program: "Program") -> float:
        """The sum over completed calls: calls that still run do not count, so parallel calls start level."""
        return program.completed_service_s

    def tie(self, call: "Call") -> tuple[int, ...]:
        """By arrival of the program by default: ties by call arrival let programs take turns, and every turn
        costs the others their prefix cache."""
        return tie_by(self._tie, call)
