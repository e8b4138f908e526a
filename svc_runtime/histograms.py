"""Histograms for figures that come thousands of times a second.

Theory of operation. `prometheus_client` takes a lock or two and looks labels up at each observation: one to
two microseconds, which is too much for what happens several times a step. A `Tally` is a list of counts and a
sum; observing is one binary search and two additions. It has one writer; the scraping thread reads it without
a lock: each count is whole, and what is shown may lack observations of the last instant.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString


class Tally:
    """Counts of one series. `observe` is for one thread only."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        """
        Args:
            bounds: Upper ends of the buckets, inclusive, ascending; one without an end is added.
        """
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Counts a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def buckets(self) -> list[tuple[str, float]]:
        """(upper end, values up to it), ascending, the last one without an end."""
        ends = [*map(floatToGoString, self._bounds), "+Inf"]
        return list(zip(ends, map(float, accumulate(self._counts.copy())), strict=True))

    @property
    def sum(self) -> float:
        """Sum of all values."""
        return self._sum


class TalliedHistogram(Collector):
    """A histogram with at most one label, as Prometheus shows it; register it like any collector."""

    def __init__(self, name: str, meaning: str, bounds: Sequence[float], *, label: str = "") -> None:
        self._name = name
        self._meaning = meaning
        self._bounds = bounds
        self._label = label
        self._tallies: dict[str, Tally] = {} if label else {"": Tally(bounds)}

    def of(self, value: str = "") -> Tally:
        """The series of a label's value; keep it rather than ask for it again."""
        tally = self._tallies.get(value)
        if tally is None:
            tally = self._tallies[value] = Tally(self._bounds)
        return tally

    def collect(self) -> Iterator[Metric]:
        """All series; called on the scraping thread."""
        labels = [self._label] if self._label else []
        family = HistogramMetricFamily(self._name, self._meaning, labels=labels)
        for value, tally in self._tallies.copy().items():
            family.add_metric([value] if self._label else [], tally.buckets(), tally.sum)
        yield family
