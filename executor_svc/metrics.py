"""Prometheus metrics of an executor: `autellix_executor_*`."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from executor_svc.runner import StepResult
from svc_runtime.gc_control import GcPauses

_STEP_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.035, 0.05, 0.1, 0.2, 0.5, 1.0, 2.5, 5.0)


class ExecutorMetrics:
    """Counters of one executor, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.gc_pauses = GcPauses("autellix_executor")
        """Whoever controls the collector starts it."""
        self.registry.register(self.gc_pauses)
        self.plans_in_flight = 0
        """Plans that came and whose steps have not ended; 0 without a stream."""
        self._step_s = Histogram(
            "autellix_executor_step_seconds",
            "Seconds of model execution a step",
            buckets=_STEP_BUCKETS_S,
            registry=self.registry,
        )
        self._rows = self._counter("rows", "Rows of executed plans")
        self._tokens = self._counter("tokens", "Tokens sampled")
        self._failed_calls = self._counter("failed_calls", "Calls that failed alone")
        self._swap_bytes = self._counter("swap_bytes", "Bytes copied between device and host")
        self._swap_s = self._counter("swap_seconds", "Seconds spent copying between device and host")
        self._registrations = self._counter("registrations", "Registrations accepted by a scheduler")
        self._violations = self._counter("plan_violations", "Streams closed because a plan was wrong")
        self._registered = Gauge(
            "autellix_executor_registered", "1 while registered with a scheduler", registry=self.registry
        )

    def planned(self, rows: int) -> None:
        """A plan came."""
        self.plans_in_flight += 1
        self._rows.inc(rows)

    def stepped(self, result: StepResult) -> None:
        """A step ended."""
        self.plans_in_flight -= 1
        self._step_s.observe(result.step_s)
        self._tokens.inc(len(result.tokens))
        if result.failures:
            self._failed_calls.inc(len(result.failures))
        if result.swap_bytes:
            self._swap_bytes.inc(result.swap_bytes)
            self._swap_s.inc(result.swap_s)

    def registered(self) -> None:
        """A scheduler accepted the registration."""
        self._registrations.inc()
        self._registered.set(1)

    def detached(self) -> None:
        """The stream ended."""
        self.plans_in_flight = 0
        self._registered.set(0)

    def violated(self) -> None:
        """A plan was wrong."""
        self._violations.inc()

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(f"autellix_executor_{name}", text, registry=self.registry)
