"""Every message survives the trip; every contradiction is a PlanViolation that names the field."""

import dataclasses
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from executor_svc import wire
from executor_svc.runner import PlanViolation, RunnerInfo, StepPlan, StepResult
from protos.autellix.executor.v1 import executor_pb2 as pb
from svc_runtime.columns import pack_i32
from tests.unit.executor_svc.plan_writer import call, call_message, plan, plan_message, read_result

INFO = RunnerInfo(
    model="m",
    model_fingerprint="mf",
    tokenizer_fingerprint="tf",
    runner="r",
    simulated=True,
    block_size=16,
    num_blocks=100,
    host_blocks=7,
    block_bytes=1 << 33,
    max_num_seqs=8,
    max_num_batched_tokens=256,
    max_model_len=1024,
    vocab_size=32000,
    max_plans_in_flight=2,
    params_formats=("a", "b"),
    structured_output_backend="xgrammar",
    reasoning_parser="deepseek_r1",
    world_size=4,
    device="gpu",
    prefix_caching=True,
    dtype="float32",
)


def through_bytes(message: pb.AttachRequest) -> pb.AttachRequest:
    """What the peer gets to see."""
    return pb.AttachRequest.FromString(message.SerializeToString())


def test_registration_carries_everything_of_the_runner() -> None:
    sent = through_bytes(wire.registration(INFO, executor_id="e", epoch=1 << 41)).registration
    for field in dataclasses.fields(RunnerInfo):
        value = getattr(INFO, field.name)
        if field.name in ("block_size", "num_blocks"):
            assert [getattr(group, field.name) for group in sent.kv_groups] == [value]
        elif field.name == "params_formats":
            assert tuple(sent.params_formats) == value
        else:
            assert getattr(sent, field.name) == value, field.name
    assert (sent.executor_id, sent.epoch, sent.protocol_version) == ("e", 1 << 41, wire.PROTOCOL_VERSION)


def test_result_round_trip() -> None:
    result = StepResult(
        step=1 << 40,
        handles=[3, 1],
        tokens=[0, 31999],
        step_s=0.0125,
        failures={7: "bad params"},
        payloads={3: b"\x00logprobs"},
        swap_s=0.5,
        swap_bytes=1 << 40,
    )
    assert read_result(through_bytes(wire.ResultWriter().write(result)).result) == result


def test_each_result_has_its_own_handles() -> None:
    writer, handles = wire.ResultWriter(), (3, 1)
    results = [
        StepResult(step=step, handles=names, tokens=[step] * len(names), step_s=0.01)
        for step, names in ((1, handles), (2, handles), (3, (5, 6)), (4, (3, 1)))
    ]
    read = [read_result(through_bytes(writer.write(result)).result) for result in results]
    assert [(each.handles, each.tokens) for each in read] == [
        ([3, 1], [1, 1]),
        ([3, 1], [2, 2]),
        ([5, 6], [3, 3]),
        ([3, 1], [4, 4]),
    ]


def test_prepared_and_drain_round_trip() -> None:
    prepared = through_bytes(wire.call_prepared(5, "no such grammar")).prepared
    assert (prepared.handle, prepared.error) == (5, "no such grammar")
    assert through_bytes(wire.drain_requested("told to stop")).drain.reason == "told to stop"


def test_announcement_round_trip() -> None:
    announced = call(9, prompt=[0, 5, 31999], output=[8], prepare=True)
    message = pb.CallAnnouncement.FromString(call_message(announced).SerializeToString())
    assert wire.announced_call(message) == announced


@st.composite
def plans(draw: st.DrawFn) -> StepPlan:
    """Well-formed plans of up to 12 rows."""
    handles = draw(st.lists(st.integers(1, 2**31 - 1), unique=True, max_size=12))
    rows = range(len(handles))
    chosen = sorted(draw(st.sets(st.sampled_from(rows)))) if handles else []
    joined = {row: draw(st.integers(0, 5000)) for row in chosen if draw(st.booleans())}
    ids = st.lists(st.integers(1, 10_000), min_size=1, max_size=5)
    released = draw(st.lists(st.integers(1, 2**31 - 1), unique=True, max_size=4))
    pairs = st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99)), max_size=3)
    return plan(
        draw(st.integers(1, 2**63)),
        handles,
        chunks={row: draw(st.integers(2, 5000)) for row in chosen if draw(st.booleans())},
        joined=joined,
        blocks={row: draw(ids) for row in chosen if row in joined or draw(st.booleans())},
        released=[handle for handle in released if handle not in handles],
        swap_out=draw(pairs),
        swap_in=draw(pairs),
    )


@settings(max_examples=100, deadline=None)
@given(plans())
def test_plan_round_trip(planned: StepPlan) -> None:
    message = pb.StepPlan.FromString(plan_message(planned).SerializeToString())
    read = wire.PlanReader().read(message)
    assert dataclasses.replace(read, handles=list(read.handles), blocks=as_lists(read.blocks)) == planned


def as_lists(blocks: Mapping[int, Sequence[int]]) -> dict[int, list[int]]:
    """Block lists, comparable with those of a test."""
    return {row: list(ids) for row, ids in blocks.items()}


def test_a_batch_that_stays_is_the_same_object() -> None:
    reader = wire.PlanReader()
    first, second, other = (
        reader.read(pb.StepPlan(step=step, handles=pack_i32(handles)))
        for step, handles in ((1, [5, 6]), (2, [5, 6]), (3, [6, 5]))
    )
    assert second.handles is first.handles
    assert tuple(other.handles) == (6, 5)


def test_what_was_wrong_once_stays_wrong() -> None:
    reader = wire.PlanReader()
    for _ in range(2):
        with pytest.raises(PlanViolation, match="a handle occurs twice"):
            reader.read(pb.StepPlan(step=1, handles=pack_i32([5, 5])))


def blocks(rows: list[int], counts: list[int], ids: list[int]) -> pb.GroupBlocks:
    """A group's block lists."""
    return pb.GroupBlocks(rows=pack_i32(rows), counts=pack_i32(counts), block_ids=pack_i32(ids))


GOOD = {"step": 1, "handles": pack_i32([5, 6])}
BAD_PLANS = {
    "step": {"step": 0},
    "handles: an int32 column": {"handles": b"\x01\x02\x03"},
    "handles: 0 is no handle": {"handles": pack_i32([5, 0])},
    "handles: a handle occurs twice": {"handles": pack_i32([5, 5])},
    "released_handles: -1": {"released_handles": pack_i32([-1])},
    "released handle is a row": {"released_handles": pack_i32([6])},
    "chunk_rows: rows are not ascending": {"chunk_rows": pack_i32([1, 0]), "chunk_tokens": pack_i32([2, 2])},
    "chunk_rows: a row is outside": {"chunk_rows": pack_i32([2]), "chunk_tokens": pack_i32([2])},
    "chunk_rows: a row is outside the": {"chunk_rows": pack_i32([-1]), "chunk_tokens": pack_i32([2])},
    "chunk_rows: 1 rows but 2 values": {"chunk_rows": pack_i32([0]), "chunk_tokens": pack_i32([2, 2])},
    "chunk_rows: a value is 0": {"chunk_rows": pack_i32([0]), "chunk_tokens": pack_i32([0])},
    "joined_rows: a value is -4": {"joined_rows": pack_i32([0]), "joined_computed": pack_i32([-4])},
    "joined row comes without": {"joined_rows": pack_i32([0]), "joined_computed": pack_i32([0])},
    "2 KV groups": {"blocks": [blocks([0], [1], [1]), blocks([0], [1], [1])]},
    "blocks: a value is 0": {"blocks": [blocks([0], [0], [])]},
    "block_ids: 1 ids, the counts add up to 2": {"blocks": [blocks([0], [2], [1])]},
    "0 is the null block": {"blocks": [blocks([0], [2], [1, 0])]},
    "swap_out: 1 source": {"swap_out_device_blocks": pack_i32([1])},
    "swap_in: 0 source": {"swap_in_device_blocks": pack_i32([1])},
}


@pytest.mark.parametrize("problem", BAD_PLANS)
def test_a_contradicting_plan_is_refused(problem: str) -> None:
    reader = wire.PlanReader()
    reader.read(pb.StepPlan(**GOOD))
    with pytest.raises(PlanViolation, match=problem):
        reader.read(pb.StepPlan(**(GOOD | BAD_PLANS[problem])))


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("handle", 0, "handle is 0"),
        ("handle", -3, "handle is -3"),
        ("prompt_token_ids", b"", "empty prompt"),
        ("prompt_token_ids", b"\x01", "prompt_token_ids: an int32 column"),
        ("output_token_ids", b"\x01", "output_token_ids: an int32 column"),
    ],
)
def test_a_bad_announcement_is_refused(field: str, value: object, problem: str) -> None:
    message = call_message(call(1))
    setattr(message, field, value)
    with pytest.raises(PlanViolation, match=problem):
        wire.announced_call(message)
