"""What the tokens of a call cost on one executor, in whole picoseconds.

Theory of operation: a price list is a snapshot of a fitted step-cost model (`step_cost`), rounded once to
integers. From then on all arithmetic is exact: sums do not depend on the order in which they are made, a
range costs what its parts cost (`decode_ps(a, b) + decode_ps(b, c) == decode_ps(a, c)`), and a planner that
works on columns agrees with one that works on objects to the last bit.

A token is charged what it would take if its call had the executor for itself: `decode_token_ps` holds a whole
step's fixed part, so a call costs the same in a full batch as alone, on a busy day as on a quiet one.

A position reads itself and all positions before it:

    position   0  1  2  3  4  ...
    reads      1  2  3  4  5  ...      positions [a, b) read b (b + 1) / 2 - a (a + 1) / 2 together
"""

from dataclasses import dataclass
from math import isqrt

PS_PER_S = 10**12


def context_reads(start: int, end: int) -> int:
    """Context tokens that positions [start, end) read together, each itself and all before it. Exact."""
    return (end * (end + 1) - start * (start + 1)) // 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """Prices of one executor. Immutable: readers may compare by identity to learn that nothing changed.

    Raises: ValueError when a price is negative, or that of a generated token is not positive.
    """

    decode_token_ps: int
    """A generated token by itself: a step's fixed part and its row. > 0."""
    decode_context_ps: int
    """More for each context token that it reads. >= 0."""
    prefill_token_ps: int
    """A prompt token by itself: its part of a full step's fixed part included. >= 0."""
    prefill_context_ps: int
    """More for each context token that it reads. >= 0."""
    swap_block_ps: int
    """Copying a block between device and host, one way. >= 0."""

    def __post_init__(self) -> None:
        if self.decode_token_ps <= 0:
            raise ValueError(f"decode_token_ps must be > 0, got {self.decode_token_ps}")
        for name in ("decode_context_ps", "prefill_token_ps", "prefill_context_ps", "swap_block_ps"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be >= 0, got {getattr(self, name)}")

    def decode_ps(self, start: int, end: int) -> int:
        """Computing positions [start, end) one a step."""
        return (end - start) * self.decode_token_ps + context_reads(start, end) * self.decode_context_ps

    def prefill_ps(self, start: int, end: int) -> int:
        """Computing positions [start, end) in chunks; how they are cut does not matter."""
        return (end - start) * self.prefill_token_ps + context_reads(start, end) * self.prefill_context_ps

    def decodes_within(self, start: int, budget_ps: int) -> int:
        """The least n >= 1 with `decode_ps(start, start + n) >= budget_ps`: the token that uses a budget up.

        Twice the price of n tokens is c n^2 + b n with c the context price and b = 2 decode_token_ps + c (2
        start + 1), so n is the positive root for 2 budget_ps, rounded up. Exact at any size.
        """
        context_ps = self.decode_context_ps
        if context_ps == 0:
            return max(1, -(-budget_ps // self.decode_token_ps))
        linear = 2 * self.decode_token_ps + context_ps * (2 * int(start) + 1)  # squared below: no int64
        root = isqrt(linear * linear + 8 * context_ps * max(0, budget_ps))
        count = (root - linear) // (2 * context_ps)
        return max(1, count + (self.decode_ps(start, start + count) < budget_ps))

    def recompute_ps(self, tokens: int) -> int:
        """Computing the KV of a call's first `tokens` tokens again: after it was dropped, or for a call that
        moves here from another executor."""
        return self.prefill_ps(0, tokens)

    def swap_ps(self, blocks: int) -> int:
        """Copying so many blocks between device and host, one way."""
        return blocks * self.swap_block_ps
