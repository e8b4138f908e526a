"""One attached executor as the core sees it: its calls, its blocks and its plans in flight.

Handles and step numbers start at 1 when an executor joins and are never used twice, so a handle that is not
among `calls` but below `next_handle` belongs to a call that has ended or left: what is said of it is stale,
not wrong.
"""

from collections import deque
from dataclasses import dataclass, field

from scheduler_svc.core import call_kv
from scheduler_svc.core.call import Call
from scheduler_svc.core.events import ExecutorSpec
from scheduler_svc.core.ids import CallHandle, CallId, ExecutorId
from scheduler_svc.core.kv import KvCache
from scheduler_svc.core.kv_choice import KvChoice, choose_kv
from scheduler_svc.core.lane import Lane
from scheduler_svc.core.planned import PlannedRow, StepInFlight
from scheduler_svc.core.policies import Policy
from scheduler_svc.core.prices import Prices
from scheduler_svc.core.queues import MultilevelQueue
from scheduler_svc.core.step_cost import StepCostModel
from scheduler_svc.core.working_set import WorkingSetGate


@dataclass(frozen=True, slots=True)
class Misfit:
    """The last waiting call that memory was too short for, so that it is not looked up at every step."""

    call: Call
    available: int
    """Blocks that could be had then."""
    step: int


@dataclass(slots=True, eq=False)
class Executor:
    """A registration and everything that is true until the executor is lost."""

    spec: ExecutorSpec
    queue: MultilevelQueue
    kv: KvCache
    gate: WorkingSetGate
    costs: StepCostModel
    prices: Prices
    """What its tokens cost now; replaced when the model has moved."""
    calls: dict[CallId, Call] = field(default_factory=dict)
    """Live calls placed here, in order of placement."""
    by_handle: dict[CallHandle, Call] = field(default_factory=dict)
    """Those of them that are announced."""
    in_flight: deque[StepInFlight] = field(default_factory=deque)
    """Oldest first. len <= spec.max_plans_in_flight."""
    last_batch: frozenset[CallHandle] = frozenset()
    """Handles of the newest plan: rows that are not among them join."""
    to_release: list[CallHandle] = field(default_factory=list)
    """Handles that the next plan tells the executor to forget."""
    next_step: int = 1
    next_handle: int = 1
    steps_done: int = 0
    draining: bool = False
    lost: bool = False
    """Its stream has ended: what its blocks hold is of no use."""
    misfit: Misfit | None = None
    swaps_always: bool = False
    """What must leave the device goes to the host whatever that costs."""
    lane: Lane | None = None
    """Its steady rows; None: the plain planner has none."""

    @classmethod
    def attach(
        cls, spec: ExecutorSpec, policy: Policy, *, columnar: bool = False, swaps_always: bool = False
    ) -> "Executor":
        """A fresh executor.

        Args:
            columnar: Whether its planner works on columns.
            swaps_always: Whether blocks that are wanted move to the host even where computing is cheaper.
        """
        kv = KvCache(device_blocks=spec.num_blocks, host_blocks=spec.host_blocks)
        costs = StepCostModel(block_bytes=spec.block_bytes, step_tokens=spec.max_num_batched_tokens)
        gate = WorkingSetGate(kv, lambda tokens: -(-tokens // spec.block_size))
        executor = cls(spec, MultilevelQueue(policy), kv, gate, costs, costs.prices())
        executor.swaps_always = swaps_always
        executor.reprice()
        executor.lane = Lane(executor) if columnar else None
        return executor

    @property
    def executor_id(self) -> ExecutorId:
        return self.spec.executor_id

    @property
    def can_take_plan(self) -> bool:
        return len(self.in_flight) < self.spec.max_plans_in_flight

    def blocks_for(self, tokens: int) -> int:
        """Blocks that hold so many tokens."""
        return -(-tokens // self.spec.block_size)

    def reprice(self) -> None:
        """Takes the cost model's newest prices over. What was used so far was at the old ones."""
        if self.lane is not None:
            self.lane.refresh_all(self.calls.values())
        self.prices = self.costs.prices()
        if self.lane is not None:
            self.lane.rearm_all()
        self.kv.move_to_host = self.swaps_always or self._is_worth_moving()

    def _is_worth_moving(self) -> bool:
        """Whether a block that must leave the device is copied to the host rather than computed again."""
        choice = choose_kv(
            tokens=self.spec.block_size, blocks=1, prices=self.prices, memory_needed=True, host_blocks_free=1
        )
        return choice is KvChoice.SWAP

    def fits(self, call: Call) -> bool:
        """Whether it can hold the call alone and understands its parameters."""
        spec = call.spec
        return call.prompt_len + spec.max_tokens <= self.spec.max_call_tokens and understands(
            self.spec, spec.params_format
        )

    def give_handle(self, call: Call) -> CallHandle:
        """Names a call for the first time here; the caller announces it."""
        handle = CallHandle(self.next_handle)
        self.next_handle += 1
        call.handle = handle
        self.by_handle[handle] = call
        return handle

    def holds(self, row: PlannedRow) -> bool:
        """Whether the call of a planned row is still here: not ended, not moved since the plan."""
        return self.by_handle.get(row.handle) is row.call

    def bring_up_to_date(self, call: Call) -> None:
        """Makes the call's record say how far the call is: a steady row does not book its steps there."""
        if self.lane is not None:
            self.lane.refresh_all((call,))

    def rows_of(self, step: StepInFlight) -> dict[CallHandle, PlannedRow]:
        """All rows of a plan in flight, in plan order. To look at: slow with columns."""
        return step.rows if self.lane is None else self.lane.rows_of(step)

    def was_given(self, handle: CallHandle) -> bool:
        """Whether `handle` ever named a call here."""
        return 0 < handle < self.next_handle

    def drop(self, call: Call) -> None:
        """Takes a call off: its blocks are free at once, its handle is released with the next plan."""
        del self.calls[call.spec.call_id]
        self.queue.discard(call)
        self.gate.discard(call)
        if not self.lost:
            call_kv.part(self, call)
        if call.handle is not None:
            del self.by_handle[call.handle]
            self.to_release.append(call.handle)
        call.forget_executor()


def understands(spec: ExecutorSpec, params_format: str) -> bool:
    """Whether an executor can read parameters of this format; no format means no parameters."""
    return not params_format or params_format in spec.params_formats
