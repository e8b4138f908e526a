"""A planner for the tests of the vLLM runner, to be obeyed.

It is a toy: it knows nothing of programs, runs every call that is not held back, cuts prompts to a token
budget and hands out blocks from a free list. Tests preempt through it:

    hold(call)              pause in place: the blocks stay
    evict(call)             the blocks go to others; the call is computed again from its first token
    swap(call)              the next plan copies the blocks to the host and gives them away; the plan after
                            `resume` copies them back to others
    forget_swap_in(call)    the broken `resume` of a swapped call: other blocks, but nothing is copied back
    forget_recompute(call)  the broken variant: fresh blocks, but the call claims that they hold its KV
    move_everything()       the executor forgets all (reset); calls continue there as if they came from
    elsewhere
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from executor_svc.runner import AnnouncedCall, Pending, Runner, StepPlan, StepResult

BLOCK_SIZE = 32
HOST_BLOCKS = 256
PARAMS_FORMAT = "vllm-0.32.0/msgpack"
EOS = 2
STEPS_MAX = 5000


def encode_sampling(request: dict[str, Any]) -> bytes:
    """The params of a request of tests/integration/workload.py, as a frontend would send them."""
    from vllm.sampling_params import SamplingParams, StructuredOutputsParams

    sampling = SamplingParams(**request["sampling"])
    if schema := request.get("json_schema"):
        sampling.structured_outputs = StructuredOutputsParams(json=schema)
        sampling.structured_outputs._backend = "xgrammar"
    sampling.update_from_generation_config({"eos_token_id": EOS}, EOS)
    return msgspec.msgpack.encode({"v": 1, "sampling": sampling, "reasoning_ended": None})


@dataclass(eq=False)
class ToyCall:
    """A call as the planner sees it."""

    request: dict[str, Any]
    handle: int = 0
    outputs: list[int] = field(default_factory=list)
    payloads: list[bytes] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    host: list[int] = field(default_factory=list)
    """Host blocks that hold its KV while it is swapped."""
    computed: int = 0
    in_flight: int = 0
    held: bool = False
    in_batch: bool = False
    ended: bool = False
    failure: str = ""

    @property
    def prompt(self) -> list[int]:
        return self.request["prompt"]

    @property
    def num_tokens(self) -> int:
        return len(self.prompt) + len(self.outputs) + self.in_flight

    def take(self, token: int) -> None:
        """A sampled token; those that come after the end are the waste of a plan sent ahead."""
        self.in_flight -= 1
        if self.ended:
            return
        self.outputs.append(token)
        sampling = self.request["sampling"]
        full = len(self.outputs) >= sampling["max_tokens"]
        self.ended = full or (token == EOS and not sampling.get("ignore_eos"))


class ToyPlanner:
    """Plans for one runner."""

    def __init__(
        self, runner: Runner, *, token_budget: int = 2048, rows_max: int = 64, ahead: bool = False
    ) -> None:
        self.runner = runner
        self.calls: list[ToyCall] = []
        self._token_budget = token_budget
        self._rows_max = rows_max
        self._ahead = ahead
        self._pending: Pending | None = None
        self._busy = False
        self.swap_bytes = 0
        self.swap_s = 0.0
        self._forget()

    def _forget(self) -> None:
        self._free = list(range(1, self.runner.info.num_blocks))
        self._free_host = list(range(self.runner.info.host_blocks))
        self._swap_out: list[tuple[int, int]] = []
        self._swap_in: list[tuple[int, int]] = []
        self._step = 0
        self._by_handle: dict[int, ToyCall] = {}
        self._released: list[int] = []

    def submit(self, request: dict[str, Any], **announced: Any) -> ToyCall:
        """Announces a call; `announced` overrides fields of the announcement."""
        call = ToyCall(request)
        self.calls.append(call)
        self._announce(call, **announced)
        return call

    def _announce(self, call: ToyCall, **announced: Any) -> None:
        call.handle = len(self._by_handle) + 1
        self._by_handle[call.handle] = call
        fields: dict[str, Any] = {
            "handle": call.handle,
            "call_id": f"call-{call.handle}",
            "program_id": "program",
            "prompt_token_ids": call.prompt,
            "output_token_ids": list(call.outputs),
            "params_format": PARAMS_FORMAT,
            "needs_preparation": "json_schema" in call.request,
        }
        fields |= announced
        if "params" not in fields:
            fields["params"] = encode_sampling(call.request)
        self.runner.announce(AnnouncedCall(**fields))
        if fields["needs_preparation"]:
            call.failure = self.runner.prepare(call.handle)

    def hold(self, call: ToyCall) -> None:
        """Pauses in place."""
        call.held = True

    def evict(self, call: ToyCall) -> None:
        """Takes the blocks; a call with a token in flight keeps them until that has come."""
        call.held = True
        self._settle()
        self._free.extend(call.blocks)
        call.blocks, call.computed = [], 0

    def forget_recompute(self, call: ToyCall) -> None:
        """Breaks the rule: new blocks that are claimed to hold the KV of the old ones."""
        computed = call.computed
        self.evict(call)
        call.computed = computed
        call.blocks = [self._free.pop(0) for _ in range(-(-computed // BLOCK_SIZE))]

    def swap(self, call: ToyCall) -> None:
        """Moves the blocks to the host, also while a token is in flight: the copies come after that step."""
        call.held = True
        filled = -(-call.computed // BLOCK_SIZE)
        call.host = [self._free_host.pop() for _ in range(filled)]
        self._swap_out += zip(call.blocks[:filled], call.host, strict=True)
        self._free[:0] = call.blocks  # first in line: whoever comes next writes into them
        call.blocks = []

    def forget_swap_in(self, call: ToyCall) -> None:
        """Breaks the rule: lets a swapped call back without the content of its blocks."""
        self.resume(call)
        self._free_host += [host for host, _ in self._swap_in]
        self._swap_in = []

    def resume(self, call: ToyCall) -> None:
        """Lets a held call back, a swapped one in blocks from the end of the line."""
        call.held = False
        if call.ended:
            self._free_host += call.host
        else:
            fresh = [self._free.pop() for _ in call.host]
            self._swap_in += zip(call.host, fresh, strict=True)
            call.blocks += fresh
        call.host = []

    def move_everything(self) -> None:
        """The executor registers anew; every live call continues from its tokens."""
        self._settle()
        self.runner.reset()
        self._forget()
        for call in self.calls:
            call.blocks, call.host, call.computed, call.in_batch = [], [], 0, False
            if not call.ended and not call.failure:
                self._announce(call)

    def run(self, steps: int = STEPS_MAX) -> None:
        """Steps until nothing is left to run, or so many times."""
        for _ in range(steps):
            if not self.step():
                break

    def finish(self) -> None:
        """Runs everything to its end and releases it."""
        self.run()
        self._settle()
        self.step()
        assert all(call.ended or call.failure for call in self.calls)

    def step(self) -> bool:
        """Sends one plan. Returns whether it or the one before had rows."""
        plan = self._plan()
        before, self._pending = self._pending, self.runner.execute(plan)
        if before is not None:
            self._absorb(before.result())
        if not self._ahead:
            self._settle()
        busy, self._busy = self._busy or bool(plan.handles), bool(plan.handles)
        return busy

    def _settle(self) -> None:
        if self._pending is not None:
            self._absorb(self._pending.result())
            self._pending = None

    def _plan(self) -> StepPlan:
        self._step += 1
        rows = self._choose()
        chunks, joined, blocks = {}, {}, {}
        for index, (call, chunk) in enumerate(rows):
            if chunk != 1:
                chunks[index] = chunk
            new = self._grow(call, call.computed + chunk)
            if not call.in_batch:
                joined[index], blocks[index] = call.computed, list(call.blocks)
            elif new:
                blocks[index] = new
            call.computed += chunk
            call.in_flight += call.computed == call.num_tokens
        for call in self.calls:
            call.in_batch = False
        for call, _ in rows:
            call.in_batch = True
        released, self._released = self._released, []
        swap_out, self._swap_out = self._swap_out, []
        swap_in, self._swap_in = self._swap_in, []
        self._free_host += [host for host, _ in swap_in]  # not before: swap_out comes first
        return StepPlan(
            step=self._step,
            handles=[call.handle for call, _ in rows],
            chunks=chunks,
            joined=joined,
            blocks=blocks,
            released=released,
            swap_out=swap_out,
            swap_in=swap_in,
        )

    def _choose(self) -> list[tuple[ToyCall, int]]:
        left, rows = self._token_budget, []
        for call in self.calls:
            waits = call.held or call.ended or call.failure or (call.in_flight and not call.in_batch)
            full = len(call.outputs) + call.in_flight >= call.request["sampling"]["max_tokens"]
            chunk = min(left, call.num_tokens - call.computed)
            if not waits and not full and chunk > 0 and len(rows) < self._rows_max:
                rows.append((call, chunk))
                left -= chunk
        return rows

    def _grow(self, call: ToyCall, tokens: int) -> list[int]:
        new = []
        while len(call.blocks) * BLOCK_SIZE < tokens:
            new.append(self._free.pop(0))
            call.blocks.append(new[-1])
        return new

    def _absorb(self, result: StepResult) -> None:
        self.swap_bytes += result.swap_bytes
        self.swap_s += result.swap_s
        for handle, failure in result.failures.items():
            call = self._by_handle[handle]
            assert not call.failure, "a failure is reported once"
            call.failure = failure
            self._end(call)
        for handle, token in zip(result.handles, result.tokens, strict=True):
            call = self._by_handle[handle]
            if call.ended:
                call.in_flight -= 1
                continue
            call.take(token)
            if payload := result.payloads.get(handle):
                call.payloads.append(payload)
            if call.ended:
                self._end(call)

    def _end(self, call: ToyCall) -> None:
        self._free.extend(call.blocks)
        call.blocks = []
        self._released.append(call.handle)


def generate(planner: ToyPlanner, requests: Sequence[dict[str, Any]]) -> list[ToyCall]:
    """Submits and runs all requests to their end."""
    calls = [planner.submit(request) for request in requests]
    planner.finish()
    return calls
