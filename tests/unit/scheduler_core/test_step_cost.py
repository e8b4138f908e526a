"""The step-cost model against steps of real GPUs, and against everything that steps may do to it."""

from collections.abc import Iterator
from random import Random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from scheduler_svc.core.prices import PS_PER_S
from scheduler_svc.core.step_cost import (
    BYTES_PER_S_PRIOR,
    CEILING,
    PRIOR,
    StepCoefficients,
    StepCostModel,
    StepFeatures,
)
from tests.unit.scheduler_core.calibration import GPUS, Step, errors, feed, measured, mixed_steps, pure_steps

BLOCK_BYTES = 2 << 20
TRUTH = StepCoefficients(8e-3, 3e-3, 1e-5, 5e-8, 2e-5, 2e-9)
"""An executor whose steps are exactly what the model can say."""
seeds = pytest.mark.parametrize("seed", [1, 2, 3])
gpus = pytest.mark.parametrize("gpu", GPUS)


def linear_s(features: StepFeatures, truth: StepCoefficients = TRUTH) -> float:
    rows, context, tokens, reads = features
    fixed_s = truth.prefill_step_s if tokens else truth.decode_step_s
    decode_s = rows * truth.decode_row_s + context * truth.context_token_s
    return fixed_s + decode_s + tokens * truth.prefill_token_s + reads * truth.prefill_context_s


def serving(random: Random, count: int, truth: StepCoefficients = TRUTH) -> Iterator[Step]:
    """Steps of a server with that truth: decode, and a chunk of a prompt in every fourth."""
    for _ in range(count):
        rows = random.randint(1, 256)
        features = StepFeatures(rows, rows * random.randint(100, 4000), 0, 0)
        if random.random() < 0.25:
            features = features.with_chunk(random.choice([0, 512, 2048]), random.randint(16, 2048))
        yield features, linear_s(features, truth)


def machine_like(base: StepCoefficients, random: Random, scale: float) -> StepCoefficients:
    """So many times slower than `base` as a whole, with proportions of its own."""
    return StepCoefficients(*(scale * random.uniform(0.6, 1.6) * value for value in base))


# ── against the tables ──────────────────────────────────────────────────────────────────────────────


@gpus
@seeds
def test_predictions_over_the_tables(gpu: str, seed: int) -> None:
    """Median 4 %, nine of ten 8 %: a linear model can reach 1.7 and 6.1 on them (A100), 2.5 and 5.0."""
    steps = pure_steps(gpu)
    model = feed(StepCostModel(), measured(steps, Random(seed), 1000))
    middle, most, worst = errors(model, steps)
    assert middle <= 0.04
    assert most <= 0.08
    assert worst <= 0.20
    assert model.error <= 0.06
    assert model.changes == 0


@gpus
@seeds
def test_the_prior_is_overridden_within_tens_of_steps(gpu: str, seed: int) -> None:
    steps = pure_steps(gpu)
    model = StepCostModel()
    middle, most, worst = errors(model, steps)
    assert middle <= 0.6
    assert worst <= 1.5, "the prior is of the right order"
    feed(model, measured(steps, Random(seed), 56))
    middle, most, worst = errors(model, steps)
    assert middle <= 0.05
    assert most <= 0.10


@gpus
@seeds
def test_predictions_of_mixed_steps(gpu: str, seed: int) -> None:
    """Mixed steps put together from the tables' columns, learned among pure ones."""
    random = Random(seed)
    steps = pure_steps(gpu) + mixed_steps(gpu, random, 80)
    model = feed(StepCostModel(), measured(steps, random, 1000))
    middle, most, _ = errors(model, steps)
    assert middle <= 0.04
    assert most <= 0.10


@seeds
def test_another_kind_of_machine_needs_no_other_prior(seed: int) -> None:
    """A slow CPU: 100 times the times of the table."""
    steps = [(features, 100 * seconds) for features, seconds in pure_steps("a100")]
    model = feed(StepCostModel(), measured(steps, Random(seed), 120))
    middle, most, _ = errors(model, steps)
    assert middle <= 0.05
    assert most <= 0.10


# ── disturbances ────────────────────────────────────────────────────────────────────────────────────


@gpus
@seeds
def test_hiccups_and_zeros_move_nothing(gpu: str, seed: int) -> None:
    """One step in 100 takes 30 s, one takes none, three take five times their time."""
    random = Random(seed)
    steps = pure_steps(gpu)
    model = StepCostModel()
    for features, seconds in measured(steps, random, 2000):
        odd = random.choices([30.0, 0.0, 5 * seconds, seconds], [1, 1, 3, 95])[0]
        model.observe(features, odd)
    middle, most, _ = errors(model, steps)
    assert middle <= 0.05
    assert most <= 0.10
    assert model.changes == 0


def test_one_hiccup_does_not_change_the_prices() -> None:
    model = feed(StepCostModel(), serving(Random(1), 1000))
    before = model.prices()
    for features, seconds in serving(Random(2), 640):
        model.observe(features, seconds)
    model.observe(StepFeatures(8, 8000, 0, 0), 30.0)
    feed(model, serving(Random(3), 640))
    assert model.prices() is before


def test_a_change_is_found_when_the_prior_had_been_right() -> None:
    model = feed(StepCostModel(prior=TRUTH), serving(Random(17), 4000))
    truth = machine_like(TRUTH, Random(17), 2.0)
    feed(model, serving(Random(18), 256, truth))
    assert model.changes == 1
    assert errors(model, list(serving(Random(19), 200, truth)))[1] <= 0.05


@pytest.mark.parametrize(("old", "new"), [("a100", "h100"), ("h100", "a100")])
@seeds
def test_a_real_change_is_found_within_256_steps(old: str, new: str, seed: int) -> None:
    random = Random(seed)
    model = feed(StepCostModel(), measured(pure_steps(old), random, 4000))
    steps = pure_steps(new)
    feed(model, measured(steps, random, 256))
    middle, most, _ = errors(model, steps)
    assert middle <= 0.05
    assert most <= 0.15
    assert model.changes >= 1


def test_a_slow_drift_is_followed() -> None:
    """Ten per cent slower over 20000 steps, never enough to be called a change."""
    model = StepCostModel()
    for i, (features, seconds) in enumerate(serving(Random(4), 40_000)):
        model.observe(features, seconds * (1 + 0.1 * min(1.0, i / 20_000)))
    probe = StepFeatures(64, 64_000, 0, 0)
    assert model.predict_s(probe) == pytest.approx(1.1 * linear_s(probe), rel=0.02)
    assert model.changes == 0


def test_an_executor_that_took_no_time_may_begin_to() -> None:
    """Simulated executors can be told to take no time; zero must not be a trap."""
    model = StepCostModel()
    feed(model, ((features, 0.0) for features, _ in serving(Random(5), 2000)))
    assert model.predict_s(StepFeatures(64, 64_000, 0, 0)) <= 1e-6
    assert model.prices().decode_token_ps >= 1
    feed(model, serving(Random(6), 1000))
    assert errors(model, list(serving(Random(7), 200)))[1] <= 0.05


def test_what_is_not_measured_stays() -> None:
    """After 20000 steps of one steady batch, prices of prefill are what they were."""
    model = feed(StepCostModel(), serving(Random(8), 2000))
    prompt = StepFeatures(0, 0, 0, 0).with_chunk(0, 1500)
    before = model.predict_s(prompt)
    for i in range(20_000):
        features = StepFeatures(256, 256 * (500 + i % 1000), 0, 0)
        model.observe(features, linear_s(features))
    assert model.predict_s(prompt) == pytest.approx(before, rel=1e-3)
    assert model.predict_s(prompt) == pytest.approx(linear_s(prompt), rel=0.05)


# ── coefficients ────────────────────────────────────────────────────────────────────────────────────


def test_every_coefficient_is_found_when_steps_tell_them_apart() -> None:
    model = feed(StepCostModel(), serving(Random(9), 5000))
    assert model.coefficients == pytest.approx(TRUTH, rel=0.01)


def test_a_given_prior_holds_until_there_is_a_measurement() -> None:
    model = StepCostModel(prior=TRUTH)
    probe = StepFeatures(3, 300, 0, 0).with_chunk(100, 50)
    assert model.predict_s(probe) == pytest.approx(linear_s(probe))
    assert model.coefficients == TRUTH
    assert StepCostModel().coefficients == PRIOR


def test_a_step_with_prefill_has_a_fixed_part_of_its_own() -> None:
    model = StepCostModel(prior=TRUTH)
    assert model.predict_s(StepFeatures(0, 0, 0, 0)) == 0.0
    assert model.predict_s(StepFeatures(1, 0, 0, 0)) == pytest.approx(8.01e-3)
    assert model.predict_s(StepFeatures(0, 0, 1, 0)) == pytest.approx(3.02e-3)
    assert model.predict_s(StepFeatures(1, 0, 1, 0)) == pytest.approx(3.03e-3)


def test_chunks_of_a_prompt_add_up_to_the_whole() -> None:
    nothing = StepFeatures(0, 0, 0, 0)
    whole = nothing.with_chunk(0, 1000)
    assert nothing.with_chunk(0, 300).with_chunk(300, 512).with_chunk(812, 188) == whole
    assert whole == StepFeatures(0, 0, 1000, 500_500)


features_of_any_step = st.builds(
    StepFeatures,
    st.integers(0, 4096),
    st.integers(0, 10**8),
    st.integers(0, 10**6),
    st.integers(0, 10**12),
)
DEGENERATE = [
    (StepFeatures(0, 0, 1, 0), 110.0, 37),
    (StepFeatures(2, 0, 42, 0), 1.0, 46),
    (StepFeatures(0, 0, 1936, 0), 47.0, 43),
    (StepFeatures(61, 0, 1, 0), 0.0, 67),
    (StepFeatures(1, 0, 0, 0), 0.0, 12),
    (StepFeatures(0, 0, 1, 0), 256.0, 43),
]
"""Columns that cancel to the last bit of a float."""
any_seconds = st.one_of(st.just(0.0), st.floats(1e-12, 1e9), st.floats(0.001, 1.0))
any_steps = st.lists(
    st.tuples(features_of_any_step, any_seconds, st.integers(1, 70)), min_size=1, max_size=12
)


@example(DEGENERATE)
@given(any_steps)
def test_nothing_makes_a_coefficient_negative_or_absurd(steps: list[tuple[StepFeatures, float, int]]) -> None:
    model = StepCostModel(block_bytes=BLOCK_BYTES)
    for features, seconds, times in steps:
        for _ in range(times):
            model.observe(features, seconds)
    pairs = zip(model.coefficients, CEILING, strict=True)
    assert all(0 <= value <= ceiling for value, ceiling in pairs), model.coefficients
    assert 0 <= model.error <= 1
    assert model.prices().decode_token_ps > 0


@pytest.mark.parametrize("seed", range(20))
def test_any_machine_is_learned_in_500_steps_and_any_after_it(seed: int) -> None:
    random = Random(seed)
    first = machine_like(PRIOR, random, 10 ** random.uniform(-2, 1))
    second = machine_like(first, random, random.choice([0.05, 0.2, 0.5, 2, 4, 10]))
    model = StepCostModel()
    for truth in (first, second):
        feed(model, serving(random, 500, truth))
        _, most, _ = errors(model, list(serving(random, 200, truth)))
        assert most <= 0.02


def test_equal_steps_make_equal_models() -> None:
    first, second = (feed(StepCostModel(), measured(pure_steps("h100"), Random(12), 3000)) for _ in range(2))
    assert first.coefficients == second.coefficients
    assert first.prices() == second.prices()


def test_a_long_run_stays_where_the_truth_is() -> None:
    steps = list(measured(pure_steps("h100"), Random(13), 2000))
    model = StepCostModel()
    for _ in range(100):
        feed(model, steps)
    middle, most, _ = errors(model, pure_steps("h100"))
    assert middle <= 0.04
    assert most <= 0.08
    assert model.changes == 0


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


def test_prices_follow_copies() -> None:
    model = StepCostModel(block_bytes=BLOCK_BYTES)
    before = model.prices()
    for _ in range(50):
        model.observe_swap(BLOCK_BYTES, BLOCK_BYTES / 4e9)
    assert model.prices() is not before
    assert model.prices().swap_block_ps == pytest.approx(BLOCK_BYTES / 4e9 * PS_PER_S, rel=0.1)
    assert model.prices().decode_token_ps == before.decode_token_ps
