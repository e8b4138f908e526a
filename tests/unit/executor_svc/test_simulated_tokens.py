"""Made-up tokens: the column functions give what the plain ones give, number for number."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from executor_svc.simulated_tokens import TokenRule, extend_each, extend_prefix, hash_prefixes

TOKENS = st.lists(st.integers(-(2**31), 2**31 - 1), max_size=40)
RULES = [
    TokenRule(vocab_size=32000),
    TokenRule(vocab_size=152_064, first_token=300, eos_token_id=2),
    TokenRule(vocab_size=50, first_token=3, eos_token_id=3, eos_every=4),
    TokenRule(vocab_size=50, first_token=3, eos_token_id=7, eos_every=4),
]


@given(TOKENS)
def test_a_sequence_is_hashed_at_once(tokens: list[int]) -> None:
    hashes: list[int] = []
    extend_prefix(hashes, tokens)
    assert hash_prefixes(tokens).tolist() == hashes


@given(st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**31 - 1)), max_size=20))
def test_prefixes_are_extended_at_once(pairs: list[tuple[int, int]]) -> None:
    expected = []
    for prefix, token in pairs:
        hashes = [prefix]
        extend_prefix(hashes, [token])
        expected.append(hashes[1])
    prefixes = np.array([prefix for prefix, _ in pairs], np.uint64)
    tokens = np.array([token for _, token in pairs], np.int32)
    assert extend_each(prefixes, tokens).tolist() == expected


@pytest.mark.parametrize("rule", RULES)
def test_tokens_are_drawn_at_once(rule: TokenRule) -> None:
    prefixes = hash_prefixes(range(2000))
    tokens = rule.after_each(prefixes)
    assert tokens.dtype == np.int32
    assert tokens.tolist() == [rule.after(prefix) for prefix in prefixes.tolist()]
    assert len(set(tokens.tolist())) > 40


def test_long_prompts_that_differ_early_differ_to_the_end() -> None:
    one, two = hash_prefixes([1, *range(3000)]), hash_prefixes([2, *range(3000)])
    assert not (one == two).any()
