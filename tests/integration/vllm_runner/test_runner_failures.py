"""One bad call ends alone; a plan that contradicts the runner is refused whole."""

from typing import Any

import msgspec
import pytest

from executor_svc.runner import PlanViolation, Runner, StepPlan
from executor_svc.vllm_runner import ModelMissing, UnsupportedModel, VllmRunnerConfig, make_runner
from tests.integration.vllm_runner.toy_planner import ToyCall, ToyPlanner, encode_sampling

PROMPT = [1, 400, 401, 402]
GREEDY: dict[str, Any] = {
    "prompt": PROMPT,
    "sampling": {"temperature": 0.0, "max_tokens": 8, "ignore_eos": True},
}


def sampling(**fields: Any) -> dict[str, Any]:
    return {"prompt": PROMPT, "sampling": {"temperature": 0.0, "max_tokens": 8, "ignore_eos": True} | fields}


def assert_fails_alone(runner: Runner, request: dict[str, Any], words: str, **announced: Any) -> None:
    """The bad call fails with `words`; calls before and after it in the batch get all their tokens."""
    runner.reset()
    reference = ToyPlanner(runner)
    alone = reference.submit(GREEDY)
    reference.finish()
    runner.reset()
    planner = ToyPlanner(runner)
    first = planner.submit(GREEDY)
    bad = planner.submit(request, **announced)
    last = planner.submit(GREEDY)
    planner.finish()
    assert words in bad.failure
    assert bad.outputs == []
    assert first.outputs == last.outputs == alone.outputs
    assert len(alone.outputs) == 8


@pytest.mark.parametrize(
    ("announced", "words"),
    [
        ({"params": b"\xc1 not msgpack"}, "cannot be decoded"),
        ({"params": msgspec.msgpack.encode({"v": 1, "sampling": {}, "more": 1})}, "cannot be decoded"),
        ({"params": msgspec.msgpack.encode({"v": 2, "sampling": {}})}, "version is 2"),
        ({"params": msgspec.msgpack.encode({"v": 1, "sampling": {"temperature": -1.0}})}, "temperature"),
        ({"params_format": "vllm-9/msgpack"}, "vllm-9/msgpack"),
        ({"prompt_token_ids": [1, 2048]}, "token id 2048"),
        ({"prompt_token_ids": []}, "empty"),
        ({"prompt_token_ids": [1] * 1025}, "1025 tokens"),
        ({"output_token_ids": [-1]}, "token id -1"),
    ],
)
def test_unusable_announcements(runner: Runner, announced: dict[str, Any], words: str) -> None:
    assert_fails_alone(runner, GREEDY, words, **announced)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"logit_bias": {5000: 1.0}}, "logit_bias"),
        ({"allowed_token_ids": [2048]}, "allowed_token_ids"),
        ({"stop_token_ids": [99999]}, "stop_token_ids"),
        ({"logprobs": 500}, "logprobs"),
        ({"temperature": 0.0, "logprob_token_ids": [4096]}, "logprob_token_ids"),
    ],
)
def test_parameters_outside_the_model(runner: Runner, fields: dict[str, Any], words: str) -> None:
    assert_fails_alone(runner, sampling(**fields), words)


def test_bad_words_outside_the_vocabulary(runner: Runner) -> None:
    from vllm.sampling_params import SamplingParams

    params = SamplingParams(temperature=0.0, max_tokens=8, bad_words=["x"])
    params._bad_words_token_ids = [[4000]]
    encoded = msgspec.msgpack.encode({"v": 1, "sampling": params})
    assert_fails_alone(runner, GREEDY, "bad_words", params=encoded)


@pytest.mark.parametrize("schema", ['{"type": "nonsense"}', "{"])
def test_grammar_that_does_not_compile(runner: Runner, schema: str) -> None:
    assert_fails_alone(runner, GREEDY | {"json_schema": schema}, "grammar cannot be compiled")


def test_grammar_that_earlier_tokens_do_not_follow(runner: Runner) -> None:
    request = GREEDY | {"json_schema": '{"type": "object"}'}
    assert_fails_alone(runner, request, "generated before", output_token_ids=[700])


def test_grammar_that_nobody_asked_to_prepare(runner: Runner) -> None:
    request = GREEDY | {"json_schema": '{"type": "object"}'}
    assert_fails_alone(runner, request, "not announced for preparation", needs_preparation=False)


def test_grammar_of_another_backend(runner: Runner) -> None:
    from vllm.sampling_params import SamplingParams, StructuredOutputsParams

    params = SamplingParams(structured_outputs=StructuredOutputsParams(json={"type": "object"}))
    params.structured_outputs._backend = "guidance"
    encoded = msgspec.msgpack.encode({"v": 1, "sampling": params})
    assert_fails_alone(runner, GREEDY, "guidance", params=encoded, needs_preparation=True)


def test_grammar_that_breaks_in_a_step(runner: Runner) -> None:
    """A grammar object that raises fails its call, and only that."""

    class Broken:
        def is_terminated(self) -> bool:
            raise RuntimeError("matcher is gone")

    planner = ToyPlanner(runner)
    fine = planner.submit(GREEDY | {"json_schema": '{"type": "object"}'})
    bad = planner.submit(GREEDY | {"json_schema": '{"type": "object"}'})
    plain = planner.submit(GREEDY)
    planner.step()
    runner._book.calls[bad.handle].grammar.structured_output_request.grammar = Broken()  # type: ignore[attr-defined]
    planner.finish()
    assert "matcher is gone" in bad.failure
    assert not fine.failure
    assert len(fine.outputs) == len(plain.outputs) == 8


def test_call_planned_before_its_grammar_is_ready(runner: Runner) -> None:
    from executor_svc.runner import AnnouncedCall

    request = GREEDY | {"json_schema": '{"type": "object"}'}
    call = AnnouncedCall(
        handle=1,
        call_id="c",
        program_id="p",
        prompt_token_ids=PROMPT,
        output_token_ids=[],
        params=encode_sampling(request),
        params_format="vllm-0.32.0/msgpack",
        needs_preparation=True,
    )
    runner.announce(call)
    plan = StepPlan(step=1, handles=[1], chunks={0: 4}, joined={0: 0}, blocks={0: [1]}, released=[])
    with pytest.raises(PlanViolation, match="before its grammar is ready"):
        runner.execute(plan)
    assert runner.prepare(1) == ""
    assert len(runner.execute(plan).result().tokens) == 1


def test_a_refused_plan_changes_nothing(runner: Runner) -> None:
    planner = ToyPlanner(runner)
    call: ToyCall = planner.submit(GREEDY)
    planner.step()
    for handles, step in (([77], 2), ([call.handle], 5)):
        with pytest.raises(PlanViolation):
            runner.execute(StepPlan(step=step, handles=handles, chunks={}, joined={}, blocks={}, released=[]))
    planner.finish()
    assert len(call.outputs) == 8


def test_reset_forgets_everything(runner: Runner) -> None:
    planner = ToyPlanner(runner)
    planner.submit(GREEDY)
    planner.run(3)
    runner.reset()
    worker = runner._engine.executor.driver_worker.worker.model_runner  # type: ignore[attr-defined]
    assert worker.requests == {}
    assert worker.input_batch.num_reqs == 0
    with pytest.raises(PlanViolation, match="not known"):
        runner.execute(StepPlan(step=1, handles=[1], chunks={}, joined={}, blocks={}, released=[]))


def test_released_calls_leave_the_worker(runner: Runner) -> None:
    planner = ToyPlanner(runner)
    for _ in range(3):
        planner.submit(GREEDY)
    planner.finish()
    assert runner._engine.executor.driver_worker.worker.model_runner.requests == {}  # type: ignore[attr-defined]


def test_model_that_is_not_there() -> None:
    with pytest.raises(ModelMissing, match="/no/such/model"):
        make_runner(VllmRunnerConfig(model="/no/such/model"))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"structured_output_backend": "auto"}, "structured_output_backend"),
        ({"engine_args": {"runner": "pooling"}}, "pooling"),
    ],
)
def test_settings_that_plans_cannot_express(
    loaded_runner: Runner, tiny_model: Any, fields: dict[str, Any], words: str
) -> None:
    config = VllmRunnerConfig(model=str(tiny_model), dtype="float32", kv_cache_gib=0.1, **fields)
    with pytest.raises(UnsupportedModel, match=words):
        make_runner(config)


def test_nan_logits_fail_their_call(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the setting `fail_on_nan` switches on; the second row's logits are spoilt."""
    model = runner._engine.executor.driver_worker.worker.model_runner.model  # type: ignore[attr-defined]
    whole = model.compute_logits

    def spoilt(hidden_states: Any) -> Any:
        logits = whole(hidden_states)
        logits[1] = float("nan")
        return logits

    monkeypatch.setenv("VLLM_COMPUTE_NANS_IN_LOGITS", "1")
    planner = ToyPlanner(runner)
    calls = [planner.submit(GREEDY) for _ in range(3)]
    planner.step()
    monkeypatch.setattr(model, "compute_logits", spoilt)
    planner.step()
    monkeypatch.undo()
    planner.finish()
    assert calls[1].failure == "the model produced 2048 NaN logits"
    assert calls[0].outputs == calls[2].outputs
    assert len(calls[0].outputs) == 8
