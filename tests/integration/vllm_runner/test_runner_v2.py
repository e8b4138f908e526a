"""The asynchronous path and the words for model runner V2, against a stand-in that obeys V2's rules.

V2 needs Triton and a GPU; what can be checked without is what we tell it. The stand-in keeps slots and tokens
as V2 does (`finish_requests`, `add_requests` and `update_requests` in vllm/v1/worker/gpu/model_runner.py),
writes each computed token into its block, makes a next token of all tokens that the call's blocks hold, and
answers only when its future is asked. Copies between the tiers happen in the order of their launch.
"""

import dataclasses
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from executor_svc.runner import Runner
from tests.integration.vllm_runner.toy_planner import BLOCK_SIZE, ToyCall, ToyPlanner, generate

SLOTS = 64
COPY_S = 60.0
"""What a block's copy takes, it says: longer than any step here."""


class LazyFuture(Future):
    """Computes when asked, like vLLM's AsyncOutputFuture."""

    def __init__(self, compute: Callable[[], Any]) -> None:
        super().__init__()
        self._compute = compute

    def result(self, timeout: float | None = None) -> Any:
        if not self.done():
            self.set_result(self._compute())
        return super().result()


class V2StandIn:
    """Executor and model runner V2 in one."""

    def __init__(self) -> None:
        self.slots: dict[str, list[int]] = {}
        self.computed: dict[str, int] = {}
        self.blocks: dict[str, list[int]] = {}
        self.unanswered: list[LazyFuture] = []
        self.deepest = 0
        self.device: dict[int, dict[int, int]] = {}
        """block -> slot -> token"""
        self.host: dict[int, dict[int, int]] = {}
        self.copied = 0
        self.copies_fail = False
        self._output: Any = None

    def collective_rpc(self, method: str, args: tuple = (), non_block: bool = False) -> Future | None:
        if method == "autellix_abandon_step":
            return None
        assert non_block, "the result thread may be reading answers"
        return {"autellix_swap": self._swap, "autellix_swap_s": self._swap_s}[method](*args)

    def _swap(self, swap_out: Any, swap_in: Any) -> Future:
        done: Future = Future()
        if self.copies_fail:
            done.set_exception(RuntimeError("the copy engine is gone"))
            return done
        for device, host in swap_out.tolist():
            self.host[host] = dict(self.device.get(device, {}))
        for host, device in swap_in.tolist():
            self.device[device] = dict(self.host[host])
        self.copied = len(swap_out) + len(swap_in)
        done.set_result([None])
        return done

    def _swap_s(self) -> Future:
        copied = self.copied
        return LazyFuture(lambda: [copied * COPY_S / 2, copied * COPY_S])

    def execute_model(self, output: Any, non_block: bool = False) -> Any:
        from vllm.v1.outputs import EMPTY_MODEL_RUNNER_OUTPUT

        for req_id in output.finished_req_ids:
            self.slots.pop(req_id, None)
        for req_id in output.preempted_req_ids or ():
            del self.slots[req_id]
        for new in output.scheduled_new_reqs:
            assert new.req_id not in self.slots, "left without being preempted"
            self.slots[new.req_id] = list(new.prefill_token_ids)
            self.computed[new.req_id] = new.num_computed_tokens
            self.blocks[new.req_id] = list(new.block_ids[0])
        assert len(self.slots) <= SLOTS, "No free indices"
        cached = output.scheduled_cached_reqs
        assert not cached.resumed_req_ids
        for req_id, computed, blocks in zip(
            cached.req_ids, cached.num_computed_tokens, cached.new_block_ids, strict=True
        ):
            assert self.computed[req_id] == computed
            self.blocks[req_id].extend(blocks[0] if blocks else [])
        self._output = output
        done: Future = Future()
        done.set_result(None if output.num_scheduled_tokens else EMPTY_MODEL_RUNNER_OUTPUT)
        return done

    def sample_tokens(self, grammar: Any, non_block: bool) -> LazyFuture:
        sampled = {
            req_id: self._advance(req_id, n) for req_id, n in self._output.num_scheduled_tokens.items()
        }
        future = LazyFuture(lambda: self._answer(future, sampled))
        self.unanswered.append(future)
        self.deepest = max(self.deepest, len(self.unanswered))
        return future

    def _advance(self, req_id: str, tokens: int) -> list[int]:
        known, start = self.slots[req_id], self.computed[req_id]
        end = self.computed[req_id] = start + tokens
        assert end <= len(known)
        for position in range(start, end):
            block, slot = self._place(req_id, position)
            self.device.setdefault(block, {})[slot] = known[position]
        if end < len(known):
            return []
        places = [self._place(req_id, position) for position in range(end)]
        known.append(next_token([self.device.get(block, {}).get(slot, -1) for block, slot in places]))
        return [known[-1]]

    def _place(self, req_id: str, position: int) -> tuple[int, int]:
        return self.blocks[req_id][position // BLOCK_SIZE], position % BLOCK_SIZE

    def _answer(self, future: LazyFuture, sampled: dict[str, list[int]]) -> Any:
        from vllm.v1.outputs import ModelRunnerOutput

        assert self.unanswered[0] is future, "answers are read in step order"
        self.unanswered.pop(0)
        index = {req_id: row for row, req_id in enumerate(sampled)}
        return ModelRunnerOutput(list(sampled), index, sampled_token_ids=list(sampled.values()))


def next_token(tokens: list[int]) -> int:
    return 300 + zlib.crc32(repr(tokens).encode()) % 1700


def reference(request: dict[str, Any]) -> list[int]:
    tokens = list(request["prompt"])
    for _ in range(request["sampling"]["max_tokens"]):
        tokens.append(next_token(tokens))
    return tokens[len(request["prompt"]) :]


@pytest.fixture
def v2(loaded_runner: Runner, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Runner, V2StandIn]]:
    """A runner in V2 mode over the stand-in; the settings are those of the loaded runner."""
    from executor_svc.vllm_runner.runner import VllmRunner

    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")
    stand_in = V2StandIn()
    engine = dataclasses.replace(loaded_runner._engine, executor=stand_in)  # type: ignore[attr-defined]
    runner = VllmRunner(engine, loaded_runner.info)
    yield runner, stand_in
    runner._grammars.close()


def requests(count: int) -> list[dict[str, Any]]:
    return [
        {
            "prompt": [1, *range(400, 420 + 7 * n)],
            "sampling": {"temperature": 0.0, "max_tokens": 10 + n, "ignore_eos": True},
        }
        for n in range(count)
    ]


@pytest.mark.parametrize("ahead", [False, True], ids=["lockstep", "one_ahead"])
def test_tokens_arrive_in_order(v2: tuple[Runner, V2StandIn], ahead: bool) -> None:
    runner, stand_in = v2
    calls = generate(ToyPlanner(runner, token_budget=64, ahead=ahead), requests(8))
    assert [call.outputs for call in calls] == [reference(call.request) for call in calls]
    assert stand_in.deepest == (2 if ahead else 1)
    assert stand_in.slots == {}


@pytest.mark.parametrize("ahead", [False, True], ids=["lockstep", "one_ahead"])
def test_pauses_and_evictions_free_slots_and_come_back_whole(
    v2: tuple[Runner, V2StandIn], ahead: bool
) -> None:
    runner, stand_in = v2
    planner = ToyPlanner(runner, token_budget=200, ahead=ahead)
    calls = [planner.submit(request) for request in requests(9)]
    for turn in range(8):
        planner.run(2)
        for call in calls[turn % 3 :: 3]:
            if not call.ended:
                (planner.hold if turn % 2 else planner.evict)(call)
        planner.run(2)
        assert len(stand_in.slots) < len(calls)
        for call in calls:
            planner.resume(call)
    planner.finish()
    assert [call.outputs for call in calls] == [reference(call.request) for call in calls]


def swapping(planner: ToyPlanner, resume: Callable[[ToyCall], None]) -> list[ToyCall]:
    """Runs nine calls, of which a third after the other goes to the host and comes back."""
    calls = [planner.submit(request) for request in requests(9)]
    for turn in range(6):
        planner.run(2)
        for call in calls[turn % 3 :: 3]:
            if not call.ended:
                planner.swap(call)
        planner.run(2)
        for call in calls:
            resume(call)
    planner.finish()
    return calls


@pytest.mark.parametrize("ahead", [False, True], ids=["lockstep", "one_ahead"])
def test_copies_are_launched_in_the_order_of_the_steps(v2: tuple[Runner, V2StandIn], ahead: bool) -> None:
    planner = ToyPlanner(v2[0], token_budget=200, ahead=ahead)
    calls = swapping(planner, planner.resume)
    assert [call.outputs for call in calls] == [reference(call.request) for call in calls]
    blocks, remainder = divmod(planner.swap_bytes, v2[0].info.block_bytes)
    assert (remainder, blocks >= 20) == (0, True)
    assert planner.swap_s == pytest.approx(blocks * COPY_S), "the slowest rank's"


def test_the_stand_in_misses_what_is_not_copied_back(v2: tuple[Runner, V2StandIn]) -> None:
    planner = ToyPlanner(v2[0], token_budget=200, ahead=True)
    calls = swapping(planner, planner.forget_swap_in)
    wrong = [call.outputs != reference(call.request) for call in calls]
    assert sum(wrong) > len(wrong) / 2


def test_the_seconds_of_copies_are_not_the_steps(v2: tuple[Runner, V2StandIn]) -> None:
    planner = ToyPlanner(v2[0])
    call, other = planner.submit(requests(1)[0]), planner.submit(requests(2)[1])
    planner.run(3)
    assert v2[0].execute(planner._plan()).result().step_s > 0
    planner.swap(call)
    result = v2[0].execute(planner._plan()).result()
    assert (result.handles, result.step_s, result.swap_s) == ([other.handle], 0.0, COPY_S)


def test_copies_that_fail_fail_the_step(v2: tuple[Runner, V2StandIn]) -> None:
    runner, stand_in = v2
    planner = ToyPlanner(runner)
    call = planner.submit(requests(1)[0])
    planner.run(3)
    planner.swap(call)
    stand_in.copies_fail = True
    with pytest.raises(RuntimeError, match="the copy engine is gone"):
        planner.step()


def test_moved_calls_count_their_output_as_output(v2: tuple[Runner, V2StandIn]) -> None:
    runner, stand_in = v2
    planner = ToyPlanner(runner, ahead=True)
    calls = [planner.submit(request) for request in requests(5)]
    planner.run(6)
    planner.move_everything()
    assert stand_in.slots == {}
    planner.finish()
    assert [call.outputs for call in calls] == [reference(call.request) for call in calls]


def test_a_grammar_waits_for_the_token_before(v2: tuple[Runner, V2StandIn]) -> None:
    """The stand-in samples without looking at bitmasks: the grammar rejects, its call fails alone."""
    runner, stand_in = v2
    planner = ToyPlanner(runner, ahead=True)
    plain = planner.submit(requests(1)[0])
    bound = planner.submit(requests(1)[0] | {"json_schema": '{"type": "object"}'})
    planner.finish()
    assert "grammar does not allow" in bound.failure
    assert plain.outputs == reference(plain.request)
    assert stand_in.unanswered == []
