"""Price lists: closed forms against sums made token by token, exactly."""

from itertools import count, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler_svc.core.prices import PS_PER_S, Prices, context_reads

price = st.one_of(st.just(0), st.integers(1, 100), st.integers(1, 10**11))
any_prices = st.builds(
    Prices,
    decode_token_ps=st.one_of(st.integers(1, 10), st.integers(1, 10**12)),
    decode_context_ps=price,
    prefill_token_ps=price,
    prefill_context_ps=price,
    swap_block_ps=price,
)
positions = st.integers(0, 200)
cuts = st.lists(st.integers(0, 10**6), min_size=2, max_size=8).map(sorted)
H100 = Prices(
    decode_token_ps=6_640_000_000,
    decode_context_ps=44_100,
    prefill_token_ps=17_000_000,
    prefill_context_ps=2040,
    swap_block_ps=84_000_000,
)


@given(any_prices, positions, positions)
def test_a_range_costs_what_its_tokens_cost(prices: Prices, start: int, length: int) -> None:
    end = start + length
    tokens = range(start, end)
    assert context_reads(start, end) == sum(position + 1 for position in tokens)
    assert prices.decode_ps(start, end) == sum(
        prices.decode_token_ps + (position + 1) * prices.decode_context_ps for position in tokens
    )
    assert prices.prefill_ps(start, end) == sum(
        prices.prefill_token_ps + (position + 1) * prices.prefill_context_ps for position in tokens
    )


@given(any_prices, cuts)
def test_parts_add_up_to_the_whole(prices: Prices, at: list[int]) -> None:
    for cost in (prices.decode_ps, prices.prefill_ps):
        assert sum(cost(start, end) for start, end in pairwise(at)) == cost(at[0], at[-1])


def decodes_by_counting(prices: Prices, start: int, budget_ps: int) -> int:
    return next(n for n in count(1) if prices.decode_ps(start, start + n) >= budget_ps)


@given(any_prices, st.integers(0, 10**6), st.data())
def test_decodes_within_a_budget_against_counting(prices: Prices, start: int, data: st.DataObject) -> None:
    budget_ps = data.draw(st.integers(-5, prices.decode_ps(start, start + 300)))
    assert prices.decodes_within(start, budget_ps) == decodes_by_counting(prices, start, budget_ps)


@given(any_prices, st.integers(0, 10**7), st.integers(1, 10**7), st.booleans())
def test_decodes_within_is_exact_at_the_edge(prices: Prices, start: int, length: int, more: bool) -> None:
    """A budget that n tokens use up to the last picosecond, and one more."""
    budget_ps = prices.decode_ps(start, start + length) + more
    assert prices.decodes_within(start, budget_ps) == length + more


@given(any_prices, st.integers(0, 10**7), st.integers(1, 10**24))
def test_decodes_within_is_the_least_that_reaches_the_budget(
    prices: Prices, start: int, budget_ps: int
) -> None:
    tokens = prices.decodes_within(start, budget_ps)
    assert prices.decode_ps(start, start + tokens) >= budget_ps
    assert tokens == 1 or prices.decode_ps(start, start + tokens - 1) < budget_ps


@pytest.mark.interpreted_core("compiled, it refuses what is no int")
def test_decodes_within_takes_positions_out_of_columns() -> None:
    """A numpy position does not drag the squares into 64 bits."""
    start = np.int64(1_000_000)
    budget_ps = 100 * PS_PER_S
    assert H100.decodes_within(start, budget_ps) == H100.decodes_within(int(start), budget_ps)


@pytest.mark.interpreted_core("compiled, it refuses what is no int")
def test_columns_are_priced_like_objects() -> None:
    starts = np.arange(0, 1_000_000, 9973, dtype=np.int64)
    ends = starts + np.arange(len(starts), dtype=np.int64)
    for cost in (H100.decode_ps, H100.prefill_ps):
        column = cost(starts, ends)  # type: ignore[arg-type]
        plain = [cost(start, end) for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]
        assert column.tolist() == plain


@given(any_prices, st.integers(0, 10**6))
def test_recomputation_is_prefill_from_the_first_token(prices: Prices, tokens: int) -> None:
    assert prices.recompute_ps(tokens) == prices.prefill_ps(0, tokens)
    assert prices.swap_ps(tokens) == tokens * prices.swap_block_ps


@pytest.mark.parametrize("bad", [{"decode_token_ps": 0}, {"prefill_context_ps": -1}, {"swap_block_ps": -1}])
def test_bad_prices_are_refused(bad: dict[str, int]) -> None:
    good = {
        "decode_token_ps": 1,
        "decode_context_ps": 0,
        "prefill_token_ps": 0,
        "prefill_context_ps": 0,
        "swap_block_ps": 0,
    }
    with pytest.raises(ValueError, match=next(iter(bad))):
        Prices(**(good | bad))
