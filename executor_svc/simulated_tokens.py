"""The "model" of the simulated executor: the next token is a function of all tokens before it alone.

So a call yields the same tokens wherever and however often it is preempted, moved or computed again, and a
test knows them in advance: `TokenRule.generate`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

_SEED = 0xA24BAED4963EE407


def extend_prefix(hashes: list[int], tokens: Sequence[int]) -> None:
    """Appends to `hashes` one entry a token: the hash of all tokens up to it. Mutates `hashes`.

    Python's tuple hash: the same in every process for ints (only text is hashed with a random seed), and ten
    times faster than arithmetic written out here.
    """
    prefix = hashes[-1] if hashes else _SEED
    for token in tokens:
        prefix = hash((prefix, token))
        hashes.append(prefix)


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
        if self.eos_token_id is not None and self.eos_every and prefix % self.eos_every == 0:
            return self.eos_token_id
        token = self.first_token + (prefix >> 24) % (self.vocab_size - self.first_token)
        if token != self.eos_token_id:
            return token
        return self.first_token if token != self.first_token else self.first_token + 1

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
