"""Sampling parameters survive the way from frontend to executor, private fields too.

vllm is imported inside the tests: it brings warnings of its own, which are errors while tests are collected.
"""

from typing import Any

import pytest

from frontend_svc.call_context import CallContext
from frontend_svc.errors import Refused
from protos.autellix.scheduler.v1 import scheduler_pb2 as pb
from svc_runtime.columns import unpack_i32

pytestmark = [pytest.mark.filterwarnings(f"ignore:::{module}") for module in ("torch", "vllm", "xgrammar")]


def submitted(params: Any, **changes: Any) -> pb.Submit:
    """What the frontend sends for a request with these parameters."""
    from vllm.v1.engine import EngineCoreRequest

    from frontend_svc.call_codec import submit_of

    fields: dict[str, Any] = {
        "request_id": "r1",
        "prompt_token_ids": [5, 6, 7],
        "mm_features": None,
        "sampling_params": params,
        "pooling_params": None,
        "arrival_time": 0.0,
        "lora_request": None,
        "cache_salt": None,
        "data_parallel_rank": None,
    }
    context = CallContext(call_id="c", tenant="ann", program_id="p")
    return submit_of(EngineCoreRequest(**(fields | changes)), context, model="m")


def test_every_field_arrives() -> None:
    from vllm.sampling_params import SamplingParams, StructuredOutputsParams

    from executor_svc.params_codec import decode_params

    structured = StructuredOutputsParams(json={"type": "object"})
    params = SamplingParams(
        temperature=0.5, seed=3, max_tokens=9, min_tokens=2, stop_token_ids=[11], logit_bias={4: 1.5},
        logprobs=2, structured_outputs=structured, extra_args={"k": [1, {"a": None}]},
    )  # fmt: skip
    params._eos_token_id = 2
    params._all_stop_token_ids = {2, 11}
    params._bad_words_token_ids = [[1, 2]]
    structured._backend = "xgrammar"

    submit = submitted(params, reasoning_ended=False, reasoning_parser_kwargs={"x": 1})
    decoded = decode_params(submit.params, submit.params_format)

    assert decoded.sampling == params
    assert decoded.sampling._bad_words_token_ids == [[1, 2]]
    assert decoded.sampling._all_stop_token_ids == {2, 11}
    assert decoded.sampling.structured_outputs._backend == "xgrammar"
    assert (decoded.reasoning_ended, decoded.reasoning_parser_kwargs) == (False, {"x": 1})
    assert (submit.eos_token_id, submit.min_tokens, submit.max_tokens) == (2, 2, 9)
    assert (unpack_i32(submit.stop_token_ids), submit.needs_preparation) == ([11], True)


def test_ignoring_the_end_token_leaves_it_out() -> None:
    from vllm.sampling_params import SamplingParams

    assert not submitted(SamplingParams(ignore_eos=True)).HasField("eos_token_id")


@pytest.mark.parametrize(
    ("sampling", "changes", "field"),
    [
        ({}, {"mm_features": [object()]}, "multi_modal_data"),
        ({}, {"lora_request": object()}, "lora_request"),
        ({}, {"resumable": True}, "resumable"),
        ({"extra_args": {"kv_transfer_params": {"a": 1}}}, {}, "kv_transfer_params"),
        ({"thinking_token_budget": 5}, {}, "thinking_token_budget"),
    ],
)
def test_what_cannot_be_carried_is_refused_by_name(
    sampling: dict[str, Any], changes: dict[str, Any], field: str
) -> None:
    from vllm.sampling_params import SamplingParams

    with pytest.raises(Refused) as caught:
        submitted(SamplingParams(**sampling), **changes)
    assert (caught.value.refusal.reason, caught.value.refusal.field) == ("PARAMETER_INVALID", field)
