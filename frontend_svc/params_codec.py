"""Sampling parameters on their way from the frontend to the executor, past a scheduler that does not read
them.

A msgpack map: `v` (1), `sampling` (vLLM's SamplingParams, private fields included: stop token ids, bad
words and the structured-output backend chosen by the tokenizer side), `reasoning_ended` and
`reasoning_parser_kwargs` of the engine-core request. The format's name carries vLLM's version, since its
structs change between versions.
"""

import msgspec
from vllm.v1.engine import EngineCoreRequest

PARAMS_FORMAT = "vllm-0.32.0/msgpack"
VERSION = 1

_encoder = msgspec.msgpack.Encoder()


def encode_params(request: EngineCoreRequest) -> bytes:
    """The opaque part of a submitted call.

    Raises:
        TypeError: a parameter that msgpack cannot carry.
    """
    return _encoder.encode(
        {
            "v": VERSION,
            "sampling": request.sampling_params,
            "reasoning_ended": request.reasoning_ended,
            "reasoning_parser_kwargs": request.reasoning_parser_kwargs,
        }
    )
