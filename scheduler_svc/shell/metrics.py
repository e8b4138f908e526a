"""Prometheus metrics of the scheduler, `autellix_scheduler_*`.

Counters that the core keeps are shown as they were at the last tick: scrapes run on another thread and must
not look into the core. Everything else is counted where it happens; what happens at every step costs a
fraction of a microsecond (`svc_runtime.histograms`).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Info
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from scheduler_svc.core.effects import FinishCall
from scheduler_svc.core.snapshots import StatisticsSnapshot
from scheduler_svc.shell.core_kind import core_kind
from scheduler_svc.shell.core_loop import TurnTimings
from svc_runtime.gc_control import GcPauses
from svc_runtime.histograms import TalliedHistogram

_PREFIX = "autellix_scheduler_"
_LOOP_BUCKETS_S = (25e-6, 50e-6, 1e-4, 25e-5, 5e-4, 1e-3, 25e-4, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.5)
_STEP_BUCKETS_S = (1e-3, 25e-4, 5e-3, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5)
_CALL_BUCKETS_S = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)

_COUNTERS = {
    "preemptions": "times a call was taken out of a batch",
    "promotions": "calls promoted against starvation",
    "demotions": "calls demoted to a lower level",
    "tokens": "tokens generated",
    "recomputed_tokens": "tokens computed again because their KV was gone",
    "cached_tokens": "prompt tokens served from the prefix cache",
    "steps": "steps finished",
    "calls_submitted": "calls accepted",
    "swapped_out_blocks": "KV blocks copied from devices to hosts",
    "swapped_in_blocks": "KV blocks copied from hosts to devices",
    "evicted_blocks": "findable KV blocks forgotten to make room",
}
"""Field of the core's statistics -> meaning; shown as `autellix_scheduler_FIELD_total`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gauges:
    """A look at the scheduler, taken once a second."""

    statistics: StatisticsSnapshot
    live_calls: Sequence[int]
    """Per level, level 0 first."""
    executors: Mapping[str, int] = field(default_factory=dict)
    """model -> attached executors."""
    frontends: int
    inbox_length: int


class SchedulerMetrics(Collector):
    """The metrics of one scheduler, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._gauges: Gauges | None = None
        self._calls = self._counter("calls_ended", "calls that ended, by how", ["model", "reason"])
        self._refused = self._counter("calls_refused", "calls refused at the door, by reason", ["reason"])
        self._turns = self._histogram("turn_seconds", "one turn of the core loop", _LOOP_BUCKETS_S).of()
        self._plans = self._histogram("plan_seconds", "planning within a turn", _LOOP_BUCKETS_S).of()
        self._steps = self._histogram("step_seconds", "model execution of one step", _STEP_BUCKETS_S, "model")
        self._service = self._histogram("call_service_seconds", "steps of one call", _CALL_BUCKETS_S, "model")
        self._waiting = self._histogram(
            "call_waiting_seconds", "one call not in a batch", _CALL_BUCKETS_S, "model"
        )
        Info(_PREFIX + "build", "which core runs", registry=self.registry).info({"core": core_kind()})
        self.gc_pauses = GcPauses(_PREFIX.removesuffix("_"))
        """Whoever controls the collector starts it."""
        self.registry.register(self.gc_pauses)
        self.registry.register(self)

    def turn(self, timings: TurnTimings) -> None:
        """A turn of the loop ended."""
        self._turns.observe(timings.turn_s)
        self._plans.observe(timings.plan_s)

    def step(self, model: str, step_s: float) -> None:
        """An executor finished a step."""
        self._steps.of(model).observe(step_s)

    def call_ended(self, model: str, effect: FinishCall) -> None:
        """A call ended."""
        self._calls.labels(model, effect.reason.value).inc()
        self._service.of(model).observe(effect.service_s)
        self._waiting.of(model).observe(effect.waiting_s)

    def call_refused(self, reason: str) -> None:
        """A call was refused at the door or by the core."""
        self._refused.labels(reason).inc()

    def look(self, gauges: Gauges) -> None:
        """Replaces what the next scrape shows of the core."""
        self._gauges = gauges

    def collect(self) -> Iterator[Metric]:
        """What was last looked at; called on the scraping thread."""
        gauges = self._gauges
        if gauges is None:
            return
        for name, meaning in _COUNTERS.items():
            yield CounterMetricFamily(_PREFIX + name, meaning, value=getattr(gauges.statistics, name))
        yield _labelled("live_calls", "calls not ended", "level", enumerate(gauges.live_calls))
        yield GaugeMetricFamily(
            _PREFIX + "open_programs", "programs not ended", value=gauges.statistics.open_programs
        )
        yield GaugeMetricFamily(
            _PREFIX + "waiting_programs",
            "programs whose first call waits for room",
            value=gauges.statistics.waiting_programs,
        )
        yield GaugeMetricFamily(_PREFIX + "frontends", "connected frontends", value=gauges.frontends)
        yield GaugeMetricFamily(
            _PREFIX + "inbox_events", "events waiting for a turn", value=gauges.inbox_length
        )
        yield _labelled("executors", "attached executors", "model", gauges.executors.items())

    def _counter(self, name: str, meaning: str, labels: list[str]) -> Counter:
        return Counter(_PREFIX + name, meaning, labels, registry=self.registry)

    def _histogram(
        self, name: str, meaning: str, bounds: tuple[float, ...], label: str = ""
    ) -> TalliedHistogram:
        histogram = TalliedHistogram(_PREFIX + name, meaning, bounds, label=label)
        self.registry.register(histogram)
        return histogram


def _labelled(name: str, meaning: str, label: str, values: Iterable[tuple[object, int]]) -> GaugeMetricFamily:
    gauge = GaugeMetricFamily(_PREFIX + name, meaning, labels=[label])
    for key, value in values:
        gauge.add_metric([str(key)], value)
    return gauge
