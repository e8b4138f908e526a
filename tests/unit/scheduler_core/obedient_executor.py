"""An executor in a few lines: it obeys plans to the letter and fails on any that it could not obey.

Its "model" is a hash chain: the KV of a position is a digest of all tokens up to it, computed from the KV of
the position before, which is read through the block table. The next token is a function of that digest. So a
token comes out right only if every block that the plan pointed to held what it should. The chain begins with
tenant and salt: KV that crosses from one to another is wrong as well, although a real model would not notice.
"""

from collections import deque
from dataclasses import dataclass, field
from zlib import crc32

from scheduler_svc.core.effects import AnnounceCall, Plan
from scheduler_svc.core.events import CallSpec, ExecutorSpec, StepCompleted
from scheduler_svc.core.ids import CallHandle

VOCAB_SIZE = 997


def digest_of(previous: int, token: int) -> int:
    """KV of a position from the KV of the one before."""
    return crc32(token.to_bytes(4, "little"), previous)


def root_of(spec: CallSpec) -> int:
    """What the chain of a call begins with."""
    return crc32(f"{spec.tenant}\0{spec.cache_salt}".encode())


def token_after(digest: int) -> int:
    """The token that the model samples after a position."""
    return digest % VOCAB_SIZE


def expected_output(spec: CallSpec) -> list[int]:
    """What `spec` generates when nothing ever disturbs it, stop tokens applied."""
    digest = root_of(spec)
    for token in [*spec.prompt_token_ids, *spec.output_token_ids]:
        digest = digest_of(digest, token)
    output = list(spec.output_token_ids)
    while len(output) < spec.max_tokens:
        output.append(token_after(digest))
        digest = digest_of(digest, output[-1])
        stops = output[-1] == spec.eos_token_id or output[-1] in spec.stop_token_ids
        if stops and len(output) >= spec.min_tokens:
            break
    return output


@dataclass
class HeldCall:
    """A call that this executor knows."""

    spec: CallSpec
    tokens: list[int]
    table: list[int] = field(default_factory=list)
    computed: int = 0
    failed: bool = False
    """Reported once; rows of it that were planned meanwhile are passed over."""


class ObedientExecutor:
    """Executes each plan when it comes and keeps its result until the test delivers it."""

    def __init__(self, spec: ExecutorSpec, step_s: float = 1.0) -> None:
        self.spec = spec
        self.step_s = step_s
        self.calls: dict[CallHandle, HeldCall] = {}
        self.used_handles: set[CallHandle] = set()
        self.kv: dict[int, list[int | None]] = {}
        self.host_kv: dict[int, list[int | None]] = {}
        self.last_batch: set[CallHandle] = set()
        self.plans: list[Plan] = []
        self.results: deque[StepCompleted] = deque()
        self.failing: set[str] = set()
        """Call ids that fail in their next row."""
        self.computed_tokens = 0

    def announce(self, effect: AnnounceCall) -> None:
        assert effect.handle > 0
        assert effect.handle not in self.used_handles
        self.used_handles.add(effect.handle)
        tokens = [*effect.call.prompt_token_ids, *effect.output_token_ids]
        self.calls[effect.handle] = HeldCall(effect.call, tokens)

    def execute(self, plan: Plan) -> None:
        assert plan.step == len(self.plans) + 1, "a gap in step numbers"
        assert len(set(plan.handles)) == len(plan.handles) <= self.spec.max_num_seqs
        assert plan.handles or plan.released or plan.swap_out or plan.swap_in, "an empty plan"
        self.plans.append(plan)
        self._check_columns(plan)
        self._swap(plan)
        sampled: dict[CallHandle, int] = {}
        failures: dict[CallHandle, str] = {}
        for row, handle in enumerate(plan.handles):
            call = self.calls[handle]
            if call.failed:
                continue
            self._take_blocks(plan, row, call)
            token = self._run(call, plan.chunks.get(row, 1))
            if call.spec.call_id in self.failing:
                call.failed = True
                failures[handle] = "broken on purpose"
            elif token is not None:
                call.tokens.append(token)
                sampled[handle] = token
        for handle in plan.released:
            del self.calls[handle]
        self.last_batch = set(plan.handles)
        self.results.append(self._result(plan, sampled, failures))

    def _swap(self, plan: Plan) -> None:
        size = self.spec.block_size
        for device, host in plan.swap_out:
            assert 0 < device < self.spec.num_blocks
            assert 0 <= host < self.spec.host_blocks
            self.host_kv[host] = list(self.kv.get(device, [None] * size))
        for host, device in plan.swap_in:
            assert 0 < device < self.spec.num_blocks
            self.kv[device] = list(self.host_kv[host])

    def _check_columns(self, plan: Plan) -> None:
        joined = {row for row, handle in enumerate(plan.handles) if handle not in self.last_batch}
        assert set(plan.joined) == joined
        assert all(count > 1 for count in plan.chunks.values())
        tokens = len(plan.handles) - len(plan.chunks) + sum(plan.chunks.values())
        assert tokens <= self.spec.max_num_batched_tokens

    def _take_blocks(self, plan: Plan, row: int, call: HeldCall) -> None:
        blocks = list(plan.blocks.get(row, ()))
        assert all(0 < block < self.spec.num_blocks for block in blocks)
        if row in plan.joined:
            call.table, call.computed = blocks, plan.joined[row]
        else:
            call.table += blocks
        assert len(call.table) == len(set(call.table))

    def _run(self, call: HeldCall, count: int) -> int | None:
        digest = 0
        end = call.computed + count
        assert end <= len(call.tokens), "the plan computes tokens that do not exist"
        assert end < self.spec.max_model_len
        for position in range(call.computed, end):
            before = self._read(call, position - 1) if position else root_of(call.spec)
            digest = digest_of(before, call.tokens[position])
            self._write(call, position, digest)
        call.computed = end
        self.computed_tokens += count
        return token_after(digest) if end == len(call.tokens) else None

    def _read(self, call: HeldCall, position: int) -> int:
        size = self.spec.block_size
        value = self.kv[call.table[position // size]][position % size]
        assert value is not None, "the plan reads KV that was never written"
        return value

    def _write(self, call: HeldCall, position: int, digest: int) -> None:
        size = self.spec.block_size
        block = call.table[position // size]
        self.kv.setdefault(block, [None] * size)[position % size] = digest

    def _result(
        self, plan: Plan, sampled: dict[CallHandle, int], failures: dict[CallHandle, str]
    ) -> StepCompleted:
        return StepCompleted(
            executor_id=self.spec.executor_id,
            step=plan.step,
            handles=list(sampled),
            tokens=list(sampled.values()),
            step_s=self.step_s if plan.handles else 0.0,
            failures=failures,
            swap_bytes=self.spec.block_bytes * (len(plan.swap_out) + len(plan.swap_in)),
            swap_s=0.001 * (len(plan.swap_out) + len(plan.swap_in)),
        )
