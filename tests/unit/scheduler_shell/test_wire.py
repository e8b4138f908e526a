"""What crosses the wire to executors and to frontends, message by message."""

from dataclasses import fields

import pytest

from protos.autellix.executor.v1 import executor_pb2
from protos.autellix.scheduler.v1 import scheduler_pb2 as pb
from scheduler_svc.core.columns import Column
from scheduler_svc.core.effects import AnnounceCall, EmitTokens, FinishCall, FinishReason, Plan, ReportStarted
from scheduler_svc.core.errors import ProtocolBroken, Refusal
from scheduler_svc.core.events import CallPrepared, CallSpec, StepCompleted
from scheduler_svc.core.ids import ExecutorId
from scheduler_svc.core.snapshots import ProgramSnapshot, ProgramState
from scheduler_svc.shell import executor_wire, frontend_wire
from scheduler_svc.shell.output_columns import TOKEN_BYTES, OutputColumns
from scheduler_svc.shell.program_desk import program_record
from svc_runtime.columns import pack_i32, unpack_i32
from tests.unit.scheduler_shell.fake_executor import registration

EXECUTOR = ExecutorId("executor-a")


def call(**changed: object) -> CallSpec:
    fields: dict[str, object] = {
        "call_id": "c", "frontend_id": "f", "stream_handle": 1, "tenant": "t", "program_id": "p",
        "model": "m", "prompt_token_ids": [1, 2], "max_tokens": 4, "params": b"params",
        "params_format": "test/1",
    }  # fmt: skip
    return CallSpec(**(fields | changed))


# ── executor ────────────────────────────────────────────────────────────────────────────────────────


def test_a_registration_becomes_the_core_s_words() -> None:
    request = executor_pb2.AttachRequest(
        registration=registration(max_plans_in_flight=8, host_blocks=3, block_bytes=9)
    )
    spec = executor_wire.executor_spec(request, max_plans_in_flight=2)
    assert (spec.block_size, spec.num_blocks, spec.host_blocks, spec.block_bytes) == (4, 65, 3, 9)
    assert (spec.executor_id, spec.epoch, spec.model, spec.simulated) == ("executor-a", 1, "test-model", True)
    assert (spec.max_num_seqs, spec.max_num_batched_tokens, spec.max_model_len) == (4, 64, 128)
    assert (spec.params_formats, spec.vocab_size) == (("test/1",), 1000)
    assert spec.max_plans_in_flight == 2, "the smaller of both limits holds"


def test_a_plan_names_its_batch_in_full_and_sparsely_what_changed() -> None:
    plan = Plan(
        step=9, handles=[5, 3, 8, 4], chunks={3: 16, 1: 7}, joined={3: 0, 1: 12},
        blocks={3: [7, 8], 0: [9], 1: [4, 5, 6]},
        released=[2], swap_out=[(1, 100), (2, 101)], swap_in=[(102, 3)],
    )  # fmt: skip
    message = executor_wire.step_plan(plan)
    assert message.step == 9
    assert unpack_i32(message.handles) == [5, 3, 8, 4]
    assert (unpack_i32(message.chunk_rows), unpack_i32(message.chunk_tokens)) == ([1, 3], [7, 16])
    assert (unpack_i32(message.joined_rows), unpack_i32(message.joined_computed)) == ([1, 3], [12, 0])
    (group,) = message.blocks
    assert (unpack_i32(group.rows), unpack_i32(group.counts)) == ([0, 1, 3], [1, 3, 2])
    assert unpack_i32(group.block_ids) == [9, 4, 5, 6, 7, 8]
    assert unpack_i32(message.released_handles) == [2]
    assert unpack_i32(message.swap_out_device_blocks) == [1, 2]
    assert unpack_i32(message.swap_out_host_blocks) == [100, 101]
    assert unpack_i32(message.swap_in_host_blocks) == [102]
    assert unpack_i32(message.swap_in_device_blocks) == [3]


def test_a_steady_plan_carries_handles_only() -> None:
    plan = Plan(step=1, handles=[1, 2], chunks={}, joined={}, blocks={}, released=[])
    message = executor_wire.step_plan(plan)
    assert message == executor_pb2.StepPlan(step=1, handles=pack_i32([1, 2]))


def test_a_plan_goes_down_the_stream_as_it_is_and_a_steady_batch_is_packed_once() -> None:
    handles = Column.of([1, 2])
    plans = [
        Plan(step=step, handles=handles, chunks={}, joined={}, blocks={1: (step,)}, released=[])
        for step in (1, 2)
    ]
    responses = [executor_wire.plan_response(plan) for plan in plans]
    assert responses == [executor_pb2.AttachResponse(plan=executor_wire.step_plan(plan)) for plan in plans]
    assert [unpack_i32(response.plan.blocks[0].block_ids) for response in responses] == [[1], [2]]
    assert handles.packed is handles.packed


def test_an_announcement_carries_all_that_is_needed_to_continue() -> None:
    effect = AnnounceCall(
        executor_id=EXECUTOR, handle=6, call=call(needs_preparation=True), output_token_ids=[3, 4]
    )
    message = executor_wire.call_announcement(effect)
    assert message == executor_pb2.CallAnnouncement(
        handle=6, call_id="c", program_id="p",
        prompt_token_ids=pack_i32([1, 2]), output_token_ids=pack_i32([3, 4]),
        params=b"params", params_format="test/1", needs_preparation=True,
    )  # fmt: skip


def test_a_result_becomes_an_event() -> None:
    result = executor_pb2.StepResult(
        step=4, handles=pack_i32([1, 2]), tokens=pack_i32([7, 8]), step_s=0.25,
        swap_s=0.5, swap_bytes=1 << 40, failures=[executor_pb2.CallFailure(handle=3, message="bad")],
        payloads=[executor_pb2.RowPayload(handle=2, payload=b"logprobs")],
    )  # fmt: skip
    assert executor_wire.step_completed(EXECUTOR, result) == StepCompleted(
        executor_id=EXECUTOR, step=4, handles=Column.of([1, 2]), tokens=Column.of([7, 8]), step_s=0.25,
        swap_s=0.5, swap_bytes=1 << 40, failures={3: "bad"}, payloads={2: b"logprobs"},
    )  # fmt: skip


def test_a_steady_result_carries_columns_and_nothing_else() -> None:
    result = executor_pb2.StepResult(step=4, handles=pack_i32([1, 2]), tokens=pack_i32([7, 8]), step_s=0.25)
    completed = executor_wire.step_completed(EXECUTOR, result)
    assert isinstance(completed.handles, Column)
    assert isinstance(completed.tokens, Column)
    assert completed.tokens.packed == result.tokens
    assert dict(completed.failures) == dict(completed.payloads) == {}
    assert (completed.swap_s, completed.swap_bytes) == (0.0, 0)


@pytest.mark.parametrize(
    "torn",
    [
        executor_pb2.StepResult(handles=b"x"),
        executor_pb2.StepResult(tokens=b"x"),
        executor_pb2.StepResult(handles=pack_i32([1])),
        executor_pb2.StepResult(step_s=float("inf")),
        executor_pb2.StepResult(swap_s=float("nan")),
        executor_pb2.StepResult(swap_s=-1.0),
        executor_pb2.StepResult(step_s=executor_wire.STEP_S_MAX + 1),
        executor_pb2.StepResult(swap_s=executor_wire.STEP_S_MAX + 1),
    ],
)
def test_a_torn_result_is_the_executor_s_mistake(torn: executor_pb2.StepResult) -> None:
    with pytest.raises(ProtocolBroken):
        executor_wire.step_completed(EXECUTOR, torn)


def test_a_preparation_becomes_an_event() -> None:
    prepared = executor_pb2.CallPrepared(handle=4, error="no such grammar")
    expected = CallPrepared(executor_id=EXECUTOR, handle=4, error="no such grammar")
    assert executor_wire.call_prepared(EXECUTOR, prepared) == expected


# ── frontend ────────────────────────────────────────────────────────────────────────────────────────


def test_outputs_of_several_steps_join_and_payloads_keep_their_tokens() -> None:
    columns = OutputColumns()
    columns.started(ReportStarted(frontend_id="f", handle=1, cached_tokens=32, queued_s=0.5))
    columns.emit(EmitTokens(frontend_id="f", handles=[1, 2], tokens=[10, 20], payloads={1: b"two"}))
    columns.emit(EmitTokens(frontend_id="f", handles=[1], tokens=[11], payloads={0: b"one"}))
    outputs = columns.take(pb.EngineStatus(running=2)).outputs
    assert (unpack_i32(outputs.handles), unpack_i32(outputs.tokens)) == ([1, 2, 1], [10, 20, 11])
    assert [(payload.index, payload.payload) for payload in outputs.payloads] == [(1, b"two"), (2, b"one")]
    assert outputs.started[0] == pb.CallStarted(handle=1, cached_tokens=32, queued_s=0.5)
    assert outputs.status.running == 2
    assert not columns
    assert columns.cost_bytes == 0


def test_columns_of_the_core_are_relayed_as_the_bytes_they_are() -> None:
    """A steady batch is packed once; no token is looked at."""
    columns = OutputColumns()
    handles = Column.of([1, 2, 3])
    for step in range(3):
        tokens = Column.unpack(pack_i32([step, step + 1, step + 2]))
        columns.emit(EmitTokens(frontend_id="f", handles=handles, tokens=tokens))
    assert columns.cost_bytes == 9 * TOKEN_BYTES
    response = columns.take()
    assert response.WhichOneof("message") == "outputs"
    assert response.outputs.handles == handles.packed * 3
    assert unpack_i32(response.outputs.tokens) == [0, 1, 2, 1, 2, 3, 2, 3, 4]
    assert not response.outputs.HasField("status")


@pytest.mark.parametrize(
    ("reason", "sent"),
    [
        (FinishReason.STOP, pb.FINISH_REASON_STOP),
        (FinishReason.LENGTH, pb.FINISH_REASON_LENGTH),
        (FinishReason.ABORT, pb.FINISH_REASON_ABORT),
    ],
)
def test_the_end_of_a_call_says_how_and_what_it_cost(reason: FinishReason, sent: int) -> None:
    effect = FinishCall(
        frontend_id="f", handle=3, reason=reason, stop_token_id=0, service_s=1.5, waiting_s=2.5, preemptions=4
    )
    message = pb.CallFinished()
    frontend_wire.fill_finished(message, effect)
    assert message == pb.CallFinished(
        handle=3, reason=sent, stop_token_id=0, service_s=1.5, waiting_s=2.5, preemptions=4
    )
    assert message.HasField("stop_token_id"), "token 0 is a token"
    assert not message.HasField("error")


def test_a_failed_call_carries_its_typed_error() -> None:
    refusal = Refusal(
        reason="EXECUTOR_FAILED", message="m", field="f", limit="l", value="v", retry_after_s=0.0
    )
    effect = FinishCall(
        frontend_id="f",
        handle=3,
        reason=FinishReason.ERROR,
        error=refusal,
        service_s=0,
        waiting_s=0,
        preemptions=0,
    )
    message = pb.CallFinished()
    frontend_wire.fill_finished(message, effect)
    error = message.error
    assert error == pb.Refusal(
        reason="EXECUTOR_FAILED", message="m", field="f", limit="l", value="v", retry_after_s=0
    )
    assert error.HasField("retry_after_s"), "zero seconds is not absent"


@pytest.mark.parametrize("state", list(ProgramState))
def test_every_state_of_a_program_has_its_name_on_the_wire(state: ProgramState) -> None:
    program = ProgramSnapshot(
        program_id="p", tenant="t", session_key="s", class_name="c", state=state, live_calls=1,
        finished_calls=2, tokens=3, attained_service_s=4.0, waiting_s=5.0, level=6, age_s=7.0,
        response_s=8.0, executor_ids=("e",),
        prompt_tokens=9, preemptions=10, attained_cost_s=11.5, kv_blocks=12,
    )  # fmt: skip
    record = program_record(program)
    assert pb.ProgramState.Name(record.state) == f"PROGRAM_STATE_{state.name}"
    for field in fields(program):
        if field.name not in ("state", "executor_ids"):
            assert getattr(record, field.name) == getattr(program, field.name)
    assert list(record.executor_ids) == ["e"]
