"""How long a step of the simulated executor takes.

Theory of operation: a step reads the weights once (a constant), then pays for each decode row, for the
context its attention reads, and for prefill tokens, whose attention grows with the square of the prompt.
Chunks of one prompt add up to the whole: a chunk of n tokens after p pays the square term of p + n less
that of p. A mixed step pays the larger of both constants once (an assumption: the tables measured pure
steps only).

The two presets are fits to sums of kernel times measured on one GPU with LLaMA-3.1-8B in bf16
(aiconfigurator-core 0.12.0 tables, Apache-2.0: vLLM 0.24.0 on H100-SXM, vLLM 0.14.0 on A100-SXM); prefill
is good to +-25 %. Framework overhead is not in them: `overhead_s` adds it where wanted.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

_MS = 1e-3
_UNITS_S = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_FIXED = re.compile(r"fixed:(\d+(?:\.\d+)?)(us|ms|s)")

PCIE4_X16_BYTES_PER_S = 32e9
"""Nominal."""
LLAMA_8B_KV_BYTES_PER_TOKEN = 128 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCost:
    """Prices of a step's parts, in seconds."""

    decode_step_s: float = 0.0
    decode_row_s: float = 0.0
    context_token_s: float = 0.0
    """A token of context that a decode row attends to."""
    prefill_step_s: float = 0.0
    prefill_token_s: float = 0.0
    prefill_token_squared_s: float = 0.0
    overhead_s: float = 0.0
    """What the framework adds to every step."""
    kv_bytes_per_token: int = LLAMA_8B_KV_BYTES_PER_TOKEN
    swap_bytes_per_s: float = PCIE4_X16_BYTES_PER_S
    """Copy bandwidth between device and host. > 0, may be infinite."""

    def step_s(self, *, decode_contexts: Sequence[int], prefills: Sequence[tuple[int, int]]) -> float:
        """Seconds of one step.

        Args:
            decode_contexts: tokens each decode row attends to. Shape: (decode rows,).
            prefills: (tokens computed before, tokens computed now) of each prefill chunk.
        """
        return self.mixed_step_s(
            decode_rows=len(decode_contexts), context_tokens=sum(decode_contexts), prefills=prefills
        )

    def mixed_step_s(
        self, *, decode_rows: int, context_tokens: int, prefills: Sequence[tuple[int, int]]
    ) -> float:
        """Seconds of one step.

        Args:
            context_tokens: tokens that the decode rows attend to, all together.
            prefills: (tokens computed before, tokens computed now) of each prefill chunk.
        """
        if not decode_rows and not prefills:
            return 0.0
        seconds = self.overhead_s
        seconds += max(self.decode_step_s if decode_rows else 0.0, self.prefill_step_s if prefills else 0.0)
        seconds += self.decode_row_s * decode_rows + self.context_token_s * context_tokens
        for before, count in prefills:
            seconds += self.prefill_token_s * count
            seconds += self.prefill_token_squared_s * ((before + count) ** 2 - before**2)
        return seconds

    def swap_s(self, byte_count: int) -> float:
        """Seconds to copy so many bytes between device and host."""
        return byte_count / self.swap_bytes_per_s


PRESETS: dict[str, StepCost] = {
    "h100-llama-3.1-8b": StepCost(
        decode_step_s=6.63 * _MS,
        decode_row_s=0.0102 * _MS,
        context_token_s=4.41e-5 * _MS,
        prefill_step_s=4.23 * _MS,
        prefill_token_s=0.0152 * _MS,
        prefill_token_squared_s=1.02e-6 * _MS,
    ),
    "a100-llama-3.1-8b": StepCost(
        decode_step_s=11.68 * _MS,
        decode_row_s=0.0282 * _MS,
        context_token_s=7.97e-5 * _MS,
        prefill_step_s=6.29 * _MS,
        prefill_token_s=0.0540 * _MS,
        prefill_token_squared_s=1.61e-6 * _MS,
    ),
    "zero": StepCost(swap_bytes_per_s=float("inf")),
}


def step_cost(name: str, *, overhead_s: float = 0.0) -> StepCost:
    """The cost model of a name.

    Args:
        name: one of `PRESETS`, or "fixed:<duration>" such as "fixed:10ms": every step takes as long.
        overhead_s: added to every step.

    Raises: ValueError naming the choices.
    """
    if name in PRESETS:
        return replace(PRESETS[name], overhead_s=overhead_s)
    match = _FIXED.fullmatch(name)
    if match is None:
        raise ValueError(
            f"unknown cost model {name!r}: use {', '.join(PRESETS)} or fixed:<number>us|ms|s (fixed:10ms)"
        )
    fixed_s = float(match[1]) * _UNITS_S[match[2]]
    return replace(PRESETS["zero"], decode_step_s=fixed_s, prefill_step_s=fixed_s, overhead_s=overhead_s)
