"""First come, first served, call by call: what a plain LLM server does, and the baseline of the paper.

Inputs: the order of arrival. Complexity: O(1). Ties: none. Starvation: impossible, since every call before
another one ends. Head-of-line blocking: both kinds (a long decode delays short calls, a long program short
programs).
"""

from typing import TYPE_CHECKING, ClassVar

from scheduler_svc.core.config import CoreConfig
from scheduler_svc.core.policies.base import FOREVER_PS, LevelTable

if TYPE_CHECKING:
    from scheduler_svc.core.call import Call
    from scheduler_svc.core.process_table import Program


class Fcfs:
    """One level, in order of call arrival, whatever the options say: that is what the name promises."""

    name: ClassVar[str] = "fcfs"
    reads_live_service: ClassVar[bool] = False
    running_first = True

    def __init__(self, config: CoreConfig) -> None:
        self.unit = config.service_unit
        self.levels = LevelTable.single()

    def level_at_arrival(self, _call: "Call") -> int:
        """There is but one."""
        return 0

    def level_of_next(self, _program: "Program") -> int:
        """There is but one."""
        return 0

    def quantum_ps(self, _level: int) -> int:
        """Nobody is demoted."""
        return FOREVER_PS

    def level_after_quantum(self, call: "Call") -> int:
        """Never asked: the quantum is endless."""
        return call.level

    def tie(self, call: "Call", _enqueued: int) -> tuple[int, ...]:
        """By call arrival."""
        return (call.seq,)
