"""The vLLM runner against plain `LLM.generate`: the same tokens, whatever the plans do to a call on the
way."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bench.mixed_requests import greedy_requests, prompt, sampled_requests
from executor_svc.runner import Runner
from protos.autellix.executor.v1 import executor_pb2 as pb
from tests.integration import baseline
from tests.integration.vllm_runner.toy_planner import BLOCK_SIZE, ToyCall, ToyPlanner, generate

GREEDY = greedy_requests(18)
SAMPLED = sampled_requests(15)
# Seeded calls first: where the token budget cuts one's prompt, plain vLLM on CPU dies (see WorkerExtension).
REQUESTS = SAMPLED + GREEDY

Answers = list[dict[str, Any]]


@pytest.fixture(scope="session")
def answers(tiny_model: Path) -> Answers:
    """What LLM.generate says to REQUESTS."""
    return baseline.generate(tiny_model, REQUESTS)


def tokens(calls: list[ToyCall]) -> list[list[int]]:
    assert not [call.failure for call in calls if call.failure]
    return [call.outputs for call in calls]


def expected(answers: Answers) -> list[list[int]]:
    return [answer["token_ids"] for answer in answers]


def preempting(
    planner: ToyPlanner,
    preempt: Callable[[ToyCall], None],
    resume: Callable[[ToyCall], None] | None = None,
    every: int = 7,
) -> list[ToyCall]:
    """Runs REQUESTS; every few steps a third of the calls leave, and come back three steps later."""
    calls = [planner.submit(request) for request in REQUESTS]
    preempted, turn = 0, 0
    while planner.step():
        turn += 1
        if turn % every == 0:
            for call in calls[turn % 3 :: 3]:
                if not call.ended:
                    preempt(call)
                    preempted += 1
            planner.run(3)
            for call in calls:
                (resume or planner.resume)(call)
    planner.finish()
    assert preempted >= 40
    return calls


@pytest.mark.parametrize("ahead", [False, True], ids=["lockstep", "one_ahead"])
def test_tokens_equal_plain_vllm(runner: Runner, answers: Answers, ahead: bool) -> None:
    planner = ToyPlanner(runner, ahead=ahead)
    assert tokens(generate(planner, REQUESTS)) == expected(answers)


def test_chunked_prefill_is_invisible_also_to_seeded_calls(runner: Runner, answers: Answers) -> None:
    planner = ToyPlanner(runner, token_budget=48, rows_max=16)
    assert tokens(generate(planner, REQUESTS)) == expected(answers)


@pytest.mark.parametrize("ahead", [False, True], ids=["lockstep", "one_ahead"])
def test_pause_in_place(runner: Runner, answers: Answers, ahead: bool) -> None:
    planner = ToyPlanner(runner, ahead=ahead)
    assert tokens(preempting(planner, planner.hold)) == expected(answers)


@pytest.mark.parametrize("ahead", [False, True], ids=["lockstep", "one_ahead"])
def test_blocks_lost_and_recomputed(runner: Runner, answers: Answers, ahead: bool) -> None:
    planner = ToyPlanner(runner, token_budget=256, ahead=ahead)
    assert tokens(preempting(planner, planner.evict)) == expected(answers)


@pytest.mark.parametrize("ahead", [False, True], ids=["lockstep", "one_ahead"])
def test_blocks_swapped_and_returned_to_other_places(runner: Runner, answers: Answers, ahead: bool) -> None:
    planner = ToyPlanner(runner, ahead=ahead)
    assert tokens(preempting(planner, planner.swap)) == expected(answers)
    assert planner.swap_bytes > 100 * runner.info.block_bytes


def test_swap_in_left_out_on_purpose_changes_the_tokens(runner: Runner, answers: Answers) -> None:
    planner = ToyPlanner(runner)
    calls = preempting(planner, planner.swap, planner.forget_swap_in)
    wrong = [call.outputs != right for call, right in zip(calls, expected(answers), strict=True)]
    assert sum(wrong) > len(wrong) / 2


def test_recompute_left_out_on_purpose_changes_the_tokens(runner: Runner, answers: Answers) -> None:
    planner = ToyPlanner(runner)
    wrong = [a != b for a, b in zip(preempting_any(planner), expected(answers), strict=True)]
    assert sum(wrong) > len(wrong) / 2


def preempting_any(planner: ToyPlanner) -> list[list[int]]:
    """As `preempting` with the broken preemption; a grammar may well reject what comes out."""
    return [call.outputs for call in preempting(planner, planner.forget_recompute)]


@pytest.mark.parametrize("ahead", [False, True], ids=["lockstep", "one_ahead"])
def test_calls_continue_on_an_executor_that_never_saw_them(
    runner: Runner, answers: Answers, ahead: bool
) -> None:
    planner = ToyPlanner(runner, token_budget=512, ahead=ahead)
    calls = [planner.submit(request) for request in REQUESTS]
    for steps in (3, 9, 14):
        planner.run(steps)
        planner.move_everything()
    planner.finish()
    assert tokens(calls) == expected(answers)


def test_calls_that_moved_are_preempted_and_moved_again(runner: Runner, answers: Answers) -> None:
    planner = ToyPlanner(runner, token_budget=512)
    calls = [planner.submit(request) for request in SAMPLED]
    planner.run(12)
    planner.move_everything()
    planner.run(6)
    for call in calls[::2]:
        planner.evict(call)
    planner.run(2)
    for call in calls:
        planner.resume(call)
    planner.run(3)
    planner.move_everything()
    planner.finish()
    assert tokens(calls) == expected(answers[: len(SAMPLED)])


def test_shared_blocks_serve_another_call(runner: Runner, answers: Answers) -> None:
    """A prefix hit: the second call starts from blocks that the first one filled."""
    planner = ToyPlanner(runner)
    first = planner.submit(GREEDY[0])
    planner.step()
    second = planner.submit(GREEDY[3])
    shared = 96 // BLOCK_SIZE
    assert first.prompt[:96] == second.prompt[:96]
    second.blocks, second.computed = first.blocks[:shared], shared * BLOCK_SIZE
    planner.run()
    assert [first.outputs, second.outputs] == [
        answer["token_ids"] for answer in answers[len(SAMPLED) :][0:4:3]
    ]


def test_logprobs_equal_plain_vllm_and_are_cut_to_the_call(runner: Runner, answers: Answers) -> None:
    planner = ToyPlanner(runner)
    calls = [planner.submit(request) for request in SAMPLED]
    wide = {"prompt": prompt_of(20), "sampling": {"temperature": 0.0, "max_tokens": 30, "logprobs": 7}}
    planner.submit(wide)
    planner.finish()
    asked = [
        (call, answer)
        for call, answer in zip(calls, answers[: len(SAMPLED)], strict=True)
        if "logprobs" in call.request["sampling"]
    ]
    assert asked
    for call, answer in asked:
        tables = [pb.Logprobs.FromString(payload).sampled for payload in call.payloads]
        assert {table.width for table in tables} == {4}
        assert [int(np.frombuffer(table.token_ids, "<i4")[0]) for table in tables] == call.outputs
        sampled = [float(np.frombuffer(table.logprobs, "<f4")[0]) for table in tables]
        assert sampled == pytest.approx(answer["logprobs"], abs=1e-4)


def test_prompt_logprobs_come_whole_from_a_cut_prompt(runner: Runner) -> None:
    request = {
        "prompt": prompt_of(150),
        "sampling": {"temperature": 0.0, "max_tokens": 4, "prompt_logprobs": 2},
    }
    tables = []
    for budget in (2048, 40):
        runner.reset()
        (call,) = generate(ToyPlanner(runner, token_budget=budget), [request])
        assert len(call.payloads) == 1, "with the first token, and only then"
        tables.append(pb.Logprobs.FromString(call.payloads[0]).prompt)
    whole, cut = (np.frombuffer(table.logprobs, "<f4").reshape(-1, 3) for table in tables)
    assert whole.shape == (149, 3)
    assert np.frombuffer(tables[0].token_ids, "<i4").reshape(-1, 3)[:, 0].tolist() == request["prompt"][1:]
    np.testing.assert_allclose(whole, cut, atol=1e-4)


def test_step_seconds_are_reported(runner: Runner) -> None:
    planner = ToyPlanner(runner)
    planner.submit(GREEDY[0])
    result = runner.execute(planner._plan()).result()
    assert 0 < result.step_s < 60
    assert result.step == 1


def prompt_of(length: int) -> list[int]:
    return prompt(random.Random(length), length)


def test_params_survive_the_frontends_encoder() -> None:
    from vllm.sampling_params import SamplingParams

    from executor_svc.params_codec import decode_params
    from frontend_svc.params_codec import PARAMS_FORMAT, encode_params

    sampling = SamplingParams(temperature=0.5, seed=3, stop_token_ids=[7], bad_words=["x"])
    sampling._bad_words_token_ids = [[9, 10]]
    kwargs = {"chat_template_kwargs": {"thinking": True}}
    sent = SimpleNamespace(sampling_params=sampling, reasoning_ended=False, reasoning_parser_kwargs=kwargs)
    decoded = decode_params(encode_params(sent), PARAMS_FORMAT)  # type: ignore[arg-type]
    assert decoded.sampling == sampling
    assert decoded.sampling.bad_words_token_ids == [[9, 10]]
    assert decoded.reasoning_ended is False
    assert decoded.reasoning_parser_kwargs == kwargs


def test_workload_covers_what_it_must() -> None:
    kinds = json.dumps(SAMPLED)
    assert all(
        word in kinds for word in ("seed", "repetition_penalty", "min_tokens", "logprobs", "json_schema")
    )
