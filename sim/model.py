"""The language model of the simulation: a hash over all tokens, so that wrong KV ends in a wrong token.

The state after a position depends on every token up to it and on the weights. The KV of a position is what it
adds to the state before it (see `memory`), so the state is read back as a sum over all blocks of a call's
table: like attention it depends on every block, not on the last one only. The next token is a function of the
state.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
from zlib import crc32

from scheduler_svc.core.effects import FinishReason
from scheduler_svc.core.events import CallSpec

VOCAB_SIZE = 997
_MODULUS = 2**31 - 1
_FACTOR = 48271


def start_state(spec: CallSpec, fingerprint: str) -> int:
    """The state before the first token of a call. Other weights say other things; so does another tenant or
    cache salt, so that KV which is shared where it must not be is found out."""
    return crc32(f"{spec.model}:{fingerprint}:{spec.tenant}:{spec.cache_salt}".encode()) % _MODULUS


def state_after(state: int, token: int) -> int:
    """The state once one more token was computed."""
    return (state * _FACTOR + token + 1) % _MODULUS


def states_after(state: int, tokens: Iterable[int]) -> list[int]:
    """The states after each of the tokens. Shape: (tokens,)."""
    states = list(accumulate(tokens, state_after, initial=state))
    del states[0]
    return states


def token_after(state: int) -> int:
    """The token that the model samples in a state."""
    return state % VOCAB_SIZE


@dataclass(frozen=True, slots=True)
class Expected:
    """What a call generates when nothing ever disturbs it."""

    tokens: list[int]
    """Those that came with the call included."""
    reason: FinishReason
    stop_token_id: int | None


def expected_output(spec: CallSpec, fingerprint: str) -> Expected:
    """Runs a call alone, stop tokens applied."""
    state = start_state(spec, fingerprint)
    for token in [*spec.prompt_token_ids, *spec.output_token_ids]:
        state = state_after(state, token)
    output = list(spec.output_token_ids)
    while len(output) < spec.max_tokens:
        token = token_after(state)
        state = state_after(state, token)
        output.append(token)
        if len(output) >= spec.min_tokens:
            if token == spec.eos_token_id:
                return Expected(output, FinishReason.STOP, None)
            if token in spec.stop_token_ids:
                return Expected(output, FinishReason.STOP, token)
    return Expected(output, FinishReason.LENGTH, None)
