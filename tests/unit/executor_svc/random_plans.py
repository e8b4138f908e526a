"""Random traffic for a small simulated executor: mostly what a right scheduler would send, now and then not.

The world below knows of each call what a scheduler knows: how many tokens it has, where its KV lies, whether
that is still intact. From it come plans with chunked prefills, joins (fresh, resumed, with the blocks of
another call as prefix, from swapped blocks), leaves, growth by several blocks, rows in another order and
blocks that change hands. Sabotage changes one thing about a plan; most of the time that makes it wrong.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import takewhile
from random import Random
from typing import Any

from executor_svc.cost_model import step_cost
from executor_svc.runner import AnnouncedCall, StepPlan
from executor_svc.simulated_runner import SimulatedConfig
from executor_svc.simulated_tokens import TokenRule
from tests.unit.executor_svc.plan_writer import call

CONFIG = SimulatedConfig(
    model="m",
    model_fingerprint="f",
    tokenizer_fingerprint="t",
    cost_name="h100-llama-3.1-8b",
    cost=step_cost("h100-llama-3.1-8b"),
    tokens=TokenRule(vocab_size=50, first_token=3, eos_token_id=2, eos_every=20),
    block_size=4,
    num_blocks=60,
    host_blocks=12,
    max_num_seqs=6,
    max_num_batched_tokens=40,
    max_model_len=100,
)
SYSTEM_PROMPT = [7, 9, 11, 13, 15, 17, 19, 21, 23, 25]
"""Most prompts begin with some of it, so that blocks can be shared."""
CALLS_MAX = 10


@dataclass(slots=True, eq=False)
class KnownCall:
    """What a scheduler knows of a call."""

    handle: int
    tokens: list[int]
    """Those it was announced with."""
    fails: bool
    known: int
    """Tokens by now."""
    computed: int = 0
    table: list[int] = field(default_factory=list)
    """Blocks that hold `computed` tokens, and perhaps more room; empty while swapped out."""
    host: list[int] = field(default_factory=list)
    """Host blocks that hold them while it is swapped out."""


class RandomPlans:
    """Makes plans and is told how they went."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._next_handle = 1
        self.restart()

    def restart(self) -> None:
        """The executor was reset."""
        self._step = 0
        self._calls: list[KnownCall] = []
        self._rows: list[KnownCall] = []
        self._chunks: dict[int, int] = {}
        self._joined: dict[int, int] = {}
        self._blocks: dict[int, list[int]] = {}
        self._users: Counter[int] = Counter()
        self._free = list(range(1, CONFIG.num_blocks))
        self._free_host = list(range(CONFIG.host_blocks))

    def announcements(self) -> list[AnnouncedCall]:
        """New calls, often none."""
        count = self._rng.choice((0, 0, 0, 1, 2)) if len(self._calls) < CALLS_MAX else 0
        return [self._new_call() for _ in range(count)]

    def plan(self) -> StepPlan:
        """The next plan. When it went well, `advance` must follow."""
        self._step += 1
        released = self._release()
        before, self._rows = self._rows, []
        swap_out: list[tuple[int, int]] = []
        swap_in: list[tuple[int, int]] = []
        freed_host: list[int] = []
        wanted = self._wanted(before)
        for each in self._calls:
            if each not in wanted:
                swap_out += self._make_room(each)
        self._chunks, self._joined, self._blocks = {}, {}, {}
        for each in wanted:
            swap_in += self._come_back(each, freed_host)
            self._add_row(each, fresh=each not in before)
        self._free_host += freed_host
        made = StepPlan(
            step=self._step,
            handles=tuple(each.handle for each in self._rows),
            chunks=self._chunks,
            joined=self._joined,
            blocks=self._blocks,
            released=released,
            swap_out=swap_out,
            swap_in=swap_in,
        )
        return sabotaged(made, self._rng) if self._rng.random() < 0.05 else made

    def advance(self) -> None:
        """The last plan was executed."""
        for row, each in enumerate(self._rows):
            if not each.fails:
                each.computed += self._chunks.get(row, 1)
                each.known += each.computed == each.known

    def _new_call(self) -> AnnouncedCall:
        rng = self._rng
        prompt = SYSTEM_PROMPT[: rng.choice((0, 4, 8, 10))]
        prompt = prompt + [rng.randrange(50) for _ in range(rng.randrange(1, 30))]
        output = [rng.randrange(50) for _ in range(rng.choice((0, 0, 5)))]
        fails = rng.random() < 0.05
        if fails:
            prompt[-1] = 99
        tokens = prompt + output
        self._calls.append(KnownCall(self._next_handle, tokens, fails, known=len(tokens)))
        self._next_handle += 1
        return call(self._next_handle - 1, prompt, output)

    def _release(self) -> list[int]:
        """Ends calls that are near the model's length, and some others."""
        ended = [
            each
            for each in self._calls
            if each.known >= CONFIG.max_model_len - 1 or self._rng.random() < 0.01
        ]
        for each in ended:
            self._drop(each)
            self._free_host += each.host
            self._calls.remove(each)
        return [each.handle for each in ended]

    def _wanted(self, before: list[KnownCall]) -> list[KnownCall]:
        """Mostly the same rows in the same order; now and then others, in any order."""
        staying = [each for each in before if each in self._calls]
        if staying and self._rng.random() < 0.7:
            return staying
        wanted = [each for each in self._calls if self._rng.random() < 0.8]
        self._rng.shuffle(wanted)
        return wanted[: CONFIG.max_num_seqs]

    def _make_room(self, each: KnownCall) -> list[tuple[int, int]]:
        """A call that is no row is paused in place, swapped out or dropped; returns the copies."""
        fate = self._rng.random()
        if fate < 0.6 or not each.table:
            return []
        pairs: list[tuple[int, int]] = []
        if fate < 0.9 and len(self._free_host) >= len(each.table):
            each.host = [self._free_host.pop() for _ in each.table]
            pairs = list(zip(each.table, each.host, strict=True))
        self._drop(each)
        return pairs

    def _drop(self, each: KnownCall) -> None:
        """Its blocks are others' to take, unless they use them too."""
        for block in each.table:
            self._users[block] -= 1
            if not self._users[block]:
                self._free.insert(self._rng.randrange(len(self._free) + 1), block)
        each.table = []
        if not each.host:
            each.computed = 0

    def _come_back(self, each: KnownCall, freed_host: list[int]) -> list[tuple[int, int]]:
        """Copies of a call that was swapped out, if there is room."""
        if not each.host or len(self._free) < len(each.host):
            return []
        self._give_blocks(each, len(each.host))
        pairs = list(zip(each.host, each.table, strict=True))
        freed_host += each.host
        each.host = []
        return pairs

    def _add_row(self, each: KnownCall, *, fresh: bool) -> None:
        """Puts a call into the plan if there is room."""
        if fresh and not each.table and not each.host:
            self._share_prefix(each)
        held = 0 if fresh else len(each.table)
        room = CONFIG.max_num_batched_tokens - CONFIG.max_num_seqs - sum(self._chunks.values())
        count = max(1, min(self._rng.choice((1, 1, 2, 5, 30)), each.known - each.computed, room))
        blocks = -(-(each.computed + count) // CONFIG.block_size) + self._rng.choice((0, 0, 0, 1))
        if each.host or blocks - len(each.table) > len(self._free):
            return
        self._give_blocks(each, blocks)
        row = len(self._rows)
        self._rows.append(each)
        if fresh:
            self._joined[row] = each.computed
        if each.table[held:]:
            self._blocks[row] = each.table[held:]
        if count != 1:
            self._chunks[row] = count

    def _share_prefix(self, each: KnownCall) -> None:
        """Full blocks of another call that begins alike serve as the beginning of this one's table."""
        others = [other for other in self._calls if other is not each and other.table]
        if not others or self._rng.random() < 0.3:
            return
        other = self._rng.choice(others)
        pairs = zip(other.tokens[: other.computed], each.tokens[:-1], strict=False)
        alike = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        each.table = other.table[: alike // CONFIG.block_size]
        self._users.update(each.table)
        each.computed = len(each.table) * CONFIG.block_size

    def _give_blocks(self, each: KnownCall, count: int) -> None:
        """Its table has at least `count` blocks afterwards."""
        while len(each.table) < count:
            each.table.append(self._free.pop())
            self._users[each.table[-1]] += 1


def sabotaged(plan: StepPlan, rng: Random) -> StepPlan:
    """The plan with one thing changed, which most of the time makes it wrong."""
    changed = rng.choice(SABOTAGES)(plan, rng)
    return replace(plan, **changed)


def _other_block(plan: StepPlan, rng: Random) -> dict[str, Any]:
    """A block id of a table or an appended list is another one."""
    blocks = {row: list(ids) for row, ids in plan.blocks.items()}
    if blocks:
        ids = blocks[rng.choice(list(blocks))]
        ids[rng.randrange(len(ids))] = rng.randrange(CONFIG.num_blocks + 2)
    return {"blocks": blocks}


def _missing_block(plan: StepPlan, rng: Random) -> dict[str, Any]:
    """A list of blocks is one shorter."""
    blocks = {row: list(ids) for row, ids in plan.blocks.items()}
    if blocks:
        row = rng.choice(list(blocks))
        blocks[row].pop()
        if not blocks[row] and row not in plan.joined:
            del blocks[row]
    return {"blocks": blocks}


def _other_computed(plan: StepPlan, rng: Random) -> dict[str, Any]:
    """A joining row claims other tokens as computed."""
    joined = dict(plan.joined)
    if joined:
        row = rng.choice(list(joined))
        joined[row] = max(0, joined[row] + rng.choice((-4, -1, 1, 4, 8, 16)))
    return {"joined": joined}


def _other_chunk(plan: StepPlan, rng: Random) -> dict[str, Any]:
    """A row computes another number of tokens."""
    if not plan.handles:
        return {}
    chunks = dict(plan.chunks)
    row = rng.randrange(len(plan.handles))
    chunks[row] = chunks.get(row, 1) + rng.choice((1, 1, 40))
    return {"chunks": dict(sorted(chunks.items()))}


def _swapped_handles(plan: StepPlan, rng: Random) -> dict[str, Any]:
    """Two rows change names, or one has an unknown one."""
    handles = list(plan.handles)
    if len(handles) > 1 and rng.random() < 0.7:
        one, two = rng.sample(range(len(handles)), 2)
        handles[one], handles[two] = handles[two], handles[one]
    elif handles:
        handles[rng.randrange(len(handles))] = 10_000
    return {"handles": tuple(handles)}


def _joined_again(plan: StepPlan, rng: Random) -> dict[str, Any]:
    """A row that was there joins, or one that was not does not."""
    joined = dict(plan.joined)
    if joined and rng.random() < 0.5:
        del joined[rng.choice(list(joined))]
    elif plan.handles:
        joined[rng.randrange(len(plan.handles))] = 0
    return {"joined": dict(sorted(joined.items()))}


def _released_row(plan: StepPlan, rng: Random) -> dict[str, Any]:
    """A call is released that is a row, or that nobody knows."""
    return {"released": [*plan.released, rng.choice([*plan.handles, 10_000])]}


def _other_copy(plan: StepPlan, rng: Random) -> dict[str, Any]:
    """A block is copied that nobody asked for."""
    device, host = rng.randrange(CONFIG.num_blocks + 1), rng.randrange(CONFIG.host_blocks + 1)
    if rng.random() < 0.5:
        return {"swap_in": [*plan.swap_in, (host, device)]}
    return {"swap_out": [*plan.swap_out, (device, host)]}


def _missing_copy(plan: StepPlan, rng: Random) -> dict[str, Any]:
    """A block that was to be copied is not."""
    if plan.swap_in and rng.random() < 0.7:
        return {"swap_in": plan.swap_in[1:]}
    return {"swap_out": plan.swap_out[1:]}


def _rows_too_many(plan: StepPlan, rng: Random) -> dict[str, Any]:
    """A known call is a row twice and more."""
    return {"handles": (*plan.handles, *plan.handles[:1] * CONFIG.max_num_seqs)}


SABOTAGES: tuple[Callable[[StepPlan, Random], dict[str, Any]], ...] = (
    _other_block,
    _missing_block,
    _other_computed,
    _other_chunk,
    _swapped_handles,
    _joined_again,
    _released_row,
    _other_copy,
    _missing_copy,
    _rows_too_many,
)
