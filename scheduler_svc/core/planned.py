"""What a plan in flight consists of."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from scheduler_svc.core.call import Call
from scheduler_svc.core.ids import CallHandle
from scheduler_svc.core.step_cost import StepFeatures

if TYPE_CHECKING:
    from scheduler_svc.core.lane.batch import Batch


@dataclass(slots=True, init=False)
class PlannedRow:
    """One call's share of a plan in flight. Nobody changes it once the plan is made. Made as `effects`
    are."""

    call: Call
    handle: CallHandle
    start: int
    """Leading tokens computed before."""
    count: int
    """Tokens computed by this row. > 0."""
    samples: bool
    """Whether it reaches the newest token, and so samples the next one."""
    slot: int
    """Where its call was seated in the columns, if the planner has such."""

    def __init__(
        self, call: Call, handle: CallHandle, start: int, count: int, samples: bool, slot: int = -1
    ) -> None:
        self.call = call
        self.handle = handle
        self.start = start
        self.count = count
        self.samples = samples
        self.slot = slot


@dataclass(slots=True)
class StepInFlight:
    """A plan whose result has not come."""

    step: int
    rows: dict[CallHandle, PlannedRow]
    """In plan order. With columns: the rows that are objects, in no order; the others are known to the
    lane."""
    features: StepFeatures
    """What it computes, for the step-cost model."""


class ColumnsInFlight(StepInFlight):
    """The same of a planner with columns. No dataclass: `Batch` is not there yet when this is loaded."""

    batch: "Batch"
    samplers: "Batch"
    """The rows of the batch that sample a token; the same object if all do."""

    __slots__ = ("batch", "samplers")

    def __init__(
        self,
        step: int,
        rows: dict[CallHandle, PlannedRow],
        features: StepFeatures,
        batch: "Batch",
        samplers: "Batch",
    ) -> None:
        self.step = step
        self.rows = rows
        self.features = features
        self.batch = batch
        self.samplers = samplers
