"""What becomes of a preempted call's KV."""

from typing import Any

import pytest

from scheduler_svc.core.kv_choice import KvChoice, choose_kv
from scheduler_svc.core.prices import Prices

PRICES = Prices(
    decode_token_ps=1000,
    decode_context_ps=1,
    prefill_token_ps=100,
    prefill_context_ps=2,
    swap_block_ps=2000,
)
"""A block of 16 tokens: 4000 to the host and back; 1872 to compute it as the first of a prompt, 9552 as the
sixteenth."""


def choice(**changes: Any) -> KvChoice:
    held: dict[str, Any] = {
        "tokens": 256,
        "blocks": 16,
        "prices": PRICES,
        "memory_needed": True,
        "host_blocks_free": 1000,
    }
    return choose_kv(**(held | changes))


def test_nothing_moves_while_nobody_needs_the_memory() -> None:
    assert choice(memory_needed=False) is KvChoice.PAUSE
    assert choice(memory_needed=False, host_blocks_free=0) is KvChoice.PAUSE


def test_it_is_swapped_when_copying_twice_is_cheaper_than_computing() -> None:
    assert 2 * PRICES.swap_ps(16) < PRICES.recompute_ps(256)
    assert choice() is KvChoice.SWAP


def test_it_is_dropped_when_computing_is_cheaper() -> None:
    """A short context: attention is cheap."""
    assert 2 * PRICES.swap_ps(1) > PRICES.recompute_ps(16)
    assert choice(tokens=16, blocks=1) is KvChoice.DROP


def test_it_is_dropped_when_the_host_is_full() -> None:
    assert choice(host_blocks_free=16) is KvChoice.SWAP
    assert choice(host_blocks_free=15) is KvChoice.DROP


def test_of_equal_costs_the_host_is_spared() -> None:
    tokens = 16
    assert PRICES.recompute_ps(tokens) == 1872
    for swap_block_ps, expected in ((935, KvChoice.SWAP), (936, KvChoice.DROP)):
        prices = Prices(
            decode_token_ps=1,
            decode_context_ps=0,
            prefill_token_ps=100,
            prefill_context_ps=2,
            swap_block_ps=swap_block_ps,
        )
        assert choice(tokens=tokens, blocks=1, prices=prices) is expected


@pytest.mark.parametrize("host_blocks_free", [0, 5])
def test_what_the_host_has_already_costs_nothing(host_blocks_free: int) -> None:
    assert choice(tokens=16, blocks=0, host_blocks_free=host_blocks_free) is KvChoice.SWAP


def test_a_call_without_kv_has_nothing_to_keep() -> None:
    assert choice(tokens=0, blocks=0) is KvChoice.DROP
