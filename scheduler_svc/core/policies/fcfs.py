"""First come, first served, call by call: what a plain LLM server does, and the baseline of the paper.

Inputs: the order of arrival. Complexity: O(1). Ties: none. Starvation: impossible, since every call before
another one ends. Head-of-line blocking: both kinds (a long decode delays short calls, a long program short
programs).
"""

from typing import TYPE_CHECKING

from scheduler_svc.core.config import CoreConfig
from scheduler_svc.core.policies.base import LevelTable

if TYPE_CHECKING:
    from scheduler_svc.core.call import Call
    from scheduler_svc.core.process_table import Program


class Fcfs:
    """One level, in order of call arrival."""

    name = "fcfs"

    def __init__(self, _config: CoreConfig) -> None:
        self.levels = LevelTable.single()

    def service_at_arrival(self, _program: "Program") -> float:
        """Service does not matter."""
        return 0.0

    def tie(self, call: "Call") -> tuple[int, ...]:
        """By call arrival, whatever `CoreConfig.tie` says: that is what the name promises."""
        return (call.seq,)
