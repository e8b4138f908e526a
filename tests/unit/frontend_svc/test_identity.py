"""Which program a request belongs to: the table of docs/identity.md, row by row."""

import json

import pytest

from frontend_svc.errors import Refused
from frontend_svc.identity import KEY_CHARS_MAX, SOURCES, Identity, body_keys, resolve

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def identify(headers: dict[str, str] | None = None, **body: object) -> Identity:
    return resolve(headers or {}, body_keys(json.dumps(body).encode()))


@pytest.mark.parametrize(
    ("source", "headers", "body", "key"),
    [
        ("body.session_id", {}, {"session_id": "k"}, "k"),
        ("x-session-id", {"x-session-id": "k"}, {}, "k"),
        ("x-dynamo-session-id", {"x-dynamo-session-id": "k"}, {}, "k"),
        ("x-claude-code-session-id", {"x-claude-code-session-id": "k"}, {}, "k"),
        ("session-id", {"session-id": "k"}, {}, "k"),
        ("x-session-affinity", {"x-session-affinity": "k"}, {}, "k"),
        ("x-litellm-session-id", {"x-litellm-session-id": "k"}, {}, "k"),
        ("metadata.program_id", {}, {"metadata": {"program_id": "k"}}, "k"),
        ("metadata.session_id", {}, {"metadata": {"session_id": "k"}}, "k"),
        ("vllm_xargs.session_id", {}, {"vllm_xargs": {"session_id": "k"}}, "k"),
        ("x-llm-d-inference-fairness-id", {"x-llm-d-inference-fairness-id": "k"}, {}, "k"),
        ("traceparent", {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}, {}, TRACE),
    ],
)
def test_each_known_client_opens_a_program_by_its_own_key(
    source: str, headers: dict[str, str], body: dict[str, object], key: str
) -> None:
    identity = identify(headers, **body)
    assert (identity.source, identity.session_key, identity.program_id) == (source, key, "")


def test_a_program_id_names_an_existing_program_not_a_key() -> None:
    assert identify(program_id="p").program_id == "p"
    by_header = identify({"x-autellix-program-id": "p"})
    assert (by_header.program_id, by_header.session_key) == ("p", "")


def test_the_first_source_of_the_list_wins() -> None:
    everything = {name: name for name in ("x-autellix-program-id", "x-session-id", "x-litellm-session-id")}
    assert identify(everything, program_id="b", session_id="s").source == "body.program_id"
    assert identify(everything, session_id="s").source == "body.session_id"
    assert identify(everything).source == "x-autellix-program-id"
    assert [source.name for source in SOURCES].index("traceparent") == len(SOURCES) - 1


@pytest.mark.parametrize(
    "body",
    [
        {"user": "ann"},
        {"safety_identifier": "ann"},
        {"prompt_cache_key": "app"},
        {"metadata": {"user_id": "ann"}},
    ],
)
def test_people_and_applications_are_not_programs(body: dict[str, object]) -> None:
    assert identify(**body).anonymous


@pytest.mark.parametrize("traceparent", ["", "garbage", f"00-{'0' * 32}-00f067aa0ba902b7-01", f"00-{TRACE}"])
def test_a_broken_traceparent_names_nothing(traceparent: str) -> None:
    assert identify({"traceparent": traceparent}).anonymous


def test_a_child_session_is_a_thread_of_its_parents_program() -> None:
    headers = {"x-dynamo-session-id": "child", "x-dynamo-parent-session-id": "root"}
    identity = identify(headers)
    assert (identity.session_key, identity.thread_id) == ("root", "child")


@pytest.mark.parametrize(
    ("session", "thread"),
    [("x-claude-code-session-id", "x-claude-code-agent-id"), ("session-id", "thread-id")],
)
def test_threads_travel_beside_the_session(session: str, thread: str) -> None:
    assert identify({session: "s", thread: "t"}).thread_id == "t"
    assert identify({"x-session-id": "s", thread: "t"}).thread_id != "t"
    assert identify({session: "s", thread: "t", "x-autellix-thread-id": "ours"}).thread_id == "ours"


def test_a_final_marker_ends_a_program_but_a_childs_does_not() -> None:
    assert identify({"x-autellix-program-final": "true"}).final
    assert identify({"x-dynamo-session-final": "true", "x-dynamo-session-id": "s"}).final
    child = {"x-dynamo-session-final": "true", "x-dynamo-session-id": "s", "x-dynamo-parent-session-id": "r"}
    assert not identify(child).final


def test_parents_class_and_deadline() -> None:
    identity = identify(
        {
            "x-autellix-parent-call-ids": "a, b,,c",
            "x-autellix-program-class": "coding",
            "x-autellix-deadline-s": "1.5",
        }
    )
    assert identity.parent_call_ids == ("a", "b", "c")
    assert (identity.class_name, identity.deadline_s) == ("coding", 1.5)


@pytest.mark.parametrize(
    ("headers", "body", "field"),
    [
        ({}, {"program_id": 7}, "body.program_id"),
        ({}, {"session_id": "k" * (KEY_CHARS_MAX + 1)}, "body.session_id"),
        ({"x-session-id": "a\x00b"}, {}, "x-session-id"),
        ({"x-autellix-deadline-s": "-1"}, {}, "x-autellix-deadline-s"),
        ({"x-autellix-deadline-s": "nan"}, {}, "x-autellix-deadline-s"),
        (
            {"x-autellix-parent-call-ids": ",".join("abc" for _ in range(65))},
            {},
            "x-autellix-parent-call-ids",
        ),
        ({"x-autellix-program-class": "c" * 65}, {}, "x-autellix-program-class"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(
    headers: dict[str, str], body: dict[str, object], field: str
) -> None:
    with pytest.raises(Refused) as caught:
        identify(headers, **body)
    assert (caught.value.refusal.reason, caught.value.refusal.field) == ("PARAMETER_OUT_OF_RANGE", field)
    assert "kkkk" not in caught.value.refusal.message


@pytest.mark.parametrize("body", [b"", b"\xff\x00", b"[1]", b"{", b"[" * 100_000])
def test_a_body_that_is_no_object_has_no_keys(body: bytes) -> None:
    assert resolve({}, body_keys(body)).anonymous


@pytest.mark.parametrize(
    ("body", "single"),
    [
        ({"prompt": "text"}, True),
        ({"messages": []}, True),
        ({"n": 1}, True),
        ({"n": 3}, False),
        ({"prompt": ["a", "b"]}, False),
        ({"use_beam_search": True}, False),
    ],
)
def test_a_request_that_may_make_several_calls_is_known(body: dict[str, object], single: bool) -> None:
    assert identify(**body).single is single
