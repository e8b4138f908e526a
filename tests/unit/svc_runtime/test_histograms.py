"""Tallied histograms show what prometheus_client's own would."""

import random

import pytest
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from svc_runtime.histograms import TalliedHistogram, Tally

BOUNDS = (0.001, 0.25, 1.0, 10.0)


def shown(registry: CollectorRegistry) -> list[str]:
    """The exposition without the times at which series were made, which only the library's own have."""
    lines = generate_latest(registry).decode().splitlines()
    return [line for line in lines if "_created" not in line]


@pytest.mark.parametrize("label", ["", "model"])
def test_the_exposition_is_the_library_s_to_the_letter(label: str) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    tallied = TalliedHistogram("seconds", "some seconds", BOUNDS, label=label)
    ours.register(tallied)
    library = Histogram("seconds", "some seconds", [label] if label else [], buckets=BOUNDS, registry=theirs)
    rng = random.Random(1)
    values = [*BOUNDS, 0.0, *(rng.choice((1e-4, 1.0, 20.0)) * rng.random() for _ in range(100))]
    for name in ("a", "b") if label else ("",):
        for value in values:
            tallied.of(name).observe(value)
            (library.labels(name) if label else library).observe(value)
    assert shown(ours) == shown(theirs)
    assert ours.get_sample_value("seconds_count", {label: "a"} if label else {}) == len(values)


def test_a_value_at_the_end_of_a_bucket_is_in_it() -> None:
    tally = Tally((1.0, 2.0))
    for value in (1.0, 1.5, 2.0, 2.1):
        tally.observe(value)
    assert tally.buckets() == [("1.0", 1), ("2.0", 3), ("+Inf", 4)]
    assert tally.sum == pytest.approx(6.6)


def test_the_series_of_a_label_is_one_object() -> None:
    histogram = TalliedHistogram("seconds", "m", BOUNDS, label="model")
    assert histogram.of("a") is histogram.of("a")
    assert histogram.of("a") is not histogram.of("b")
