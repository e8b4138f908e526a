"""From a checked plan to vLLM's SchedulerOutput, for either model runner.

Both runners keep state a call; they differ in how a call comes back to the batch:

              new call          back in the batch                          leaves the batch
    V1        NewRequestData    CachedRequestData, listed as resumed,      nothing: its state stays
                                with the whole block table
    V2        NewRequestData    NewRequestData again, prompt + outputs     preempted_req_ids frees its slot
                                in prefill_token_ids

A call that generated tokens elsewhere is new to V1's worker and yet resumed: it is adopted first (see
worker_extension). Block lists are handed over as fresh lists, for V1 extends them in place.
"""

from dataclasses import dataclass
from typing import Protocol

from vllm.v1.core.sched.output import CachedRequestData, NewRequestData, SchedulerOutput

from executor_svc.vllm_runner.calls import Batch, Row
from executor_svc.vllm_runner.worker_extension import AdoptedCall


@dataclass(frozen=True, slots=True)
class Translation:
    """What the workers have to be told for one step."""

    output: SchedulerOutput
    adopted: list[AdoptedCall]
    """Calls to put into the workers before the step."""


class Translator(Protocol):
    """Speaks the language of one model runner."""

    def translate(self, batch: Batch) -> Translation:
        """Translates the current step. Reads the calls after `CallBook.compose` has moved them."""
        ...


class TranslatorV1:
    """Model runner V1."""

    def translate(self, batch: Batch) -> Translation:
        """See Translator."""
        output = _empty_output(batch)
        adopted = []
        for row in batch.rows:
            if row.call.in_worker or row.call.outputs:
                if not row.call.in_worker:
                    adopted.append(_adopted(row))
                _add_cached(output.scheduled_cached_reqs, row, resumed=row.joined)
            else:
                output.scheduled_new_reqs.append(_new_request(row))
        return Translation(output, adopted)


class TranslatorV2:
    """Model runner V2."""

    def translate(self, batch: Batch) -> Translation:
        """See Translator."""
        output = _empty_output(batch)
        output.preempted_req_ids = {call.req_id for call in batch.left}
        for row in batch.rows:
            if row.joined:
                request = _new_request(row)
                request.prefill_token_ids = row.call.prompt + row.call.outputs
                output.scheduled_new_reqs.append(request)
            else:
                _add_cached(output.scheduled_cached_reqs, row, resumed=False)
        return Translation(output, [])


def _empty_output(batch: Batch) -> SchedulerOutput:
    output = SchedulerOutput.make_empty()
    output.num_scheduled_tokens = {row.call.req_id: row.chunk for row in batch.rows}
    output.total_num_scheduled_tokens = sum(row.chunk for row in batch.rows)
    output.finished_req_ids = {call.req_id for call in batch.released if call.in_worker}
    output.has_structured_output_requests = any(row.samples and row.call.grammar for row in batch.rows)
    return output


def _new_request(row: Row) -> NewRequestData:
    return NewRequestData(
        req_id=row.call.req_id,
        prompt_token_ids=row.call.prompt,
        mm_features=[],
        sampling_params=row.call.params,
        pooling_params=None,
        block_ids=(list(row.blocks),),
        num_computed_tokens=row.start,
        lora_request=None,
    )


def _add_cached(cached: CachedRequestData, row: Row, *, resumed: bool) -> None:
    call = row.call
    cached.req_ids.append(call.req_id)
    cached.new_block_ids.append((list(row.blocks),) if row.blocks else None)
    cached.num_computed_tokens.append(row.start)
    # Tokens the runner holds at this point, so without the one this very step samples. Fewer would make V1
    # cut.
    cached.num_output_tokens.append(len(call.outputs) + call.in_flight - row.samples)
    if resumed:
        cached.resumed_req_ids.add(call.req_id)


def _adopted(row: Row) -> AdoptedCall:
    call = row.call
    assert call.params is not None, "a failed call has no rows"
    return AdoptedCall(
        req_id=call.req_id,
        prompt_token_ids=call.prompt,
        output_token_ids=call.outputs,
        sampling_params=call.params,
    )
