"""From vLLM's ModelRunnerOutput to our StepResult; moves the calls by the tokens they got."""

from dataclasses import dataclass, field

import numpy as np
from vllm.v1.outputs import LogprobsLists, LogprobsTensors, ModelRunnerOutput

from executor_svc.runner import StepResult
from executor_svc.vllm_runner.calls import Batch, Call
from executor_svc.vllm_runner.grammars import Grammars
from protos.autellix.executor.v1 import executor_pb2 as pb


@dataclass(frozen=True, slots=True)
class StepCost:
    """What a step took: seconds of model execution, seconds and bytes of copies between the tiers."""

    step_s: float
    swap_s: float = 0.0
    swap_bytes: int = 0


@dataclass(slots=True)
class _Sampled:
    handles: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    payloads: dict[int, bytes] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)


def apply_output(batch: Batch, output: ModelRunnerOutput, grammars: Grammars, cost: StepCost) -> StepResult:
    """Reads the sampled tokens in plan order, appends them to their calls and advances their grammars.

    A call that fails on the way is reported without a token; the others are not affected.
    """
    sampled = _Sampled(failures={call.handle: call.failure for call in batch.failed})
    for row in batch.rows:
        if row.samples:
            _take(row.call, output, grammars, sampled)
    return StepResult(
        step=batch.step,
        handles=sampled.handles,
        tokens=sampled.tokens,
        step_s=cost.step_s,
        failures=sampled.failures,
        payloads=sampled.payloads,
        swap_s=cost.swap_s,
        swap_bytes=cost.swap_bytes,
    )


def _take(call: Call, output: ModelRunnerOutput, grammars: Grammars, sampled: _Sampled) -> None:
    index = output.req_id_to_index[call.req_id]
    (token,) = output.sampled_token_ids[index]
    call.in_flight -= 1
    if not call.failure and (nans := (output.num_nans_in_logits or {}).get(call.req_id)):
        call.failure = f"the model produced {nans} NaN logits"
    if not call.failure:
        grammars.advance(call, token)
    if call.failure:
        if not call.failure_reported:
            sampled.failures[call.handle] = call.failure
            call.failure_reported = True
        return
    call.outputs.append(token)
    sampled.handles.append(call.handle)
    sampled.tokens.append(token)
    if payload := _payload(call, index, output):
        sampled.payloads[call.handle] = payload


def _payload(call: Call, index: int, output: ModelRunnerOutput) -> bytes:
    """A serialised executor.v1.Logprobs; empty when the call asked for none."""
    assert call.params is not None, "a failed call takes no token"
    message = pb.Logprobs()
    wants_sampled = call.params.logprobs is not None or call.params.logprob_token_ids is not None
    if wants_sampled and output.logprobs is not None:
        _fill_sampled(message.sampled, output.logprobs.slice_request(index, 1), call)
    prompt = output.prompt_logprobs_dict.get(call.req_id)
    if prompt is not None:
        _fill_prompt(message.prompt, prompt)
    return message.SerializeToString()


def _fill_sampled(table: pb.LogprobTable, rows: LogprobsLists, call: Call) -> None:
    """The batch's table is as wide as its most curious call: cut to this call's width."""
    assert call.params is not None
    width = rows.logprob_token_ids.shape[1]
    if call.params.logprob_token_ids is None and call.params.logprobs >= 0:
        width = min(width, call.params.logprobs + 1)
    _fill(table, rows.logprob_token_ids[:, :width], rows.logprobs[:, :width], rows.sampled_token_ranks)


def _fill_prompt(table: pb.LogprobTable, rows: LogprobsTensors) -> None:
    _fill(table, rows.logprob_token_ids.numpy(), rows.logprobs.numpy(), rows.selected_token_ranks.numpy())


def _fill(table: pb.LogprobTable, token_ids: np.ndarray, logprobs: np.ndarray, ranks: np.ndarray) -> None:
    """Shapes: (rows, width), (rows, width), (rows,)."""
    table.width = token_ids.shape[1]
    table.token_ids = np.ascontiguousarray(token_ids, dtype="<i4").tobytes()
    table.logprobs = np.ascontiguousarray(logprobs, dtype="<f4").tobytes()
    table.ranks = np.ascontiguousarray(ranks, dtype="<i4").tobytes()
