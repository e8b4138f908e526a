"""Decodes the opaque `params` of an announced call: what only the frontend and the executor understand.

Format `vllm-0.32.0/msgpack`: a msgpack map

    {"v": 1, "sampling": SamplingParams, "reasoning_ended": bool | None, "reasoning_parser_kwargs": map |
    None}

`sampling` is vLLM's own struct as msgspec encodes it, private fields included (`_all_stop_token_ids`,
`_bad_words_token_ids`, the chosen grammar backend): they were computed beside the tokenizer, in the frontend.
The two reasoning fields are the ones vLLM carries on its EngineCoreRequest. The frontend owns the encoder.
"""

from typing import Any

import msgspec
from vllm.exceptions import VLLMError
from vllm.sampling_params import SamplingParams

PARAMS_FORMAT = "vllm-0.32.0/msgpack"
PARAMS_VERSION = 1


class ParamsError(ValueError):
    """The params of one call cannot be used; the message is fit for the client."""


class CallParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Decoded params of a call."""

    v: int
    sampling: SamplingParams
    reasoning_ended: bool | None = None
    """Whether the prompt already closes the reasoning part; None: the executor finds out."""
    reasoning_parser_kwargs: dict[str, Any] | None = None


_decoder = msgspec.msgpack.Decoder(CallParams)


def decode_params(params: bytes, params_format: str) -> CallParams:
    """Decodes the params of one call.

    Raises:
        ParamsError: unknown format or version, or bytes that are not such a map.
    """
    if params_format != PARAMS_FORMAT:
        raise ParamsError(f"params format is {params_format!r}, this executor reads {PARAMS_FORMAT!r}")
    try:
        decoded = _decoder.decode(params)
    except (msgspec.MsgspecError, VLLMError, ValueError, TypeError) as error:
        raise ParamsError(f"params cannot be decoded: {error}") from error
    if decoded.v != PARAMS_VERSION:
        raise ParamsError(f"params version is {decoded.v}, this executor reads {PARAMS_VERSION}")
    return decoded
