"""Steps to learn from: of real GPUs (tables in `tests/data/calibration`) and of exactly linear machines."""

import csv
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from random import Random
from statistics import median

from scheduler_svc.core.step_cost import StepCoefficients, StepCostModel, StepFeatures

TABLES = Path(__file__).parents[2] / "data" / "calibration"
GPUS = ("a100", "h100")
TRUTH = StepCoefficients(8e-3, 3e-3, 1e-5, 5e-8, 2e-5, 2e-9)
"""An executor whose steps are exactly what the model can say."""

Step = tuple[StepFeatures, float]
"""What was computed, and the seconds it took."""


def rows(gpu: str, kind: str) -> list[dict[str, float]]:
    """A table; times in ms."""
    with (TABLES / f"calib_{gpu}_sxm_llama31_8b_{kind}.csv").open(newline="") as lines:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(lines)]


def decode_features(row: dict[str, float]) -> StepFeatures:
    batch, context = int(row["batch"]), int(row["ctx"])
    return StepFeatures(batch, batch * context, 0, 0)


def pure_steps(gpu: str) -> list[Step]:
    """Every row of both tables."""
    decodes = [(decode_features(row), row["step_ms"] / 1e3) for row in rows(gpu, "decode")]
    nothing = StepFeatures(0, 0, 0, 0)
    prefills = [
        (nothing.with_chunk(0, int(row["tokens"])), row["step_ms"] / 1e3) for row in rows(gpu, "prefill")
    ]
    return decodes + prefills


def mixed_steps(gpu: str, random: Random, count: int) -> list[Step]:
    """Decode rows and a prompt of up to 2048 tokens in one step, put together from the tables: matrix
    products and element-wise work of as many tokens as there are, the attention of both, one last layer."""
    decodes, prefills = rows(gpu, "decode"), [row for row in rows(gpu, "prefill") if row["tokens"] <= 2048]
    products, elementwise = (_by_tokens(gpu, column) for column in ("gemm_ms", "elementwise_ms"))
    steps = []
    for _ in range(count):
        decode, prefill = random.choice(decodes), random.choice(prefills)
        tokens = decode["batch"] + prefill["tokens"]
        attention_ms = decode["attn_ms"] + prefill["attn_ms"]
        step_ms = products(tokens) + elementwise(tokens) + attention_ms + decode["lmhead_ms"]
        steps.append((decode_features(decode).with_chunk(0, int(prefill["tokens"])), step_ms / 1e3))
    return steps


def _by_tokens(gpu: str, column: str) -> Callable[[float], float]:
    """A column of both tables by the tokens of a step, interpolated."""
    points: dict[float, list[float]] = {}
    for kind, tokens in (("decode", "batch"), ("prefill", "tokens")):
        for row in rows(gpu, kind):
            points.setdefault(row[tokens], []).append(row[column])
    xs = sorted(points)
    ys = [median(points[x]) for x in xs]

    def value(x: float) -> float:
        right = max(1, bisect_left(xs, x))
        share = (x - xs[right - 1]) / (xs[right] - xs[right - 1])
        return ys[right - 1] + share * (ys[right] - ys[right - 1])

    return value


def measured(steps: list[Step], random: Random, count: int) -> Iterator[Step]:
    """Random ones of these steps, each time measured with an error of 3 %."""
    for _ in range(count):
        features, seconds = random.choice(steps)
        yield features, seconds * random.gauss(1, 0.03)


def feed(model: StepCostModel, steps: Iterable[Step]) -> StepCostModel:
    for features, seconds in steps:
        model.observe(features, seconds)
    return model


def errors(model: StepCostModel, steps: list[Step]) -> tuple[float, float, float]:
    """Relative errors over these steps: median, 90th percentile, worst."""
    found = sorted(abs(model.predict_s(features) - seconds) / seconds for features, seconds in steps)
    return median(found), found[len(found) * 9 // 10], found[-1]


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
