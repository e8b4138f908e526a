"""How long a step of one executor takes, learned from the steps it reports, and what tokens cost by that.

Theory of operation: a step's seconds are a fixed part and four sums over its rows:

    seconds = decode_step_s                  reading the weights once; a step with prefill is bound by
              (or prefill_step_s)            computing instead and has a fixed part of its own
            + decode_row_s      * rows that generate a token
            + context_token_s   * context tokens that those rows read, together
            + prefill_token_s   * prompt tokens computed
            + prefill_context_s * context tokens that those read, together (`context_reads`)

The six coefficients start from a prior, a model of 8 B parameters on a mid-range data-centre GPU, and are
fitted online (`online_fit`: what it does with outliers, changes and things never measured). Steps are only
collected; a fit is made after the first 8, then 16, then 32, and from then on after every 64: amortised it
costs a few microseconds a step. Copies between device and host have one coefficient, their bandwidth.

Readers do not see the model but a price list (`prices`), which is replaced when some typical price has moved
by 10 %: a planner that keeps sums by price touches them rarely.

Source: ours. The paper counts seconds of model execution; those grow with everything else in the batch.
"""

from math import isfinite
from typing import NamedTuple

from scheduler_svc.core.online_fit import OnlineFit
from scheduler_svc.core.prices import PS_PER_S, Prices, context_reads

_BLOCK_FIRST = 8
_BLOCK_LAST = 64
_PRICES_MOVED = 0.1
_COPY_SHARE = 0.1
"""Weight of the newest copy."""
_COPY_FACTOR_MAX = 4.0
"""A copy counts as at most this many times faster or slower than expected."""
_BYTES_PER_S_MIN, _BYTES_PER_S_MAX = 1e7, 1e13


class StepFeatures(NamedTuple):
    """What a step's time depends on."""

    decode_rows: int
    context_tokens: int
    """Tokens that the decode rows read: the sum of their context lengths, the newest token included."""
    prefill_tokens: int
    prefill_context: int
    """Tokens that the prefill tokens read: the sum of `context_reads(start, end)` over chunks."""

    def with_chunk(self, start: int, count: int) -> "StepFeatures":
        """The step with a prefill chunk of `count` tokens after `start` computed ones besides."""
        return self._replace(
            prefill_tokens=self.prefill_tokens + count,
            prefill_context=self.prefill_context + context_reads(start, start + count),
        )


class StepCoefficients(NamedTuple):
    """Seconds of the parts of a step. > 0 in a prior, else >= 0."""

    decode_step_s: float
    """Fixed part of a step without prefill."""
    prefill_step_s: float
    """Fixed part of a step with prefill."""
    decode_row_s: float
    context_token_s: float
    prefill_token_s: float
    prefill_context_s: float


PRIOR = StepCoefficients(10e-3, 6e-3, 25e-6, 70e-9, 40e-6, 3e-9)
"""About a model of 8 B parameters on a mid-range data-centre GPU."""
CEILING = StepCoefficients(100.0, 100.0, 1.0, 1.8e-5, 1.0, 1.8e-5)
"""More than 8 B parameters on a slow CPU take; 10^6 decodes of one call still cost less than 2^63 ps."""
BYTES_PER_S_PRIOR = 16e9
"""About half of what PCIe 4.0 x16 carries."""


class StepCostModel:
    """The step times of one executor.

    Args:
        block_bytes: Bytes of a KV block over all layers; 0: unknown, copies cost nothing then.
        step_tokens: Token budget of a step: a prompt token bears this part of a prefill step's fixed part.
        prior: What to believe before anything is measured; all > 0.
        bytes_per_s: The same for copies between device and host.
    """

    def __init__(
        self,
        *,
        block_bytes: int = 0,
        step_tokens: int = 2048,
        prior: StepCoefficients = PRIOR,
        bytes_per_s: float = BYTES_PER_S_PRIOR,
    ) -> None:
        self._block_bytes = block_bytes
        self._step_tokens = step_tokens
        self._fit = OnlineFit(prior, CEILING)
        self._features: list[StepFeatures] = []
        self._seconds: list[float] = []
        self._block = _BLOCK_FIRST
        self._bytes_per_s = bytes_per_s
        self._prices = self._current_prices()

    # ── in ──────────────────────────────────────────────────────────────────────────────────────────

    def observe(self, features: StepFeatures, step_s: float) -> None:
        """Takes in a finished step; a step without rows says nothing.

        Raises: ValueError when `step_s` is negative or not finite; nothing was changed.
        """
        if not 0 <= step_s < float("inf"):
            raise ValueError(f"step_s must be finite and >= 0, got {step_s}")
        if not (features[0] or features[2]):
            return
        self._features.append(features)
        self._seconds.append(step_s)
        if len(self._seconds) == self._block:
            self._refit()

    def observe_swap(self, byte_count: int, seconds: float) -> None:
        """Takes in a batch of copies between device and host; one without bytes says nothing.

        The rate is an average over copies, each bounded by a factor of 4 from what was expected: a single
        odd one moves it little, and a lasting change is found within some tens.

        Raises: ValueError when `seconds` is negative or not finite; nothing was changed.
        """
        if not (isfinite(seconds) and seconds >= 0):
            raise ValueError(f"seconds must be finite and >= 0, got {seconds}")
        if byte_count <= 0:
            return
        expected_s = byte_count / self._bytes_per_s
        seconds = min(max(seconds, expected_s / _COPY_FACTOR_MAX), expected_s * _COPY_FACTOR_MAX)
        rate = self._bytes_per_s / (1 + _COPY_SHARE * (seconds / expected_s - 1))
        self._bytes_per_s = min(max(rate, _BYTES_PER_S_MIN), _BYTES_PER_S_MAX)
        self._renew_prices()

    # ── out ─────────────────────────────────────────────────────────────────────────────────────────

    def predict_s(self, features: StepFeatures) -> float:
        """Seconds that a step is expected to take."""
        rows, context, tokens, reads = features
        fixed, fixed_prefill, row_s, context_s, token_s, read_s = self._fit.coefficients
        parts = rows * row_s + context * context_s + tokens * token_s + reads * read_s
        return parts + (fixed_prefill if tokens else fixed if rows else 0.0)

    def prices(self) -> Prices:
        """The price list in force; the same object until a typical price has moved by 10 %."""
        return self._prices

    @property
    def coefficients(self) -> StepCoefficients:
        """As of the newest fit."""
        return StepCoefficients(*self._fit.coefficients)

    @property
    def bytes_per_s(self) -> float:
        """Bandwidth of copies between device and host."""
        return self._bytes_per_s

    @property
    def error(self) -> float:
        """Median relative error of the newest block of steps, predicted before they were learned from."""
        return self._fit.error

    @property
    def changes(self) -> int:
        """Times that the executor was found to have become faster or slower all at once."""
        return self._fit.changes

    # ── inside ──────────────────────────────────────────────────────────────────────────────────────

    def _refit(self) -> None:
        rows, context, tokens, reads = zip(*self._features, strict=True)
        prefills = [count > 0 for count in tokens]
        decodes = [count == 0 for count in tokens]
        self._fit.take((decodes, prefills, rows, context, tokens, reads), self._seconds)
        self._features, self._seconds = [], []
        self._block = min(2 * self._block, _BLOCK_LAST)
        self._renew_prices()

    def _renew_prices(self) -> None:
        prices = self._current_prices()
        if _moved(self._prices, prices):
            self._prices = prices

    def _current_prices(self) -> Prices:
        fit = self.coefficients
        prompt_token_s = fit.prefill_token_s + fit.prefill_step_s / self._step_tokens
        return Prices(
            decode_token_ps=max(1, _ps(fit.decode_step_s + fit.decode_row_s)),
            decode_context_ps=_ps(fit.context_token_s),
            prefill_token_ps=_ps(prompt_token_s),
            prefill_context_ps=_ps(fit.prefill_context_s),
            swap_block_ps=_ps(self._block_bytes / self._bytes_per_s),
        )


def _ps(seconds: float) -> int:
    return round(seconds * PS_PER_S)


def _moved(old: Prices, new: Prices) -> bool:
    return any(abs(b - a) > _PRICES_MOVED * a for a, b in zip(_typical(old), _typical(new), strict=True))


def _typical(prices: Prices) -> tuple[int, ...]:
    """Prices of what readers buy: tokens of short and long calls, prompts, a block. Single coefficients may
    trade places within them."""
    return (
        prices.decode_ps(0, 1),
        prices.decode_ps(16_384, 16_385),
        prices.prefill_ps(0, 1024),
        prices.prefill_ps(0, 16_384),
        prices.swap_block_ps,
    )
