"""The record of one live call: its tokens, where its KV stands, and what it has used.

Positions count the tokens of prompt and output as one list:

    0 ─────────── computed ───────── planned ──────── len(tokens) ─── known
      KV is there           KV is in      to compute             sampled by a
      (result came)         flight                                plan in flight

Invariant: 0 <= computed <= planned <= known = len(tokens) + sampling.

`Call` is a plain class where others are dataclasses: it is made for every call and read everywhere, and the
constructor of a dataclass stays interpreted when the core is compiled (docs/adr/0009-compiled-core.md).
"""

from array import array
from typing import TYPE_CHECKING

from scheduler_svc.core.call_states import LIVE, CallState
from scheduler_svc.core.config import ServiceUnit
from scheduler_svc.core.critical_path import NO_PATH, Path
from scheduler_svc.core.events import CallSpec
from scheduler_svc.core.ids import BlockId, CallHandle, CallId
from scheduler_svc.core.prices import PS_PER_S

if TYPE_CHECKING:
    from scheduler_svc.core.call_kv import KeptKv
    from scheduler_svc.core.executor import Executor
    from scheduler_svc.core.lane import Seat
    from scheduler_svc.core.process_table import Program
    from scheduler_svc.core.queues import Standing


class Call:
    """One call from its submission to its acknowledgement."""

    spec: CallSpec
    program: "Program"
    seq: int
    """Order of submission in this core; breaks every tie."""
    arrived_s: float
    tokens: "array[int]"
    """Prompt, then output: int32, since many calls wait for long."""
    prompt_len: int
    state: CallState

    # ── where it runs; all of it is void while executor is None ──
    executor: "Executor | None"
    handle: CallHandle | None
    """None until it is announced to its executor."""
    blocks: list[BlockId]
    """Its block table. Empty unless RUNNING."""
    block_hashes: list[bytes]
    """Chained hashes of its leading full blocks, as far as they were needed."""
    computed: int
    planned: int
    kept: "KeptKv | None"
    """The KV that it left behind when it was preempted; None while RUNNING."""
    in_flight: int
    """Rows of it in plans whose result has not come."""
    sampling: int
    """Those of them that sample a token."""

    seat: "Seat | None"
    """Its place in the columns of its executor; while that is steady, the lane knows how far the call is."""

    # ── its place in the queue ──
    level: int
    enqueued: int
    """Number of its entry into its level; owned by MultilevelQueue."""
    quantum_used_ps: int
    """Service used since it entered its level, in the policy's unit."""
    entry_path: Path
    """The path that led to it: what its parents, or else its program, had used when it arrived."""
    path_parents: tuple[CallId, ...]
    """Its parents, if all of them were known when it arrived."""
    queue_key: tuple[int, ...] | None
    """Its key in the queue that holds it; owned by MultilevelQueue."""

    # ── what it used; lifetime counters never shrink ──
    service_ps: int
    """Picoseconds of the steps that it took part in."""
    cost_ps: int
    """Modelled price of the tokens that advanced it."""
    waited_s: float
    """Seconds live but not in a batch, up to `waiting_since_s`."""
    waiting_since_s: float | None
    """Start of the wait that is going on; None while RUNNING or ended."""
    promoted_at: "Standing | None"
    """What it and its program had waited and used when it was promoted last."""
    cost_at_start_ps: int
    """`cost_ps` when it was started last."""
    computed_ever: int
    """Most leading tokens whose KV was ever computed; what is below is recomputation."""
    preemptions: int
    losses: int
    """Executors lost while it was in their batch."""
    started: bool
    """Its frontend knows that it has been in a plan."""

    __slots__ = tuple(__annotations__)

    def __init__(
        self,
        *,
        spec: CallSpec,
        program: "Program",
        seq: int,
        arrived_s: float,
        tokens: "array[int]",
        state: CallState = CallState.QUEUED,
        level: int = 0,
        waiting_since_s: float | None = None,
    ) -> None:
        """A call that has used nothing and is nowhere yet."""
        self.spec = spec
        self.program = program
        self.seq = seq
        self.arrived_s = arrived_s
        self.tokens = tokens
        self.prompt_len = len(spec.prompt_token_ids)
        self.state = state
        self.executor = None
        self.handle = None
        self.blocks = []
        self.block_hashes = []
        self.computed = 0
        self.planned = 0
        self.kept = None
        self.in_flight = 0
        self.sampling = 0
        self.seat = None
        self.level = level
        self.enqueued = 0
        self.quantum_used_ps = 0
        self.entry_path = NO_PATH
        self.path_parents = ()
        self.queue_key = None
        self.service_ps = 0
        self.cost_ps = 0
        self.waited_s = 0.0
        self.waiting_since_s = waiting_since_s
        self.promoted_at = None
        self.cost_at_start_ps = 0
        self.computed_ever = 0
        self.preemptions = 0
        self.losses = 0
        self.started = False

    @property
    def service_s(self) -> float:
        return self.service_ps / PS_PER_S

    @property
    def path_end(self) -> Path:
        """Where its path ends so far."""
        return Path(self.entry_path.service_ps + self.service_ps, self.entry_path.cost_ps + self.cost_ps)

    def used_ps(self, unit: ServiceUnit) -> int:
        """What it has used, in one unit."""
        return self.cost_ps if unit is ServiceUnit.COST else self.service_ps

    @property
    def output_len(self) -> int:
        return len(self.tokens) - self.prompt_len

    @property
    def known(self) -> int:
        """Tokens there will be once all plans in flight are done, unless one of them stops the call early."""
        return len(self.tokens) + self.sampling

    @property
    def ran_ps(self) -> int:
        """Useful cost since it was started."""
        return self.cost_ps - self.cost_at_start_ps

    @property
    def is_live(self) -> bool:
        return self.state in LIVE

    @property
    def awaits_last_token(self) -> bool:
        """Whether a plan in flight is sure to end it: it needs no further row."""
        return self.sampling > 0 and self.known - self.prompt_len >= self.spec.max_tokens

    @property
    def is_decoding(self) -> bool:
        """Whether its next row computes exactly the newest token."""
        return self.state is CallState.RUNNING and self.known - self.planned == 1

    def waiting_s(self, now: float) -> float:
        """Seconds it has been live but not in a batch."""
        if self.waiting_since_s is None:
            return self.waited_s
        return self.waited_s + now - self.waiting_since_s

    def forget_executor(self) -> None:
        """Voids everything that was true on one executor only."""
        self.executor = None
        self.handle = None
        self.block_hashes = []
        self.kept = None
        self.in_flight = self.sampling = 0
        self.forget_kv()

    def forget_kv(self) -> None:
        """Its blocks were given back: what was kept of them is looked up when it is started again."""
        self.blocks = []
        self.computed = self.planned = 0
