"""The presets say what their fits say; parts add up."""

import pytest

from executor_svc.cost_model import step_cost


def test_h100_decode_fit() -> None:
    cost = step_cost("h100-llama-3.1-8b")
    # 6.63 + 0.0102 B + 4.41e-5 KV milliseconds
    assert cost.step_s(decode_contexts=[1000] * 64, prefills=[]) == pytest.approx(10.1052e-3)


def test_a100_prefill_fit() -> None:
    cost = step_cost("a100-llama-3.1-8b")
    # 6.29 + 0.0540 n + 1.61e-6 n^2 milliseconds
    assert cost.step_s(decode_contexts=[], prefills=[(0, 1000)]) == pytest.approx(61.9e-3)


def test_chunks_of_a_prompt_cost_as_much_as_the_whole_apart_from_the_constant() -> None:
    cost = step_cost("h100-llama-3.1-8b")
    whole = cost.step_s(decode_contexts=[], prefills=[(0, 2048)])
    chunks = [cost.step_s(decode_contexts=[], prefills=[(start, 512)]) for start in range(0, 2048, 512)]
    assert sum(chunks) == pytest.approx(whole + 3 * cost.prefill_step_s)


def test_a_mixed_step_reads_the_weights_once() -> None:
    cost = step_cost("h100-llama-3.1-8b")
    decode = cost.step_s(decode_contexts=[500], prefills=[])
    prefill = cost.step_s(decode_contexts=[], prefills=[(0, 100)])
    mixed = cost.step_s(decode_contexts=[500], prefills=[(0, 100)])
    assert mixed == pytest.approx(decode + prefill - cost.prefill_step_s)


@pytest.mark.parametrize(
    ("name", "seconds"), [("fixed:10ms", 0.01), ("fixed:0.5s", 0.5), ("fixed:250us", 250e-6), ("zero", 0.0)]
)
def test_fixed_steps_take_as_long_whatever_is_in_them(name: str, seconds: float) -> None:
    cost = step_cost(name, overhead_s=0.25)
    for decodes, prefills in (([9], []), ([], [(0, 4096)]), ([9] * 100, [(0, 4096)])):
        assert cost.step_s(decode_contexts=decodes, prefills=prefills) == pytest.approx(seconds + 0.25)
    assert cost.step_s(decode_contexts=[], prefills=[]) == 0


def test_swaps_cost_their_bytes() -> None:
    assert step_cost("h100-llama-3.1-8b").swap_s(32_000_000_000) == pytest.approx(1.0)
    assert step_cost("zero").swap_s(1 << 40) == 0


@pytest.mark.parametrize("name", ["", "b200", "fixed:", "fixed:10", "fixed:-1ms", "fixed:10ms "])
def test_an_unknown_name_is_told_the_choices(name: str) -> None:
    with pytest.raises(ValueError, match=r"h100-llama-3\.1-8b.*fixed:10ms"):
        step_cost(name)
