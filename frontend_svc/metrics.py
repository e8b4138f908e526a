"""What the frontend counts itself. vLLM's own metrics (prefix `vllm:`) stand beside them in the same
registry."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge

from svc_runtime.gc_control import GcPauses


class FrontendMetrics:
    """The frontend's metrics.

    Args:
        registry: where they are found; each registry takes them once.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "autellix_frontend_requests",
            "Generation requests by what was answered.",
            ("path", "status", "source"),
            registry=registry,
        )
        self._calls_failed = Counter(
            "autellix_frontend_calls_failed",
            "Calls refused or lost after they were submitted.",
            ("reason",),
            registry=registry,
        )
        self._live_calls = Gauge("autellix_frontend_live_calls", "Calls not ended yet.", registry=registry)
        self._scheduler_up = Gauge(
            "autellix_frontend_scheduler_up", "1 while the scheduler is connected.", registry=registry
        )

        self.gc_pauses = GcPauses("autellix_frontend")
        """Whoever controls the collector starts it."""
        registry.register(self.gc_pauses)

    def request_served(self, path: str, status: int | None, source: str) -> None:
        """Count a request; status None: the client had gone before an answer."""
        self._requests.labels(path, str(status or "gone"), source).inc()

    def call_failed(self, reason: str) -> None:
        """Count a call that failed."""
        self._calls_failed.labels(reason).inc()

    def watch(self, *, live_calls: Callable[[], int], scheduler_up: Callable[[], bool]) -> None:
        """Read the gauges from here at every scrape. The functions run on the scraper's thread."""
        self._live_calls.set_function(live_calls)
        self._scheduler_up.set_function(scheduler_up)
