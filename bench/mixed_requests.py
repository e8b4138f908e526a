"""Requests for the contract tests: mixed lengths, shared prefixes, every kind of sampling. Seeded."""

import json
import random
from typing import Any

VOCAB = 2048
FIRST_TEXT_TOKEN = 300
SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "string", "maxLength": 8}},
        "required": ["a", "b"],
        "additionalProperties": False,
    }
)


def prompt(rng: random.Random, tokens: int) -> list[int]:
    """A prompt of random text tokens."""
    return [1, *(rng.randrange(FIRST_TEXT_TOKEN, VOCAB) for _ in range(tokens - 1))]


def greedy_requests(count: int, seed: int = 7) -> list[dict[str, Any]]:
    """Greedy calls of mixed lengths; every third starts with the same 96 tokens."""
    rng = random.Random(seed + count)
    shared = prompt(rng, 96)
    requests = []
    for index in range(count):
        own = prompt(rng, rng.randrange(12, 240))
        tokens = shared + own[1:] if index % 3 == 0 else own
        sampling = {"temperature": 0.0, "max_tokens": rng.randrange(24, 96), "ignore_eos": True}
        requests.append({"prompt": tokens, "sampling": sampling})
    return requests


def sampled_requests(count: int, seed: int = 11) -> list[dict[str, Any]]:
    """Seeds, penalties, min_tokens, logprobs and a JSON schema in turn."""
    rng = random.Random(seed)
    kinds: list[dict[str, Any]] = [
        {"temperature": 0.9, "top_p": 0.95, "top_k": 50, "max_tokens": 64, "ignore_eos": True},
        {"temperature": 0.0, "repetition_penalty": 1.3, "presence_penalty": 0.5, "max_tokens": 64},
        {"temperature": 0.0, "frequency_penalty": 0.7, "min_tokens": 40, "max_tokens": 64},
        {"temperature": 0.0, "logprobs": 3, "max_tokens": 48, "ignore_eos": True},
        {"temperature": 0.0, "max_tokens": 64},
    ]
    requests = []
    for index in range(count):
        sampling = dict(kinds[index % len(kinds)])
        if index % len(kinds) == 0:
            sampling["seed"] = 1000 + index
        request: dict[str, Any] = {"prompt": prompt(rng, rng.randrange(16, 200)), "sampling": sampling}
        if index % len(kinds) == 4:
            request["json_schema"] = SCHEMA
        requests.append(request)
    return requests
