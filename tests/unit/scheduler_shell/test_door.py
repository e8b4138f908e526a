"""What is refused at the door, rule by rule, with field, limit and value."""

import math
import tracemalloc
from array import array

import pytest

from protos.autellix.scheduler.v1 import scheduler_pb2 as pb
from scheduler_svc.core.errors import Refusal, Refused
from scheduler_svc.core.events import CallSpec
from scheduler_svc.core.ids import FrontendId
from scheduler_svc.shell.door import Door, DoorLimits
from scheduler_svc.shell.executor_registry import ModelFacts
from svc_runtime.block_hashes import hash_prompt
from svc_runtime.columns import pack_i32
from svc_runtime.rpc_errors import STATUS_OF_REASON
from tests.unit.scheduler_shell.fake_executor import PARAMS_FORMAT
from tests.unit.scheduler_shell.fake_frontend import submit

FACTS = {"test-model": ModelFacts(vocab_size=100, params_formats=frozenset({PARAMS_FORMAT}))}
LIMITS = DoorLimits(
    frontend_calls_max=4, params_bytes_max=16, text_chars_max=32, parent_calls_max=2, stop_tokens_max=3
)


def door() -> Door:
    return Door(LIMITS, FACTS.get)


def admit(request: pb.Submit, frontend_calls: int = 0) -> CallSpec:
    return door().admit(request, FrontendId("frontend#1"), frontend_calls)


def refusal_of(request: pb.Submit, frontend_calls: int = 0) -> Refusal:
    with pytest.raises(Refused) as refused:
        admit(request, frontend_calls)
    return refused.value.refusal


@pytest.mark.parametrize(
    ("changed", "reason", "field"),
    [
        ({"prompt_token_ids": b""}, "PROMPT_EMPTY", "prompt_token_ids"),
        ({"prompt_token_ids": b"12345"}, "PARAMETER_OUT_OF_RANGE", "prompt_token_ids"),
        ({"prompt_token_ids": pack_i32([1, 100])}, "INVALID_TOKEN_ID", "prompt_token_ids"),
        ({"prompt_token_ids": pack_i32([-1, 1])}, "INVALID_TOKEN_ID", "prompt_token_ids"),
        ({"output_token_ids": pack_i32([100])}, "INVALID_TOKEN_ID", "output_token_ids"),
        ({"output_token_ids": pack_i32([1] * 8)}, "PARAMETER_OUT_OF_RANGE", "output_token_ids"),
        ({"output_token_ids": b"1"}, "PARAMETER_OUT_OF_RANGE", "output_token_ids"),
        ({"stop_token_ids": b"1"}, "PARAMETER_OUT_OF_RANGE", "stop_token_ids"),
        ({"stop_token_ids": pack_i32([1, 2, 3, 4])}, "PARAMETER_OUT_OF_RANGE", "stop_token_ids"),
        ({"max_tokens": 0}, "PARAMETER_OUT_OF_RANGE", "max_tokens"),
        ({"min_tokens": 9}, "PARAMETER_OUT_OF_RANGE", "min_tokens"),
        ({"deadline_s": math.nan}, "PARAMETER_OUT_OF_RANGE", "deadline_s"),
        ({"deadline_s": math.inf}, "PARAMETER_OUT_OF_RANGE", "deadline_s"),
        ({"deadline_s": 0.0}, "DEADLINE_EXCEEDED", "deadline_s"),
        ({"deadline_s": -1.0}, "DEADLINE_EXCEEDED", "deadline_s"),
        ({"call_id": ""}, "PARAMETER_OUT_OF_RANGE", "call_id"),
        ({"call_id": "x" * 33}, "PARAMETER_OUT_OF_RANGE", "call_id"),
        ({"thread_id": "x" * 33}, "PARAMETER_OUT_OF_RANGE", "thread_id"),
        ({"cache_salt": "x" * 33}, "PARAMETER_OUT_OF_RANGE", "cache_salt"),
        ({"parent_call_ids": ["a", "b", "c"]}, "PARAMETER_OUT_OF_RANGE", "parent_call_ids"),
        ({"parent_call_ids": ["x" * 33]}, "PARAMETER_OUT_OF_RANGE", "parent_call_ids"),
        ({"params": b"x" * 17}, "PARAMETER_OUT_OF_RANGE", "params"),
        ({"params_format": "test/2"}, "PARAMS_FORMAT_UNKNOWN", "params_format"),
        ({"prompt_block_hashes": bytes(48)}, "PARAMETER_OUT_OF_RANGE", "hash_block_size"),
        (
            {"prompt_block_hashes": bytes(32), "hash_block_size": 1},
            "PARAMETER_OUT_OF_RANGE", "prompt_block_hashes",
        ),
        (
            {"prompt_block_hashes": bytes(17), "hash_block_size": 3},
            "PARAMETER_OUT_OF_RANGE", "prompt_block_hashes",
        ),
        (
            {"prompt_block_hashes": bytes(16), "hash_block_size": 4},
            "PARAMETER_OUT_OF_RANGE", "prompt_block_hashes",
        ),
    ],
)  # fmt: skip
def test_a_bad_call_is_refused_with_the_field_the_limit_and_the_value(
    changed: dict[str, object], reason: str, field: str
) -> None:
    refusal = refusal_of(submit(1, **changed))
    assert (refusal.reason, refusal.field) == (reason, field)
    assert refusal.limit
    assert refusal.value
    assert refusal.field in refusal.message
    assert reason in STATUS_OF_REASON


@pytest.mark.parametrize(
    "block_size", [1, 2, 4], ids=["a block a token", "a block and a half", "no full block"]
)
def test_hashes_of_the_prompt_s_full_blocks_reach_the_core(block_size: int) -> None:
    prompt = [1, 2, 3]
    hashes = hash_prompt("tenant", "salt", prompt, block_size)
    call = admit(submit(1, prompt, cache_salt="salt", prompt_block_hashes=hashes, hash_block_size=block_size))
    assert (call.prompt_block_hashes, call.hash_block_size) == (hashes, block_size)


@pytest.mark.parametrize("block_size", [0, 1])
def test_hashes_may_be_left_out(block_size: int) -> None:
    call = admit(submit(1, [1, 2, 3], hash_block_size=block_size))
    assert call.prompt_block_hashes == b""


@pytest.mark.parametrize(
    ("tenant", "salt", "prompt"),
    [("another", "salt", [1, 2, 3]), ("tenant", "", [1, 2, 3]), ("tenant", "salt", [3, 2, 1])],
    ids=["tenant", "salt", "prompt"],
)
def test_hashes_of_another_chain_are_refused(tenant: str, salt: str, prompt: list[int]) -> None:
    hashes = hash_prompt(tenant, salt, prompt, 1)
    refusal = refusal_of(
        submit(1, [1, 2, 3], cache_salt="salt", prompt_block_hashes=hashes, hash_block_size=1)
    )
    assert (refusal.reason, refusal.field) == ("PARAMETER_OUT_OF_RANGE", "prompt_block_hashes")
    assert refusal.value == hashes[:16].hex()


def test_a_token_id_out_of_the_vocabulary_is_named() -> None:
    refusal = refusal_of(submit(1, prompt_token_ids=pack_i32([5, 100, 7])))
    assert (refusal.limit, refusal.value) == ("0 <= id < 100", "100")


def test_a_sound_call_reaches_the_core_as_it_was_sent() -> None:
    call = admit(
        submit(
            5, [1, 2, 99], thread_id="t", parent_call_ids=["a"], output_token_ids=pack_i32([7]), min_tokens=3,
            stop_token_ids=pack_i32([8, 9]), eos_token_id=0, needs_preparation=True, cache_salt="s",
            skip_reading_prefix_cache=True, deadline_s=1.5,
        )
    )  # fmt: skip
    expected = CallSpec(
        call_id="call-5", frontend_id="frontend#1", stream_handle=5, tenant="tenant", program_id="program",
        thread_id="t", parent_call_ids=("a",), model="test-model", prompt_token_ids=array("i", [1, 2, 99]),
        output_token_ids=array("i", [7]), max_tokens=8, min_tokens=3, stop_token_ids=frozenset({8, 9}),
        eos_token_id=0,
        params=b"params", params_format=PARAMS_FORMAT, needs_preparation=True, skip_reading_prefix_cache=True,
        cache_salt="s", deadline_s=1.5,
    )  # fmt: skip
    assert call == expected


def test_a_call_that_waits_costs_no_more_than_its_columns() -> None:
    prompt_tokens = 50_000
    message = submit(1, [])
    message.prompt_token_ids = pack_i32(range(1000, 1000 + prompt_tokens))
    door = Door(LIMITS, lambda model: None)
    tracemalloc.start()
    try:
        call = door.admit(message, FrontendId("frontend#1"), 0)
        kept_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(call.prompt_token_ids) == prompt_tokens
    assert kept_bytes < 5 * prompt_tokens


def test_an_absent_end_of_sequence_and_deadline_stay_absent() -> None:
    call = admit(submit(1))
    assert (call.eos_token_id, call.deadline_s) == (None, None)


def test_a_model_never_seen_is_left_to_the_core() -> None:
    assert admit(submit(1, model="unknown", prompt_token_ids=pack_i32([10**6]))).model == "unknown"


def test_a_full_frontend_is_told_when_to_come_back() -> None:
    refusal = refusal_of(submit(1), frontend_calls=4)
    assert (refusal.reason, refusal.limit, refusal.value) == ("QUEUE_FULL", "4", "4")
    assert refusal.retry_after_s == LIMITS.retry_after_s
    assert admit(submit(1), frontend_calls=3)


def test_a_closed_door_refuses_everything_and_counts() -> None:
    closed = door()
    closed.admit(submit(1), FrontendId("f"), 0)
    closed.close()
    with pytest.raises(Refused) as refused:
        closed.admit(submit(2), FrontendId("f"), 0)
    assert refused.value.refusal.reason == "SHUTTING_DOWN"
    assert closed.refused_calls == 1
