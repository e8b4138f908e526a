"""Turns an announcement into a call, or into a call that has failed.

Whatever is wrong with one call is found here, before its numbers index a tensor beside those of other calls:
inside a step an id out of range would end the step for everybody.
"""

from collections.abc import Iterable

import structlog
from vllm.config import ModelConfig
from vllm.sampling_params import SamplingParams
from vllm.v1.request import Request

from executor_svc.params_codec import CallParams, ParamsError, decode_params
from executor_svc.runner import AnnouncedCall
from executor_svc.vllm_runner.calls import Call

log = structlog.get_logger(__name__)


def admit(announced: AnnouncedCall, req_id: str, model: ModelConfig, grammar_backend: str) -> Call:
    """Makes the call; one that cannot run carries `failure` and nothing else that could be used."""
    call = Call(
        handle=announced.handle,
        req_id=req_id,
        prompt=announced.prompt_token_ids,
        outputs=list(announced.output_token_ids),
    )
    try:
        _check_tokens(call, model)
        params = decode_params(announced.params, announced.params_format)
        _check_sampling(params.sampling, model)
        call.params = params.sampling
        call.grammar = _grammar_request(call, params, grammar_backend)
        if call.grammar and not announced.needs_preparation:
            raise ParamsError("the call has a grammar, but was not announced for preparation")
    except Exception as error:
        log.info("call_not_admitted", call_id=announced.call_id, exc_info=True)
        call.failure = str(error) or type(error).__name__
    return call


def _check_tokens(call: Call, model: ModelConfig) -> None:
    if not call.prompt:
        raise ParamsError("the prompt is empty")
    if call.num_tokens > model.max_model_len:
        raise ParamsError(
            f"prompt and output are {call.num_tokens} tokens, the limit is {model.max_model_len}"
        )
    _check_ids("prompt_token_ids", call.prompt, model)
    _check_ids("output_token_ids", call.outputs, model)


def _check_ids(name: str, ids: Iterable[int], model: ModelConfig) -> None:
    vocab_size = model.get_vocab_size()
    bad = next((token for token in ids if not 0 <= token < vocab_size), None)
    if bad is not None:
        raise ParamsError(f"{name} holds token id {bad}, the vocabulary has {vocab_size}")


def _check_sampling(params: SamplingParams, model: ModelConfig) -> None:
    """Checks what vLLM's front door checks, grammars apart: those are checked when they are compiled."""
    params.verify(model, None, None, None)
    _check_ids("bad_words", (token for word in params.bad_words_token_ids or () for token in word), model)
    _check_ids("stop token ids", params.all_stop_token_ids, model)
    if params.prompt_logprob_token_ids is not None:
        raise ParamsError("prompt_logprob_token_ids is not served")


def _grammar_request(call: Call, params: CallParams, grammar_backend: str) -> Request | None:
    """vLLM's request object of a call with a grammar, without output tokens."""
    constraints = params.sampling.structured_outputs
    if constraints is None or constraints.all_constraints_none():
        return None
    if constraints._backend != grammar_backend:
        raise ParamsError(
            f"the grammar is for backend {constraints._backend!r}, this executor has {grammar_backend!r}"
        )
    return Request(
        request_id=call.req_id,
        prompt_token_ids=call.prompt,
        sampling_params=params.sampling,
        pooling_params=None,
        reasoning_ended=params.reasoning_ended,
        reasoning_parser_kwargs=params.reasoning_parser_kwargs,
    )
