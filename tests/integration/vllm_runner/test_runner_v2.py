"""The asynchronous path and the words for model runner V2, against a stand-in that obeys V2's rules.

V2 needs Triton and a GPU; what can be checked without is what we tell it. The stand-in keeps slots and tokens
as V2 does (`finish_requests`, `add_requests` and `update_requests` in vllm/v1/worker/gpu/model_runner.py),
computes a next token from all tokens of a call, and answers only when its future is asked.
"""

import dataclasses
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from executor_svc.runner import Runner
from tests.integration.vllm_runner.toy_planner import ToyPlanner, generate

SLOTS = 64


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
        self._output: Any = None

    def collective_rpc(self, method: str, args: tuple = ()) -> None:
        assert method == "autellix_abandon_step"

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
        known = self.slots[req_id]
        self.computed[req_id] += tokens
        assert self.computed[req_id] <= len(known)
        if self.computed[req_id] < len(known):
            return []
        known.append(next_token(known))
        return [known[-1]]

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
