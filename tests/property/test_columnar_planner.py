"""The columnar planner makes the plain planner's plans: both run side by side on random traffic.

Traffic is drawn from a seed: chunked prefill, preemption, exhausted blocks, the host tier, cancels, stop
tokens, failing calls, broken results, executors lost and joined again, one plan ahead and in lockstep, all
policies and changes of policy. Most calls are long, so that rows stay in the lane. A failure prints its seed:
`pytest tests/property/test_columnar_planner.py -k "[7]"` repeats seed 7.
"""

from collections import Counter
from dataclasses import replace
from functools import partial
from random import Random
from typing import Any

import pytest

from scheduler_svc.core.config import Admission, Fit, KvPreempted, ServiceUnit, Tie
from scheduler_svc.core.events import (
    CancelReason,
    ExecutorDrainRequested,
    FrontendLost,
    PolicyChanged,
    ProgramCancelled,
    ProgramEnded,
    StepCompleted,
)
from scheduler_svc.core.ids import ExecutorId, FrontendId, ProgramId
from scheduler_svc.core.lane import Lane
from scheduler_svc.core.lane.lane import RESULTS_KEPT
from tests.property.twin_world import TwinWorld
from tests.unit.scheduler_core.obedient_executor import VOCAB_SIZE
from tests.unit.scheduler_core.world import TENANT, executor_spec

EXECUTORS = ("executor-1", "executor-2")
FRONTENDS = ("frontend-1", "frontend-2", "frontend-3")
POLICIES = ("fcfs", "program_fcfs", "mlfq", "plas", "atlas", "gittins")
PROGRAMS = 8


class Traffic:
    """Random events from one seed."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        pick = self.random.choice
        self.epoch = 0
        self.prefix = [self.random.randrange(VOCAB_SIZE) for _ in range(40)]
        self.frontends = [FrontendId(name) for name in FRONTENDS[: pick([1, 1, 2, 3])]]
        self.plans_in_flight = pick([1, 2, 2, 3])
        self.features: Counter[str] = Counter()
        self.world = TwinWorld(
            Random(seed),
            look_every=pick([1, 5, 40, 400]),
            policy=pick(POLICIES),
            fit=pick([Fit.STRICT, Fit.BACKFILL]),
            tie=pick(list(Tie)),
            running_first=pick([True, True, False]),
            service_unit=pick(list(ServiceUnit)),
            levels=pick([1, 3, 8]),
            first_quantum_s=pick([0.05, 0.5, 5.0, 60.0]),
            starvation_beta=pick([None, 3.0, 10.0]),
            preemption_grace_s=pick([0.0, 0.0, 0.05]),
            kv_preempted=pick(list(KvPreempted)),
            admission=pick([Admission.NONE, Admission.NONE, Admission.WORKING_SET]),
            short_prompt_tokens=pick([0, 8, 2048]),
            executor_losses_max=10**6,
            recent_programs_max=5,
        )
        self.join("executor-1")

    def join(self, executor_id: str) -> None:
        pick = self.random.choice
        self.epoch += 1
        spec = executor_spec(
            executor_id,
            epoch=self.epoch,
            num_blocks=pick([33, 49, 65, 300]),
            host_blocks=pick([0, 0, 10, 100]),
            block_bytes=pick([0, 1000]),
            max_model_len=128,
            max_num_seqs=pick([1, 2, 4, 8, 16]),
            max_num_batched_tokens=pick([16, 24, 64, 512]),
            max_plans_in_flight=self.plans_in_flight,
            prefix_caching=self.random.random() < 0.8,
        )
        self.world.join(spec, step_s=pick([1.0, 0.01, 0.1]))

    # ── events ──────────────────────────────────────────────────────────────────────────────────────

    def submit(self) -> None:
        pick = self.random.choice
        length = self.random.randint(1, 30)
        max_tokens = self.random.randint(1, 90)
        changes: dict[str, Any] = {
            "prompt": self.prefix[:length] if self.random.random() < 0.6 else length,
            "max_tokens": max_tokens,
            "min_tokens": pick([0, 0, max_tokens // 2]),
            "stop_token_ids": pick([frozenset(), frozenset(), frozenset(range(100, 130))]),
            "eos_token_id": pick([None, 5, 250, 5000]),
            "needs_preparation": self.random.random() < 0.1,
            "skip_reading_prefix_cache": self.random.random() < 0.1,
            "deadline_s": pick([None, None, None, 30.0]),
            "frontend_id": pick(self.frontends),
        }
        if self.random.random() < 0.2 and self.world.specs:
            changes["parent_call_ids"] = (pick(list(self.world.specs)),)
        self.world.submit(f"program-{self.random.randrange(PROGRAMS)}", **changes)

    def break_a_result(self) -> None:
        """The next result of some executor contradicts its plan, or reports a failure, or has logprobs."""
        executor = self.random.choice(list(self.world.executors.values()))
        if not executor.results:
            return
        result = executor.results.popleft()
        how = self.random.choice(["failure", "failure", "payloads", "payloads", "token", "lost", "handle"])
        executor.results.appendleft(self._broken(result, how, executor))
        self.features[how] += 1

    def _broken(self, result: StepCompleted, how: str, executor: Any) -> StepCompleted:
        if not result.handles:
            return result
        handle = self.random.choice(list(result.handles))
        index = list(result.handles).index(handle)
        rest = [*result.handles[:index], *result.handles[index + 1 :]]
        rest_tokens = [*result.tokens[:index], *result.tokens[index + 1 :]]
        match how:
            case "payloads":
                return replace(result, payloads={handle: b"logprobs", 10**6: b"nobody's"})
            case "failure":
                if handle in executor.calls:  # it may have been released meanwhile
                    executor.calls[handle].failed = True
                return replace(result, handles=rest, tokens=rest_tokens, failures={handle: "broken"})
            case "token":
                bad = self.random.choice([-1, -VOCAB_SIZE - 1, VOCAB_SIZE, 2**31 - 1, 2**31])
                return replace(result, handles=[*rest, handle], tokens=[*rest_tokens, bad])
            case "lost":
                return replace(result, handles=rest, tokens=rest_tokens)
        return replace(result, handles=[*rest, 10**6])

    def change_policy(self) -> None:
        pick = self.random.choice
        changes = {
            "policy": pick(POLICIES),
            "service_unit": pick(list(ServiceUnit)),
            "tie": pick(list(Tie)),
            "first_quantum_s": pick([0.05, 5.0]),
        }
        self.world.feed(PolicyChanged(changes=changes))

    def end_a_program(self) -> None:
        event = self.random.choice([ProgramEnded, ProgramCancelled])
        name = f"program-{self.random.randrange(PROGRAMS)}"
        self.world.feed(event(tenant=TENANT, program_id=ProgramId(name)))
        self.world.open(name)

    def do_something(self) -> None:
        world, dice = self.world, self.random.random()
        rare = {
            0.001: lambda: world.executors and world.lose(self.random.choice(list(world.executors))),
            0.002: lambda: world.executors and self.drain(),
            0.004: self.change_policy,
            0.006: self.end_a_program,
            0.020: lambda: world.executors and self.break_a_result(),
            0.021: lambda: world.feed(FrontendLost(frontend_id=self.random.choice(self.frontends))),
            0.030: self.join_missing,
            0.040: lambda: world.pass_time(self.random.random() * 3),
            0.070: self.cancel,
            0.160: self.submit,
            0.200: world.plan,
            0.300: self.deliver_one,
        }
        for limit, event in rare.items():
            if dice < limit:
                event()
                return
        world.turn()

    def drain(self) -> None:
        executor_id = self.random.choice(list(self.world.executors))
        self.world.feed(ExecutorDrainRequested(executor_id=ExecutorId(executor_id)))

    def join_missing(self) -> None:
        missing = [name for name in EXECUTORS if name not in self.world.executors]
        if missing:
            self.join(missing[0])

    def cancel(self) -> None:
        if self.world.specs:
            reason = self.random.choice(list(CancelReason))
            self.world.cancel(self.random.choice(list(self.world.specs)), reason)

    def deliver_one(self) -> None:
        busy = [name for name, executor in self.world.executors.items() if executor.results]
        if busy:
            self.world.deliver(self.random.choice(busy))

    def run(self, events: int) -> None:
        for number in range(PROGRAMS):
            self.world.open(f"program-{number}", single_call=False)
        for _ in range(events):
            self.do_something()
        self.join_missing()
        self.world.run()
        self.world.look()


SHORT = pytest.param(4, marks=pytest.mark.interpreted_core("it replaces a class of the core"))


@pytest.fixture(params=[SHORT, RESULTS_KEPT])
def results_kept(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """With a short ring tokens are fetched all the time."""
    kept: int = request.param
    monkeypatch.setattr("scheduler_svc.core.executor.Lane", partial(Lane, results_kept=kept))
    return kept


@pytest.mark.parametrize("seed", range(30))
def test_the_plans_are_those_of_the_plain_planner(seed: int, results_kept: int) -> None:
    traffic = Traffic(seed * 1000 + results_kept)
    traffic.run(events=250)
    assert traffic.world.core.statistics().live_calls == 0


def test_the_traffic_reaches_what_it_is_to_test() -> None:
    traffics = [Traffic(seed) for seed in range(12)]
    for traffic in traffics:
        traffic.run(events=250)
    counters = [traffic.world.core.counters for traffic in traffics]
    assert sum(counter.preemptions for counter in counters) > 100
    assert sum(counter.demotions for counter in counters) > 100
    assert sum(counter.recomputed_tokens for counter in counters) > 100
    tokens = sum(counter.tokens for counter in counters)
    assert sum(traffic.world.steady_rows for traffic in traffics) > tokens / 2
    features = sum((traffic.features for traffic in traffics), Counter())
    assert min(features["failure"], features["payloads"]) > 0
    assert sum(features[name] for name in ("token", "lost", "handle")) > 3
