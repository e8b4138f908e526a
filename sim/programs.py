"""One agent program as a script: which call follows from which, and how the program ends.

    chain        one call after the other, each with the prompt and output of the one before
    fork_join    one call, then several at once that name it as their parent, then one that names them all
    tree         each call that ends is the parent of none, one or two others
    flood        everything at once

A program ends by saying so (perhaps while calls of it live), by being cancelled, by its only call, or never:
then it idles out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from scheduler_svc.core.effects import FinishReason
from scheduler_svc.core.ids import FrontendId, ProgramId, TenantId
from sim.draws import Model
from sim.ledger import CallRecord

if TYPE_CHECKING:
    from sim.traffic import Traffic


class Ending(Enum):
    """How a program ends when its calls are done."""

    SAID = "said"
    EARLY = "early"
    """Said while calls of it live."""
    CANCELLED = "cancelled"
    SILENT = "silent"
    SINGLE_CALL = "single call"


SHAPES = ("chain", "fork_join", "tree", "flood")


@dataclass(slots=True, eq=False)
class Script:
    """A program on its way."""

    traffic: "Traffic"
    tenant: TenantId
    program_id: ProgramId
    frontend_id: FrontendId
    class_name: str
    model: Model
    shape: str
    ending: Ending
    calls_left: int
    width: int
    live: int = 0
    last_wave: list[CallRecord] = field(default_factory=list)
    over: bool = False

    def begin(self) -> None:
        """Submits the first call or calls."""
        self._submit(self.width if self.shape == "flood" else 1, ())

    def call_ended(self, record: CallRecord) -> None:
        """Goes on after a call."""
        self.live -= 1
        if self.over:
            return
        lost = record.end is not None and record.end.reason is FinishReason.ABORT
        if lost and self.traffic.chance() < 0.5 and len(record.output) < record.spec.max_tokens:
            self._submit_again(record)
        elif self.shape == "tree":
            self._submit(self.traffic.random.randrange(3), (record,))
        else:
            self.last_wave.append(record)
        if not self.live and not self.over:
            self._next_wave()

    def _next_wave(self) -> None:
        """All calls have ended: others follow, or the program is done."""
        wave, self.last_wave = self.last_wave, []
        if self.calls_left <= 0 or self.traffic.is_closing:
            self._end()
        elif self.shape == "fork_join" and len(wave) == 1:
            self._submit(self.width, wave)
        else:
            self._submit(self.width if self.shape == "flood" else 1, wave)

    def _submit(self, count: int, parents: Sequence[CallRecord]) -> None:
        for _ in range(count):
            if self.over or self.calls_left <= 0:
                break
            self.calls_left -= 1
            self._count(self.traffic.submit(self, parents))
            early = self.ending is Ending.EARLY and self.calls_left < 2
            if early and not self.over:
                self._end()

    def _submit_again(self, record: CallRecord) -> None:
        self._count(self.traffic.submit_again(self, record))

    def _count(self, accepted: bool) -> None:
        if accepted:
            self.live += 1
        elif not self.live:
            self.over = True

    def _end(self) -> None:
        self.over = True
        self.traffic.end_program(self)
