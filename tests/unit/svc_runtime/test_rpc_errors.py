"""Typed errors: built, sent, read back."""

import grpc
import pytest
from google.rpc import status_pb2
from hypothesis import given
from hypothesis import strategies as st

from svc_runtime.rpc_errors import (
    DETAILS_KEY,
    HTTP_OF_REASON,
    STATUS_OF_REASON,
    TEXT_LIMIT_CHARS,
    parse_error,
    rich_error,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=50)


class FailedRpc(grpc.RpcError):
    """A finished RPC as a client sees it."""

    def __init__(self, code, message, trailers):
        self._parts = code, message, trailers

    def code(self):
        return self._parts[0]

    def details(self):
        return self._parts[1]

    def trailing_metadata(self):
        return self._parts[2]


def failed(status: status_pb2.Status) -> FailedRpc:
    code = next(code for code in grpc.StatusCode if code.value[0] == status.code)
    return FailedRpc(code, status.message, ((DETAILS_KEY, status.SerializeToString()),))


@given(
    reason=st.sampled_from(sorted(STATUS_OF_REASON)),
    message=TEXT,
    named=st.fixed_dictionaries({"field": TEXT, "limit": TEXT, "value": TEXT}),
    retry_after_s=st.none() | st.integers(0, 10**6).map(lambda ms: ms / 1000),
)
def test_an_error_reads_back_as_it_was_sent(reason, message, named, retry_after_s):
    failure = parse_error(failed(rich_error(None, reason, message, **named, retry_after_s=retry_after_s)))
    assert (failure.code, failure.reason, failure.message) == (STATUS_OF_REASON[reason], reason, message)
    assert (failure.field, failure.limit, failure.value) == (named["field"], named["limit"], named["value"])
    assert failure.retry_after_s == retry_after_s


def test_a_code_given_wins_over_the_table():
    assert rich_error(grpc.StatusCode.ABORTED, "QUEUE_FULL", "").code == grpc.StatusCode.ABORTED.value[0]


def test_long_texts_fit_into_the_trailer():
    status = rich_error(None, "PROMPT_TOO_LONG", "x" * 100_000, value="y" * 100_000)
    assert status.ByteSize() < 8 * 1024
    assert len(parse_error(failed(status)).value) == TEXT_LIMIT_CHARS


@pytest.mark.parametrize("trailers", [None, (), ((DETAILS_KEY, b"\xff\xff garbage"),), (("other", "x"),)])
def test_errors_of_other_software_have_no_reason(trailers):
    failure = parse_error(FailedRpc(grpc.StatusCode.UNAVAILABLE, "connection refused", trailers))
    assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "")
    assert failure.message == "connection refused"


def test_another_domain_is_not_ours():
    status = rich_error(None, "QUEUE_FULL", "")
    status.details[0].value = status.details[0].value.replace(b"autellix", b"autellux")
    assert parse_error(failed(status)).reason == ""


def test_http_and_grpc_agree_on_whose_fault_it_is():
    ours = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}
    for reason, status in STATUS_OF_REASON.items():
        assert (HTTP_OF_REASON[reason] >= 500) == (status in ours), reason
