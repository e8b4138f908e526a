"""The table of live calls: handles, columns, ends."""

import pytest

from frontend_svc.call_table import CallTable
from frontend_svc.errors import ProtocolBroken, Refused
from protos.autellix.scheduler.v1 import scheduler_pb2 as pb
from svc_runtime.columns import pack_i32


def outputs(handles: list[int], tokens: list[int], **rest: object) -> pb.StepOutputs:
    return pb.StepOutputs(handles=pack_i32(handles), tokens=pack_i32(tokens), **rest)


def finished(handle: int) -> pb.CallFinished:
    return pb.CallFinished(handle=handle, reason=pb.FINISH_REASON_LENGTH)


def test_columns_are_split_by_call_in_token_order() -> None:
    table = CallTable(limit=10)
    a, b = table.add(pb.Submit(call_id="a"), "A"), table.add(pb.Submit(call_id="b"), "B")
    ha, hb = a.submit.handle, b.submit.handle

    step = table.apply(outputs([ha, hb, ha], [1, 2, 3], finished=[finished(hb)]))

    assert [(delta.call.tag, delta.token_ids) for delta in step.calls] == [("A", [1, 3]), ("B", [2])]
    assert [delta.finished is not None for delta in step.calls] == [False, True]
    assert a.token_ids == [1, 3]
    assert len(table) == 1


def test_tokens_accumulate_over_messages() -> None:
    table = CallTable(limit=10)
    call = table.add(pb.Submit(), "x")
    for token in (5, 6):
        table.apply(outputs([call.submit.handle], [token]))
    assert call.token_ids == [5, 6]


def test_payloads_belong_to_the_call_of_their_token() -> None:
    table = CallTable(limit=10)
    a, b = (table.add(pb.Submit(), tag).submit.handle for tag in "AB")
    payloads = [pb.TokenPayload(index=2, payload=b"a2"), pb.TokenPayload(index=0, payload=b"a1")]
    step = table.apply(outputs([a, b, a], [1, 2, 3], payloads=payloads))
    assert {delta.call.tag: delta.payloads for delta in step.calls} == {"A": [b"a1", b"a2"], "B": []}


def test_a_handle_in_use_is_not_given_out_again() -> None:
    table = CallTable(limit=10)
    first = table.add(pb.Submit(), "first").submit.handle
    table._next = first  # as after a full turn of the 31 bits
    assert table.add(pb.Submit(), "second").submit.handle != first


def test_nothing_is_delivered_for_a_cancelled_call_and_its_end_frees_it() -> None:
    table = CallTable(limit=10)
    call = table.add(pb.Submit(), "x")
    call.cancelled = True
    step = table.apply(outputs([call.submit.handle], [1], finished=[finished(call.submit.handle)]))
    assert step.calls == []
    assert len(table) == 0


def test_a_full_table_refuses_and_says_when_to_come_back() -> None:
    table = CallTable(limit=1)
    table.add(pb.Submit(), "x")
    with pytest.raises(Refused) as caught:
        table.add(pb.Submit(), "y")
    assert (caught.value.refusal.reason, caught.value.refusal.limit) == ("QUEUE_FULL", "1")
    assert caught.value.refusal.retry_after_s > 0


@pytest.mark.parametrize(
    "message",
    [
        outputs([0], [1, 2]),
        outputs([7], [1]),
        outputs([], [], finished=[finished(7)]),
        outputs([0], [1], payloads=[pb.TokenPayload(index=1)]),
    ],
    ids=["columns of different length", "token of a stranger", "end of a stranger", "payload of no token"],
)
def test_a_message_that_contradicts_the_table_breaks_the_stream(message: pb.StepOutputs) -> None:
    table = CallTable(limit=10)
    assert table.add(pb.Submit(), "x").submit.handle == 0
    with pytest.raises(ProtocolBroken):
        table.apply(message)


def test_clear_returns_only_calls_somebody_waits_for() -> None:
    table = CallTable(limit=10)
    waiting, cancelled = table.add(pb.Submit(), "w"), table.add(pb.Submit(), "c")
    cancelled.cancelled = True
    assert table.clear() == [waiting]
    assert len(table) == 0
