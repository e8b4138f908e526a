"""What an episode is like: the core's configuration, models, executors and traffic, drawn at random.

Everything is small, so that seats, blocks, tokens of a step and bounds of tables all run out. Every
option of the core is drawn: a test holds `OPTIONS` against `CoreConfig`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, TypeVar

from scheduler_svc.core.config import (
    POLICY_OPTIONS,
    Admission,
    CoreConfig,
    Fit,
    KvPreempted,
    PlannerKind,
    ServiceUnit,
    Tie,
)
from scheduler_svc.core.events import ExecutorSpec
from scheduler_svc.core.ids import ExecutorId
from scheduler_svc.core.policies import POLICIES
from sim.executor import StepCost
from sim.model import VOCAB_SIZE

T = TypeVar("T")
PARAMS_FORMAT = "sim/1"


def _one_of(*values: Any) -> Callable[[Random], Any]:
    return lambda random: random.choice(values)


@dataclass(slots=True)
class Model:
    """A model and the calls it gets."""

    name: str
    longest: int
    """Tokens of the longest calls. Each model has an executor for them when an episode ends."""
    executor_ids: tuple[ExecutorId, ...]
    generation: int = 0
    """How often it was replaced by another one of that name."""

    @property
    def fingerprint(self) -> str:
        return f"weights-{self.generation}"


@dataclass(frozen=True, slots=True)
class Shape:
    """What all of an episode has in common."""

    models: tuple[Model, ...]
    calls: int
    """About how many calls are submitted."""
    programs: int
    """Arrive in all, unless the calls are used up before."""
    arrival_gap_s: float
    """Mean virtual seconds between two programs."""
    think_s: float
    """Mean virtual seconds between the end of a call and what follows from it."""
    output_max: int
    tick_s: float
    hold_back: float
    """Chance that plans are not made after something happened, but with what happens next. 0..1."""
    fault_chance: float
    """Chance of a fault after each result. 0..1."""
    cost: StepCost
    seats: Sequence[int]
    """Executors have one of these."""
    memory: Sequence[float]
    """Device blocks over those of the longest call: one of these."""
    host_blocks: Sequence[int]
    plans_in_flight: Sequence[int]
    token_budgets: Sequence[int]
    """Most tokens of a step: one of these, or the number of seats when that is more."""

    @property
    def longest_prefill_s(self) -> float:
        """What it takes at most to compute the longest call from nothing and sample a token."""
        longest = max(model.longest for model in self.models)
        return (longest / min(self.token_budgets) + 3) * self.cost.fixed_s + longest * self.cost.token_s


OPTIONS: dict[str, Callable[[Random], Any]] = {
    "policy": lambda random: random.choice(sorted(POLICIES)),
    "service_unit": lambda random: random.choice(list(ServiceUnit)),
    "tie": lambda random: random.choice(list(Tie)),
    "running_first": _one_of(True, True, False),
    "levels": _one_of(1, 2, 4, 8),
    "first_quantum_s": _one_of(0.02, 0.3, 1.5, 1.5, 3.0, 20.0),
    "quantum_ratio": _one_of(1.0, 2.0, 3.0),
    "level_boundaries_s": _one_of(None, None, 0.1, 1.0),
    "starvation_beta": _one_of(None, 0.3, 2.0, 10.0),
    "fit": lambda random: random.choice(list(Fit)),
    "preemption_grace_s": _one_of(0.0, 0.05, 1.0),
    "kv_preempted": lambda random: random.choice([KvPreempted.AUTO, *KvPreempted]),
    "admission": lambda random: random.choice(list(Admission)),
    "idle_kv_s": _one_of(0.0, 0.5, 30.0),
    "short_prompt_tokens": _one_of(0, 8, 24, 2048),
    "idle_timeout_s": _one_of(3.0, 60.0, 600.0),
    "open_programs_max": _one_of(16, *[100_000] * 7),
    "recent_programs_max": _one_of(0, 3, 20),
    "live_calls_max": _one_of(40, *[100_000] * 5),
    "unacknowledged_calls_max": _one_of(2, 20, 1000),
    "executor_losses_max": _one_of(1, 3, 1000),
    "planner": lambda random: random.choice([PlannerKind.COLUMNAR, *PlannerKind]),
}
"""Field of `CoreConfig` -> how it is drawn. Quanta are in units of what it takes to compute the longest call,
boundaries are drawn as the first one."""


def draw_config(random: Random, shape: Shape) -> CoreConfig:
    """A configuration of the core."""
    return CoreConfig(**_fit_together(random, {name: draw(random) for name, draw in OPTIONS.items()}, shape))


def draw_policy_changes(random: Random, shape: Shape) -> dict[str, Any]:
    """Other options of the policy, for a core that runs."""
    values = {name: draw(random) for name, draw in OPTIONS.items() if name in POLICY_OPTIONS}
    return _fit_together(random, values, shape)


def _fit_together(random: Random, values: dict[str, Any], shape: Shape) -> dict[str, Any]:
    """Mends options that depend on each other."""
    values["first_quantum_s"] *= shape.longest_prefill_s
    first = values["level_boundaries_s"]
    if first is not None:
        values["level_boundaries_s"] = tuple(first * 2**i for i in range(values["levels"] - 1))
    return values


def draw_shape(random: Random, *, with_faults: bool) -> Shape:
    """Draws an episode."""
    pick = random.choice
    output_max = pick((12, 40, 80, 120))
    seats = pick(((1, 4), (8, 16), (16, 32), (16, 32), (32,), (32, 64), (64,), (2, 32)))
    memory = pick(((1.0, 2.0), (3.0,), (5.0,), (6.0, 12.0), (8.0,), (15.0,)))
    is_narrow = min(seats) < 8 or min(memory) < 3
    return Shape(
        models=_draw_models(random, output_max),
        calls=100 if is_narrow else pick((300, 600, 900)),
        programs=pick((40, 120, 200)),
        arrival_gap_s=pick((0.01, 0.05, 0.2)),
        think_s=pick((0.0, 0.1, 0.5)),
        output_max=output_max,
        tick_s=pick((0.25, 1.0)),
        hold_back=pick((0.0, 0.3, 0.6)),
        fault_chance=pick((0.01, 0.03, 0.1)) if with_faults else 0.0,
        cost=pick((StepCost(0.1, 0.0, 0.001), StepCost(0.02, 0.002, 0.0005), StepCost(0.25, 0.01, 0.01))),
        seats=seats,
        memory=memory,
        host_blocks=pick(((0,), (4, 16), (200,), (0, 400))),
        plans_in_flight=pick(((1,), (2,), (2,), (1, 2))),
        token_budgets=pick(((4, 16), (16, 64), (256,), (1024,))),
    )


def _draw_models(random: Random, output_max: int) -> tuple[Model, ...]:
    executors = [
        ExecutorId(f"executor-{number}") for number in range(1, random.choice((1, 1, 1, 2, 2, 3, 6)) + 1)
    ]
    count = min(random.choice((1, 1, 1, 2, 3)), len(executors))
    return tuple(
        Model(f"model-{number}", output_max + random.choice((16, 48, 80)), tuple(executors[number::count]))
        for number in range(count)
    )


def draw_executor(
    random: Random, shape: Shape, model: Model, executor_id: ExecutorId, epoch: int, *, holds_all: bool
) -> ExecutorSpec:
    """A registration; with `holds_all` the model's longest calls fit."""
    pick = random.choice
    longest = model.longest if holds_all or random.random() < 0.9 else model.longest // 2
    block_size = pick((2, 4, 4, 8, 16))
    seats = pick(shape.seats)
    return ExecutorSpec(
        executor_id=executor_id,
        epoch=epoch,
        model=model.name,
        model_fingerprint=model.fingerprint,
        simulated=True,
        block_size=block_size,
        num_blocks=1 + int(-(-longest // block_size) * pick(shape.memory)),
        host_blocks=pick(shape.host_blocks),
        block_bytes=block_size * 1024,
        max_num_seqs=seats,
        max_num_batched_tokens=max(seats, pick(shape.token_budgets)),
        max_model_len=longest + pick((0, 0, 100)),
        vocab_size=pick((VOCAB_SIZE, VOCAB_SIZE, 0)),
        max_plans_in_flight=pick(shape.plans_in_flight),
        prefix_caching=random.random() < 0.85,
        params_formats=(PARAMS_FORMAT,),
    )
