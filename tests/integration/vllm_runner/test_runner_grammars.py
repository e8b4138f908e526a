"""Grammars under a reasoning parser: nothing is bound until the reasoning ends, also across a move."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from executor_svc.runner import AnnouncedCall
from executor_svc.vllm_runner.config import VllmRunnerConfig, apply_environment
from tests.integration.vllm_runner.toy_planner import PARAMS_FORMAT, encode_sampling

REASONING_END = 700
SAMPLING: dict[str, Any] = {"temperature": 0.0, "max_tokens": 8}
REQUEST = {"prompt": [1, 400, 401], "sampling": SAMPLING, "json_schema": '{"type": "object"}'}


@pytest.fixture(scope="module")
def vllm_config(tiny_model: Path) -> Any:
    """Settings with a reasoning parser that ends at one token."""
    config = VllmRunnerConfig(
        model=str(tiny_model),
        dtype="float32",
        kv_cache_gib=0.1,
        max_model_len=512,
        enforce_eager=True,
        reasoning_parser="ends_at_one_token",
    )
    apply_environment(config)
    from vllm.reasoning import ReasoningParser, ReasoningParserManager

    from executor_svc.vllm_runner.startup import load_vllm_config

    class EndsAtOneToken(ReasoningParser):
        def __init__(self, tokenizer: Any, **kwargs: Any) -> None:
            if kwargs.get("impossible"):
                raise ValueError("template kwargs make no sense")
            super().__init__(tokenizer, **kwargs)

        def is_reasoning_end(self, input_ids: Sequence[int]) -> bool:
            return REASONING_END in input_ids

    ReasoningParserManager.register_module("ends_at_one_token", module=EndsAtOneToken, force=True)
    return load_vllm_config(config)


@pytest.fixture
def grammars(vllm_config: Any) -> Iterator[Any]:
    from executor_svc.vllm_runner.grammars import Grammars

    grammars = Grammars(vllm_config)
    yield grammars
    grammars.close()


def announced(outputs: list[int], **params: Any) -> AnnouncedCall:
    encoded = msgspec.msgpack.decode(encode_sampling(REQUEST)) | params
    return AnnouncedCall(
        handle=1,
        call_id="c",
        program_id="p",
        prompt_token_ids=REQUEST["prompt"],
        output_token_ids=outputs,
        params=msgspec.msgpack.encode(encoded),
        params_format=PARAMS_FORMAT,
        needs_preparation=True,
    )


def admitted(vllm_config: Any, outputs: list[int], **params: Any) -> Any:
    from executor_svc.vllm_runner.admission import admit

    call = admit(announced(outputs, **params), "0.1", vllm_config.model_config, "xgrammar")
    assert not call.failure
    return call


def is_constrained(grammars: Any, call: Any) -> bool:
    mask = grammars.bitmask([call]).grammar_bitmask
    return not np.all(mask == -1)


def test_reasoning_is_free_and_the_answer_is_not(grammars: Any, vllm_config: Any) -> None:
    call = admitted(vllm_config, [])
    assert grammars.prepare(call) == ""
    for token in (900, 901, REASONING_END):
        assert not is_constrained(grammars, call)
        grammars.advance(call, token)
    assert not call.failure
    assert is_constrained(grammars, call)


@pytest.mark.parametrize(("outputs", "constrained"), [([900, 901], False), ([900, REASONING_END], True)])
def test_a_moved_call_is_where_it_was(
    grammars: Any, vllm_config: Any, outputs: list[int], constrained: bool
) -> None:
    call = admitted(vllm_config, outputs)
    assert grammars.prepare(call) == ""
    assert is_constrained(grammars, call) is constrained


def test_the_frontend_may_know_that_there_is_no_reasoning(grammars: Any, vllm_config: Any) -> None:
    call = admitted(vllm_config, [], reasoning_ended=True)
    assert grammars.prepare(call) == ""
    assert is_constrained(grammars, call)


def test_a_parser_that_cannot_be_made_fails_its_call(grammars: Any, vllm_config: Any) -> None:
    call = admitted(vllm_config, [], reasoning_parser_kwargs={"impossible": True})
    assert "template kwargs make no sense" in grammars.prepare(call)


def test_a_token_against_the_grammar_fails_its_call(grammars: Any, vllm_config: Any) -> None:
    call = admitted(vllm_config, [REASONING_END])
    assert grammars.prepare(call) == ""
    grammars.advance(call, 900)
    assert call.failure == "grammar does not allow the sampled token 900"
