"""The "model" of the simulated executor: the next token is a function of all tokens before it alone.

So a call yields the same tokens wherever and however often it is preempted, moved or computed again, and a
test knows them in advance: `TokenRule.generate`.

A prefix is named by a polynomial hash of its tokens, in arithmetic modulo 2**64:

    hash(prefix + token) = hash(prefix) * BASE + spread(token)

Everything exists twice, with the same values: once for single numbers, to be read and to test with, and once
for numpy columns. Columns of many calls advance by one token with a few vector operations; a whole prompt is
hashed without a loop because BASE is odd and thus has an inverse: the hash up to position i is
BASE**(i + 1) * (seed + the sum over j <= i of spread(token j) / BASE**(j + 1)).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]
Tokens = npt.NDArray[np.int32]

_SEED = 0xA24BAED4963EE407
_BASE = 0xD1342543DE82EF95
_SPREAD = 0x9E3779B97F4A7C15
_FINAL = 0xBF58476D1CE4E5B9
_MASK = 2**64 - 1
_BASE_INVERSE = pow(_BASE, -1, 2**64)

# Operands of columns are arrays without dimensions: numpy converts a plain number anew each time.
_BASE_U64, _SPREAD_U64, _FINAL_U64 = (np.array(factor, np.uint64) for factor in (_BASE, _SPREAD, _FINAL))
_ONE, _U29, _U32 = (np.array(number, np.uint64) for number in (1, 29, 32))


def extend_prefix(hashes: list[int], tokens: Sequence[int]) -> None:
    """Appends to `hashes` one entry a token: the hash of all tokens up to it. Mutates `hashes`."""
    prefix = hashes[-1] if hashes else _SEED
    for token in tokens:
        spread = (token + 1) * _SPREAD & _MASK
        prefix = (prefix * _BASE + (spread ^ (spread >> 29))) & _MASK
        hashes.append(prefix)


def extend_each(prefixes: Hashes, tokens: Tokens) -> Hashes:
    """The hash of each prefix with its token appended. Shapes: (rows,)."""
    extended = prefixes * _BASE_U64
    extended += _spread_each(tokens)
    return extended


def hash_prefixes(tokens: Sequence[int]) -> Hashes:
    """The hash of the prefix that ends at each position: `extend_prefix` of a whole sequence at once."""
    count = len(tokens)
    powers, inverses = _powers(1 << count.bit_length())
    sums = np.cumsum(_spread_each(np.asarray(tokens, dtype=np.int64)) * inverses[:count], dtype=np.uint64)
    return (sums + np.uint64(_SEED)) * powers[:count]


def _spread_each(tokens: npt.NDArray[np.integer]) -> Hashes:
    spread = tokens.astype(np.uint64)
    spread += _ONE
    spread *= _SPREAD_U64
    spread ^= spread >> _U29
    return spread


@cache
def _powers(count: int) -> tuple[Hashes, Hashes]:
    """BASE**1 .. BASE**count and their inverses."""
    powers = np.cumprod(np.full(count, _BASE, dtype=np.uint64), dtype=np.uint64)
    return powers, np.cumprod(np.full(count, _BASE_INVERSE, dtype=np.uint64), dtype=np.uint64)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRule:
    """Which token follows a prefix. Invariant: 0 <= first_token < vocab_size."""

    vocab_size: int
    first_token: int = 0
    """Ids below are never generated: usually the special tokens."""
    eos_token_id: int | None = None
    """Generated only as `eos_every` says. None: never."""
    eos_every: int = 0
    """One token in so many, on average, is the end-of-sequence token; 0: none is."""

    def __post_init__(self) -> None:
        if not 0 <= self.first_token < self.vocab_size - 1:
            raise ValueError(
                f"first_token is {self.first_token}, must be in 0..vocab_size - 2 ({self.vocab_size - 2})"
            )
        if self.eos_every and self.eos_token_id is None:
            raise ValueError(f"eos_every is {self.eos_every}, but there is no eos_token_id")

    def after(self, prefix: int) -> int:
        """The token that follows a prefix of this hash."""
        drawn = (prefix ^ (prefix >> 32)) * _FINAL & _MASK
        if self.eos_token_id is not None and self.eos_every and (drawn & 0xFFFFFFFF) % self.eos_every == 0:
            return self.eos_token_id
        token = self.first_token + ((drawn >> 32) * (self.vocab_size - self.first_token) >> 32)
        return self._instead_of_eos if token == self.eos_token_id else token

    def after_each(self, prefixes: Hashes) -> Tokens:
        """The token that follows each prefix. Shapes: (rows,)."""
        drawn = prefixes >> _U32
        drawn ^= prefixes
        drawn *= _FINAL_U64
        tokens = self._scaled(drawn >> _U32)
        if self.eos_token_id is not None:
            tokens[tokens == self.eos_token_id] = self._instead_of_eos
            if self.eos_every:
                ends = (drawn & np.uint64(0xFFFFFFFF)) % np.uint64(self.eos_every) == 0
                tokens[ends] = self.eos_token_id
        return tokens

    def _scaled(self, drawn: Hashes) -> Tokens:
        """Numbers below 2**32 as tokens in [first_token, vocab_size). Mutates `drawn`."""
        drawn *= np.uint64(self.vocab_size - self.first_token)
        drawn >>= _U32
        if self.first_token:
            drawn += np.uint64(self.first_token)
        return drawn.astype(np.int32)

    @property
    def _instead_of_eos(self) -> int:
        """What is generated where the end-of-sequence token would come by chance."""
        return self.first_token + (self.first_token == self.eos_token_id)

    def generate(self, prompt_token_ids: Sequence[int], count: int) -> list[int]:
        """The first `count` tokens after a prompt; fewer when the end-of-sequence token ends them."""
        hashes: list[int] = []
        extend_prefix(hashes, prompt_token_ids)
        tokens: list[int] = []
        while len(tokens) < count:
            tokens.append(self.after(hashes[-1]))
            if tokens[-1] == self.eos_token_id:
                break
            extend_prefix(hashes, tokens[-1:])
        return tokens
