"""The columnar simulated runner does, plan by plan, what the plain one does: results, refusals, reasons."""

import re
from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from executor_svc.runner import PlanViolation, StepPlan, StepResult
from executor_svc.simulated_runner import SimulatedRunner
from tests.unit.executor_svc.plain_runner import PlainRunner
from tests.unit.executor_svc.random_plans import CONFIG, RandomPlans


class NoTime:
    """Steps take no time."""

    def now_s(self) -> float:
        return 0.0

    def wait_until(self, deadline_s: float) -> None:
        pass


class SideBySide:
    """Both runners, fed the same, and a count of what they met."""

    def __init__(self, rng: Random) -> None:
        self._plans = RandomPlans(rng)
        self._fast = SimulatedRunner(CONFIG, clock=NoTime())
        self._plain = PlainRunner(CONFIG)
        self.met: Counter[str] = Counter()

    def step(self) -> None:
        """One plan for both, after an announcement or two."""
        for call in self._plans.announcements():
            self._fast.announce(call)
            self._plain.announce(call)
        plan = self._plans.plan()
        expected = self._expected(plan)
        if isinstance(expected, str):
            with pytest.raises(PlanViolation) as refused:
                self._fast.execute(plan)
            assert str(refused.value) == expected
            self._fast.reset()
            self._plain.reset()
            self._plans.restart()
        else:
            self._check(self._fast.execute(plan).result(), expected)
            self._plans.advance()
            self._count(plan, expected)

    def _expected(self, plan: StepPlan) -> StepResult | str:
        try:
            return self._plain.execute(plan)
        except PlanViolation as violation:
            self.met[re.sub(r"\d+", "N", str(violation))] += 1
            return str(violation)

    @staticmethod
    def _check(result: StepResult, expected: StepResult) -> None:
        assert list(result.handles) == list(expected.handles)
        assert list(result.tokens) == list(expected.tokens)
        assert result.failures == expected.failures
        assert result.step_s == expected.step_s
        assert (result.swap_s, result.swap_bytes) == (expected.swap_s, expected.swap_bytes)

    def _count(self, plan: StepPlan, result: StepResult) -> None:
        self.met["token"] += len(result.tokens)
        self.met["failure"] += len(result.failures)
        self.met["chunk"] += len(plan.chunks)
        self.met["swap out"] += len(plan.swap_out)
        self.met["swap in"] += len(plan.swap_in)
        self.met["resumed"] += sum(1 for computed in plan.joined.values() if computed)
        self.met["steady"] += bool(plan.handles) and not (plan.joined or plan.chunks)
        self.met["released"] += len(plan.released)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32))
def test_both_agree_on_any_plan(seed: int) -> None:
    both = SideBySide(Random(seed))
    for _ in range(60):
        both.step()


def test_random_traffic_meets_everything_and_both_agree() -> None:
    """Also guards the generator: what it never makes would not be compared."""
    both = SideBySide(Random(1))
    for _ in range(8000):
        both.step()
    for what in ("token", "failure", "chunk", "swap out", "swap in", "resumed", "steady", "released"):
        assert both.met[what] > 20, (what, both.met)
    for violation in (
        "handle N is not known",
        "handle N is released while it is a row",
        "row N (handle N) was not in the previous batch",
        "row N (handle N) was already in the previous batch",
        "block N is not one of the device's N..N",
        "host block N is not one of N",
        "block N is swapped in while a row of the batch uses it",
        "block N is written while N rows use it",
        "block N does not hold the KV of positions N..N",
        "positions up to N do not fit into N blocks",
        "row N: plans N computed tokens, the call has N",
        "row N: N tokens computed, the call has N",
        "row N: N computed tokens exceed its N blocks",
        "N tokens, max_num_batched_tokens is N",
        "N rows, max_num_seqs is N",
    ):
        assert both.met[violation], (violation, both.met)
