"""The simulated runner: known tokens for good plans, a violation for plans that would corrupt a KV cache."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from executor_svc.cost_model import step_cost
from executor_svc.runner import PlanViolation, StepPlan
from executor_svc.simulated_runner import SimulatedConfig, SimulatedRunner
from executor_svc.simulated_tokens import TokenRule
from tests.unit.executor_svc.plan_writer import call, plan

RULE = TokenRule(vocab_size=1000)
BLOCK = 4


class FakeClock:
    """Time that passes only when waited for."""

    def __init__(self) -> None:
        self.time_s = 100.0

    def now_s(self) -> float:
        return self.time_s

    def wait_until(self, deadline_s: float) -> None:
        self.time_s = max(self.time_s, deadline_s)


def make(rule: TokenRule = RULE, cost: str = "zero", **larger: int) -> SimulatedRunner:
    """A small device: blocks of 4 tokens, 20 of them, 3 rows, 16 tokens a step."""
    config = SimulatedConfig(
        model="m",
        model_fingerprint="f",
        tokenizer_fingerprint="t",
        cost_name=cost,
        cost=step_cost(cost),
        tokens=rule,
        block_size=BLOCK,
        num_blocks=20,
        host_blocks=8,
        max_num_seqs=3,
        max_num_batched_tokens=16,
        max_model_len=24,
    )
    return SimulatedRunner(replace(config, **larger), clock=FakeClock())


def run(runner: SimulatedRunner, *plans: StepPlan) -> dict[int, list[int]]:
    """Executes plans; returns the tokens of each handle."""
    tokens: dict[int, list[int]] = {}
    for each in plans:
        result = runner.execute(each).result()
        assert result.step == each.step
        for handle, token in zip(result.handles, result.tokens, strict=True):
            tokens.setdefault(handle, []).append(token)
    return tokens


PROMPT = [1, 2, 3, 4, 5, 6]


def started(prompt: Sequence[int] = PROMPT) -> SimulatedRunner:
    """Call 1 has its prompt computed in blocks 1 and 2 and one token generated."""
    runner = make()
    runner.announce(call(1, prompt))
    run(runner, plan(1, [1], chunks={0: len(prompt)}, joined={0: 0}, blocks={0: [1, 2]}))
    return runner


# ── good plans ──────────────────────────────────────────────────────────────────────────────────────


def test_prefill_and_decode_give_the_rules_tokens() -> None:
    runner = make()
    runner.announce(call(1, PROMPT))
    tokens = run(
        runner,
        plan(1, [1], chunks={0: 4}, joined={0: 0}, blocks={0: [3]}),
        plan(2, [1], chunks={0: 2}, blocks={0: [7]}),
        plan(3, [1]),
        plan(4, [1]),
        plan(5, [1], blocks={0: [9]}),
    )
    assert tokens[1] == RULE.generate(PROMPT, 4)


def test_a_chunk_that_leaves_prompt_uncomputed_samples_nothing() -> None:
    runner = make()
    runner.announce(call(1, PROMPT))
    assert run(runner, plan(1, [1], chunks={0: 5}, joined={0: 0}, blocks={0: [3, 4]})) == {}


def test_a_paused_call_resumes_from_its_blocks() -> None:
    runner = started()
    tokens = run(
        runner,
        plan(2),
        plan(3, [1], joined={0: 6}, blocks={0: [1, 2]}),
        plan(4, [1]),
    )
    assert tokens[1] == RULE.generate(PROMPT, 3)[1:]


def test_a_call_continues_where_another_executor_left_it() -> None:
    runner = make()
    known = RULE.generate(PROMPT, 3)
    runner.announce(call(5, PROMPT, known))
    tokens = run(runner, plan(1, [5], chunks={0: 9}, joined={0: 0}, blocks={0: [1, 2, 3]}), plan(2, [5]))
    assert known + tokens[5] == RULE.generate(PROMPT, 5)


def test_a_full_block_of_another_call_serves_as_prefix() -> None:
    runner = started()
    runner.announce(call(2, [1, 2, 3, 4, 9]))
    tokens = run(runner, plan(2, [1, 2], joined={1: 4}, blocks={1: [1, 5]}))
    assert tokens[2] == RULE.generate([1, 2, 3, 4, 9], 1)
    assert tokens[1] == RULE.generate(PROMPT, 2)[1:]


def test_swapped_blocks_come_back_in_other_places() -> None:
    runner = started()
    run(runner, plan(2, swap_out=[(1, 0), (2, 7)]))
    result = runner.execute(
        plan(3, [1], joined={0: 6}, blocks={0: [11, 12]}, swap_in=[(0, 11), (7, 12)])
    ).result()
    assert list(result.tokens) == RULE.generate(PROMPT, 2)[1:]
    assert result.swap_bytes == 2 * runner.info.block_bytes


def test_a_released_handle_can_be_forgotten_and_its_blocks_given_away() -> None:
    runner = started()
    runner.announce(call(2, [7, 7]))
    tokens = run(runner, plan(2, [2], chunks={0: 2}, joined={0: 0}, blocks={0: [2]}, released=[1]))
    assert tokens[2] == RULE.generate([7, 7], 1)


def test_a_bad_token_fails_its_call_alone_and_once() -> None:
    runner = make()
    runner.announce(call(1, [1, 5000]))
    runner.announce(call(2, [1, 2]))
    first = runner.execute(
        plan(1, [1, 2], chunks={0: 2, 1: 2}, joined={0: 0, 1: 0}, blocks={0: [1], 1: [2]})
    ).result()
    assert list(first.failures) == [1]
    assert "0..999" in first.failures[1]
    assert list(first.handles) == [2]
    assert runner.execute(plan(2, [1, 2])).result().failures == {}


def test_step_time_is_the_cost_models() -> None:
    runner = make(cost="h100-llama-3.1-8b")
    clock = FakeClock()
    runner._clock = clock
    runner.announce(call(1, PROMPT))
    result = runner.execute(plan(1, [1], chunks={0: 6}, joined={0: 0}, blocks={0: [1, 2]})).result()
    assert result.step_s == step_cost("h100-llama-3.1-8b").step_s(decode_contexts=[], prefills=[(0, 6)])
    assert clock.time_s == pytest.approx(100.0 + result.step_s)


def test_end_of_sequence_comes_only_when_asked_for() -> None:
    never = TokenRule(vocab_size=4, eos_token_id=2)
    assert 2 not in never.generate([1, 2, 3], 300)
    asked = TokenRule(vocab_size=1000, eos_token_id=2, eos_every=10)
    tokens = asked.generate([1, 2, 3], 1000)
    assert tokens[-1] == 2
    assert tokens.count(2) == 1
    assert len(tokens) < 1000


def test_tokens_stay_in_their_range() -> None:
    rule = TokenRule(vocab_size=110, first_token=100)
    assert set(rule.generate([1], 500)) == set(range(100, 110))


def test_info_says_simulated() -> None:
    info = make().info
    assert info.simulated
    assert "simulated" in info.runner
    assert "vllm-0.32.0/msgpack" in info.params_formats


def test_rows_outgrow_their_lanes_while_they_decode() -> None:
    """Tables and hashes move to wider arrays in the middle of a batch that does not change."""
    runner = make(block_size=1, num_blocks=400, max_model_len=200)
    for handle in (1, 2):
        runner.announce(call(handle, [handle]))
    plans = [plan(1, [1, 2], joined={0: 0, 1: 0}, blocks={0: [1], 1: [2]})]
    plans += [plan(1 + n, [1, 2], blocks={0: [1 + 2 * n], 1: [2 + 2 * n]}) for n in range(1, 150)]
    tables = {0: list(range(1, 303, 2)), 1: list(range(2, 303, 2))}
    again = {0: 8, 1: 8}  # the last blocks are written anew: nobody else may seem to use them
    resumed = plan(152, [1, 2], chunks=again, joined={0: 143, 1: 143}, blocks=tables)
    tokens = run(runner, *plans, plan(151), resumed)
    assert tokens == {handle: RULE.generate([handle], 151) for handle in (1, 2)}


# ── plans that would corrupt a KV cache ─────────────────────────────────────────────────────────────


def announce_two(runner: SimulatedRunner) -> SimulatedRunner:
    """Adds calls 2 and 3 with a prompt of their own."""
    runner.announce(call(2, [50, 51]))
    runner.announce(call(3, [60, 61]))
    return runner


BAD_STEPS: dict[str, tuple[Callable[[], SimulatedRunner], StepPlan]] = {
    "handle 9 is not known": (started, plan(2, [9], joined={0: 0}, blocks={0: [3]})),
    "handle 8 is not known": (started, plan(2, [1], released=[8])),
    "was not in the previous batch": (lambda: announce_two(started()), plan(2, [1, 2], blocks={1: [3]})),
    "was already in the previous batch": (started, plan(2, [1], joined={0: 6}, blocks={0: [1, 2]})),
    "block 20 is not one of": (started, plan(2, [1], blocks={0: [20]})),
    "block 0 is not one of": (started, plan(2, [1], blocks={0: [0]})),
    "plans 8 computed tokens, the call has 7": (started, plan(2, [1], chunks={0: 2})),
    "do not fit into 2 blocks": (lambda: grown(started()), plan(4, [1])),
    "17 tokens, max_num_batched_tokens is 16": (started, plan(2, [1], chunks={0: 17})),
    "4 rows, max_num_seqs is 3": (
        lambda: announce_two(four_calls()),
        plan(2, [1, 2, 3, 4], joined={1: 0, 2: 0, 3: 0}, blocks={1: [3], 2: [4], 3: [5]}),
    ),
    "block 2 is written while 2 rows use it": (
        lambda: announce_two(started()),
        plan(2, [1, 2], chunks={1: 2}, joined={1: 0}, blocks={1: [2]}),
    ),
    "block 3 is written while 2 rows use it": (
        lambda: announce_two(make()),
        plan(1, [2, 3], chunks={0: 2, 1: 2}, joined={0: 0, 1: 0}, blocks={0: [3], 1: [3]}),
    ),
    "block 6 is written while 2": (
        lambda: announce_two(make()),
        plan(1, [2], chunks={0: 2}, joined={0: 0}, blocks={0: [6, 6]}),
    ),
    "block 1 does not hold the KV of positions 0..0": (
        lambda: announce_two(started()),
        plan(2, [1, 2], joined={1: 1}, blocks={1: [1]}),
    ),
    "block 5 does not hold the KV of positions 0..3": (
        lambda: paused(started()),
        plan(3, [1], joined={0: 6}, blocks={0: [5, 2]}),
    ),
    "block 2 does not hold the KV of positions 4..5": (
        lambda: overwritten(started()),
        plan(3, [1], joined={0: 6}, blocks={0: [1, 2]}),
    ),
    "6 computed tokens exceed its 1 blocks": (
        lambda: paused(started()),
        plan(3, [1], joined={0: 6}, blocks={0: [1]}),
    ),
    "7 tokens computed, the call has 7": (
        lambda: paused(started()),
        plan(3, [1], joined={0: 7}, blocks={0: [1, 2]}),
    ),
    "host block 8 is not one of 8": (started, plan(2, [1], swap_out=[(1, 8)])),
    "block 1 is swapped in while": (started, plan(2, [1], swap_in=[(0, 1)])),
    "block 3 does not hold the KV of positions 0..3": (
        lambda: paused(started()),
        plan(3, [1], joined={0: 6}, blocks={0: [3, 4]}, swap_in=[(5, 3), (6, 4)]),
    ),
}


def grown(runner: SimulatedRunner) -> SimulatedRunner:
    """Call 1 fills its two blocks."""
    run(runner, plan(2, [1]), plan(3, [1]))
    return runner


def four_calls() -> SimulatedRunner:
    runner = started()
    runner.announce(call(4, [70]))
    return runner


def paused(runner: SimulatedRunner) -> SimulatedRunner:
    """Call 1 left the batch."""
    run(runner, plan(2))
    return runner


def overwritten(runner: SimulatedRunner) -> SimulatedRunner:
    """Call 1 left the batch and call 2 got one of its blocks."""
    runner = announce_two(runner)
    run(runner, plan(2, [2], chunks={0: 2}, joined={0: 0}, blocks={0: [2]}))
    return runner


@pytest.mark.parametrize("problem", BAD_STEPS)
def test_a_corrupting_plan_is_a_violation(problem: str) -> None:
    prepare, bad = BAD_STEPS[problem]
    runner = prepare()
    with pytest.raises(PlanViolation, match=problem):
        runner.execute(bad)


def test_a_call_beyond_the_models_length_is_a_violation() -> None:
    runner = make()
    runner.announce(call(1, list(range(25))))
    run(runner, plan(1, [1], chunks={0: 16}, joined={0: 0}, blocks={0: [1, 2, 3, 4]}))
    with pytest.raises(PlanViolation, match="25 tokens, max_model_len is 24"):
        runner.execute(plan(2, [1], chunks={0: 9}, blocks={0: [5, 6, 7]}))


def test_announcing_a_handle_twice_is_a_violation() -> None:
    with pytest.raises(PlanViolation, match="handle 1 is announced twice"):
        started().announce(call(1))


def test_reset_forgets_calls_and_blocks() -> None:
    runner = started()
    runner.reset()
    runner.announce(call(1, PROMPT))
    with pytest.raises(PlanViolation, match="block 1 does not hold"):
        runner.execute(plan(1, [1], joined={0: 5}, blocks={0: [1, 2]}))
