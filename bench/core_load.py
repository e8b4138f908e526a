"""The load of the core bench, the same for both sides: who runs, who waits, who finishes when.

Rows start with prompts of different lengths, so that at each step one row in `BLOCK_SIZE` needs a block. With
churn, rows end in order of their start, `churn_rows` of them at each step, and as many others start: a call
then lives about `rows / churn_rows` steps. Without, calls outlive the measurement.
"""

from collections.abc import Iterator
from dataclasses import dataclass

BLOCK_SIZE = 16
PROMPT_TOKENS = 200
"""Shortest prompt; the longest has `BLOCK_SIZE - 1` more."""
MAX_MODEL_LEN = 8192
TOKENS_PER_STEP_MAX = 262144
"""Token budget of a step: never in the way, not even of the first one, which computes all prompts."""
VOCAB_SIZE = 2048
EOS_TOKEN_ID = 2
"""Never sampled: calls end by their length."""
CHURN = 0.02
"""Share of the rows that finish at each step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """One scenario."""

    rows: int
    churn: bool
    waiting: int = 0
    """Calls that wait behind a full batch."""
    programs: int = 0
    """Open programs besides those of live calls."""

    @property
    def churn_rows(self) -> int:
        """Rows that finish at each step, and calls that start."""
        return max(1, round(self.rows * CHURN)) if self.churn else 0

    @property
    def life_steps(self) -> int:
        """Tokens that a call generates: one a step."""
        if not self.churn:
            return MAX_MODEL_LEN - PROMPT_TOKENS - BLOCK_SIZE
        return -(-self.rows // self.churn_rows)

    @property
    def blocks(self) -> int:
        """KV blocks, the null block included: enough for every row at full length."""
        return self.rows * (MAX_MODEL_LEN // BLOCK_SIZE if not self.churn else 64) + 1

    @property
    def name(self) -> str:
        """Key in the results: the kind of load."""
        return "churn" if self.churn else "steady"

    def max_tokens(self) -> Iterator[int]:
        """Tokens that each call generates, in order of the calls' start."""
        for index in range(self.rows):
            yield 2 + index // self.churn_rows if self.churn else self.life_steps
        while True:
            yield self.life_steps


def prompt(number: int) -> list[int]:
    """Prompt of the call of that number; no two share a block."""
    length = PROMPT_TOKENS + number % BLOCK_SIZE
    first = [3 + (number >> shift) % 1024 for shift in (0, 10)]
    return first + [(number * 7919 + index * 31) % 2000 + 6 for index in range(length - 2)]
