"""Prices made from a step-cost model: what they are, when they change; copies; what is refused."""

from random import Random

import pytest

from scheduler_svc.core.prices import PS_PER_S
from scheduler_svc.core.step_cost import BYTES_PER_S_PRIOR, StepCostModel, StepFeatures
from tests.unit.scheduler_core.calibration import TRUTH, feed, linear_s, measured, pure_steps, serving

BLOCK_BYTES = 2 << 20


@pytest.mark.parametrize("seconds", [-1e-9, float("nan"), float("inf")])
def test_impossible_times_are_refused(seconds: float) -> None:
    model = StepCostModel(prior=TRUTH)
    for _ in range(100):
        with pytest.raises(ValueError, match=r"step_s must be finite and >= 0"):
            model.observe(StepFeatures(1, 1, 0, 0), seconds)
        with pytest.raises(ValueError, match=r"seconds must be finite and >= 0"):
            model.observe_swap(BLOCK_BYTES, seconds)
    assert model.coefficients == TRUTH
    assert model.bytes_per_s == BYTES_PER_S_PRIOR


def test_steps_without_rows_say_nothing() -> None:
    model = StepCostModel(prior=TRUTH)
    for _ in range(100):
        model.observe(StepFeatures(0, 0, 0, 0), 5.0)
        model.observe_swap(0, 5.0)
    assert model.coefficients == TRUTH
    assert model.bytes_per_s == BYTES_PER_S_PRIOR


# ── copies ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("bytes_per_s", [2e8, 12e9, 55e9, 4e11])
def test_copies_tell_their_bandwidth(bytes_per_s: float) -> None:
    random = Random(14)
    model = StepCostModel(block_bytes=BLOCK_BYTES)
    for _ in range(100):
        byte_count = BLOCK_BYTES * random.randint(1, 200)
        model.observe_swap(byte_count, byte_count / bytes_per_s * random.gauss(1, 0.05))
    assert model.bytes_per_s == pytest.approx(bytes_per_s, rel=0.06)
    assert model.prices().swap_ps(3) == pytest.approx(3 * BLOCK_BYTES / bytes_per_s * PS_PER_S, rel=0.17)


def test_one_odd_copy_moves_little() -> None:
    model = StepCostModel()
    model.observe_swap(BLOCK_BYTES, 30.0)
    assert model.bytes_per_s >= BYTES_PER_S_PRIOR / 1.31
    model = StepCostModel()
    model.observe_swap(BLOCK_BYTES, 0.0)
    assert model.bytes_per_s <= BYTES_PER_S_PRIOR * 1.09


def test_bandwidth_is_bounded() -> None:
    slow, fast = StepCostModel(), StepCostModel()
    for _ in range(500):
        slow.observe_swap(1, 1e6)
        fast.observe_swap(1 << 40, 0.0)
    assert (slow.bytes_per_s, fast.bytes_per_s) == (1e7, 1e13)


# ── prices ──────────────────────────────────────────────────────────────────────────────────────────


def test_prices_are_what_a_token_would_cost_alone() -> None:
    """A generated token bears a whole step's fixed part; a prompt token its part of a full prefill step's."""
    prices = StepCostModel(prior=TRUTH, block_bytes=BLOCK_BYTES, step_tokens=1000).prices()
    assert prices.decode_ps(99, 100) == round(linear_s(StepFeatures(1, 100, 0, 0)) * PS_PER_S)
    assert prices.prefill_ps(0, 1000) == round(
        linear_s(StepFeatures(0, 0, 0, 0).with_chunk(0, 1000)) * PS_PER_S
    )
    assert prices.swap_block_ps == round(BLOCK_BYTES / BYTES_PER_S_PRIOR * PS_PER_S)


def test_prices_stay_the_same_object_in_steady_operation() -> None:
    """Readers redo their sums when prices change: not once in 50000 steps with 3 % of noise."""
    random = Random(15)
    model = feed(StepCostModel(), measured(list(serving(random, 1000)), random, 5000))
    lists = set()
    for features, seconds in serving(random, 50_000):
        model.observe(features, seconds * random.gauss(1, 0.03))
        lists.add(id(model.prices()))
    assert len(lists) == 1


def test_prices_follow_when_the_executor_becomes_another() -> None:
    random = Random(16)
    model = feed(StepCostModel(), measured(pure_steps("a100"), random, 1000))
    old = model.prices()
    feed(model, measured(pure_steps("h100"), random, 512))
    new = model.prices()
    assert new.decode_token_ps < 0.65 * old.decode_token_ps
    assert new.prefill_ps(0, 2048) < 0.5 * old.prefill_ps(0, 2048)
    assert new.decode_ps(2000, 2001) == pytest.approx(
        model.predict_s(StepFeatures(1, 2001, 0, 0)) * PS_PER_S, rel=0.1
    )


def test_prices_follow_when_only_context_becomes_dearer() -> None:
    """Too little for a token of a short call to notice."""
    model = feed(StepCostModel(prior=TRUTH), serving(Random(21), 500))
    old = model.prices()
    dearer = TRUTH._replace(context_token_s=3 * TRUTH.context_token_s)
    feed(model, serving(Random(22), 1000, dearer))
    new = model.prices()
    assert new.decode_context_ps == pytest.approx(3 * old.decode_context_ps, rel=0.15)
    assert new.decode_ps(0, 1) == pytest.approx(old.decode_ps(0, 1), rel=0.1)


def test_prices_follow_copies() -> None:
    model = StepCostModel(block_bytes=BLOCK_BYTES)
    before = model.prices()
    for _ in range(50):
        model.observe_swap(BLOCK_BYTES, BLOCK_BYTES / 4e9)
    assert model.prices() is not before
    assert model.prices().swap_block_ps == pytest.approx(BLOCK_BYTES / 4e9 * PS_PER_S, rel=0.1)
    assert model.prices().decode_token_ps == before.decode_token_ps
