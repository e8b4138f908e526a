"""What the program API refuses before anything is rendered: a table of requests and the errors they get."""

import math

import pytest

from frontend_svc import program_limits as limits
from frontend_svc.errors import Refused
from frontend_svc.program_calls import CallRequest, ChatPrompt, Sampling, TextPrompt, TokenPrompt

TEXT = TextPrompt("hello")


def sampled(**options: object) -> CallRequest:
    return CallRequest(prompt=TEXT, sampling=Sampling(**options))


OUT_OF_RANGE = "PARAMETER_OUT_OF_RANGE"
INVALID = "PARAMETER_INVALID"

REFUSED = [
    # request, reason, field, limit contains, value contains
    (sampled(temperature=-0.1), OUT_OF_RANGE, "sampling.temperature", "0..2", "-0.1"),
    (sampled(temperature=2.1), OUT_OF_RANGE, "sampling.temperature", "0..2", "2.1"),
    (sampled(temperature=math.nan), OUT_OF_RANGE, "sampling.temperature", "0..2", "nan"),
    (sampled(top_p=0.0), OUT_OF_RANGE, "sampling.top_p", "> 0", "0"),
    (sampled(top_p=1.01), OUT_OF_RANGE, "sampling.top_p", "<= 1", "1.01"),
    (sampled(top_k=2**31), OUT_OF_RANGE, "sampling.top_k", "0..", ""),
    (sampled(max_tokens=0), OUT_OF_RANGE, "sampling.max_tokens", "1..", "0"),
    (sampled(max_tokens=2**31), OUT_OF_RANGE, "sampling.max_tokens", "1..", ""),
    (sampled(max_tokens=4, min_tokens=5), OUT_OF_RANGE, "sampling.min_tokens", "max_tokens = 4", "5"),
    (sampled(presence_penalty=2.5), OUT_OF_RANGE, "sampling.presence_penalty", "-2..2", "2.5"),
    (sampled(frequency_penalty=-2.5), OUT_OF_RANGE, "sampling.frequency_penalty", "-2..2", "-2.5"),
    (sampled(repetition_penalty=0.0), OUT_OF_RANGE, "sampling.repetition_penalty", "> 0", "0"),
    (sampled(repetition_penalty=math.inf), OUT_OF_RANGE, "sampling.repetition_penalty", "finite", "inf"),
    (sampled(logprobs=21), OUT_OF_RANGE, "sampling.logprobs", "0..20", "21"),
    (sampled(stop=("x",) * 17), OUT_OF_RANGE, "sampling.stop", "16 items", "17 items"),
    (sampled(stop=("",)), OUT_OF_RANGE, "sampling.stop", "1..256", "0 characters"),
    (sampled(stop=("x" * 257,)), OUT_OF_RANGE, "sampling.stop", "1..256", "257 characters"),
    (sampled(stop_token_ids=(1,) * 257), OUT_OF_RANGE, "sampling.stop_token_ids", "256", "257 items"),
    (sampled(stop_token_ids=(2**31,)), "INVALID_TOKEN_ID", "sampling.stop_token_ids", "", str(2**31)),
    (sampled(json_schema="{"), INVALID, "sampling.json_schema", "JSON", "1 characters"),
    (sampled(json_schema="[" * 100_000), INVALID, "sampling.json_schema", "JSON", "100000 characters"),
    (sampled(json_schema="3"), INVALID, "sampling.json_schema", "object", "int"),
    (sampled(json_schema=" " * 131_073), OUT_OF_RANGE, "sampling.json_schema", "131072", "131073"),
    (CallRequest(prompt=TextPrompt("")), "PROMPT_EMPTY", "text", "1 token", ""),
    (CallRequest(prompt=TokenPrompt(())), "PROMPT_EMPTY", "token_ids", "1 token", ""),
    (CallRequest(prompt=ChatPrompt(())), "PROMPT_EMPTY", "chat.messages", "1 token", ""),
    (CallRequest(prompt=TokenPrompt((2**32 - 1,))), "INVALID_TOKEN_ID", "token_ids", "", str(2**32 - 1)),
    (CallRequest(prompt=ChatPrompt((("robot", "x"),))), INVALID, "chat.messages.role", "assistant", "robot"),
    (CallRequest(prompt=ChatPrompt((("user", "x"),) * 4097)), OUT_OF_RANGE, "chat.messages", "4096", "4097"),
    (CallRequest(prompt=TEXT, thread_id="t" * 129), OUT_OF_RANGE, "thread_id", "128", "129 characters"),
    (CallRequest(prompt=TEXT, thread_id="a\nb"), INVALID, "thread_id", "printable", "3 characters"),
    (CallRequest(prompt=TEXT, program_id="p" * 129), OUT_OF_RANGE, "program_id", "128", "129"),
    (CallRequest(prompt=TEXT, parent_call_ids=("c",) * 65), OUT_OF_RANGE, "parent_call_ids", "64", "65"),
    (CallRequest(prompt=TEXT, parent_call_ids=("c" * 129,)), OUT_OF_RANGE, "parent_call_ids", "128", "129"),
    (CallRequest(prompt=TEXT, model="m" * 257), OUT_OF_RANGE, "model", "256", "257"),
]


@pytest.mark.parametrize(("request_", "reason", "field", "limit", "value"), REFUSED)
def test_a_broken_limit_names_field_limit_and_value(
    request_: CallRequest, reason: str, field: str, limit: str, value: str
) -> None:
    with pytest.raises(Refused) as caught:
        limits.check_call(request_)
    refused = caught.value.refusal
    assert (refused.reason, refused.field) == (reason, field)
    assert limit in refused.limit
    assert value in refused.value
    assert len(refused.message) + len(refused.value) < 400


@pytest.mark.parametrize(
    "request_",
    [
        sampled(temperature=0.0, top_p=1.0, top_k=0, min_tokens=0, logprobs=0),
        sampled(temperature=2.0, logprobs=20, seed=-(2**63), max_tokens=4, min_tokens=4),
        sampled(stop=("x" * 256,) * 16, stop_token_ids=(0, 2**31 - 1), ignore_eos=True),
        sampled(json_schema='{"type": "object"}'),
        CallRequest(prompt=TokenPrompt((0, 5)), thread_id="t" * 128, parent_call_ids=("c" * 128,) * 64),
        CallRequest(prompt=ChatPrompt((("system", ""), ("tool", "é")))),
    ],
)
def test_limits_are_inclusive(request_: CallRequest) -> None:
    limits.check_call(request_)


@pytest.mark.parametrize("session", ["", "s" * 256, "agent/7: Zürich 東京"])
def test_session_keys_that_fit(session: str) -> None:
    limits.check_session(session)


@pytest.mark.parametrize("session", ["s" * 257, "a\x00b", "tab\t", "\u202egnp", "\ud800"])
def test_session_keys_that_do_not_are_not_echoed(session: str) -> None:
    with pytest.raises(Refused) as caught:
        limits.check_session(session)
    assert caught.value.refusal.field == "session"
    assert caught.value.refusal.value == f"{len(session)} characters"
    assert session not in caught.value.refusal.message


def test_a_class_name_has_64_characters_at_most() -> None:
    limits.check_class_name("c" * 64)
    with pytest.raises(Refused, match="64"):
        limits.check_class_name("c" * 65)


@pytest.mark.parametrize("interval_s", [-1.0, 0.05, math.nan, math.inf, 3601.0])
def test_watch_intervals_are_bounded(interval_s: float) -> None:
    with pytest.raises(Refused) as caught:
        limits.check_interval_s(interval_s)
    assert caught.value.refusal.field == "interval_s"


@pytest.mark.parametrize("check", [limits.check_program_id, limits.check_call_id])
@pytest.mark.parametrize("id_", ["", "x" * 129, "a\nb"])
def test_what_cannot_be_an_id_is_refused(check, id_: str) -> None:
    with pytest.raises(Refused):
        check(id_)
