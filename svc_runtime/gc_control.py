"""The garbage collector, kept out of the way of steps.

Theory of operation. Python collects in three generations. Young collections cost in proportion to what was
made lately and stay as they are, with small thresholds. A full one visits every container of the process: 190
ms with 200,000 objects, the time of nineteen steps, and Python makes it whenever it likes. So:

* `start`, once everything is loaded and made: one full collection, then what is alive is frozen; it is never
  visited again. From then on Python makes no full collection by itself.
* A full collection becomes *due* when enough has survived young ones since the last (`due_after` collections
  of the middle generation, the same count that Python goes by).
* A due one is made as soon as the service has been idle for two looks in a row, or when it has been due for
  `overdue_s` seconds: a process that never idles gets one pause in ten minutes, not one in any burst.

Reference counting frees nearly everything at once; collections are for cycles only, so waiting is cheap.
"""

import asyncio
import gc
import time
from collections.abc import Callable, Iterator
from threading import Thread
from typing import Any

import structlog
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

log = structlog.get_logger("autellix.gc")

GENERATIONS = 3
YOUNG_THRESHOLD = 1000
"""Containers made, less those freed, from which the youngest generation is collected."""
MIDDLE_THRESHOLD = 5
"""Collections of the youngest generation from which the middle one is collected as well."""
NEVER = 2**31 - 1
"""Threshold of the oldest generation: Python's own full collections are off."""
THRESHOLDS = (YOUNG_THRESHOLD, MIDDLE_THRESHOLD, NEVER)


class GcPauses(Collector):
    """How often, and for how long, the collector stopped the process; watches from `start` to `stop`.

    Shown as `PREFIX_gc_pauses_total` and `PREFIX_gc_pause_seconds_total` by generation, and
    `PREFIX_gc_longest_pause_seconds`.
    """

    def __init__(self, prefix: str) -> None:
        """
        Args:
            prefix: Beginning of the metrics' names, e.g. "autellix_scheduler".
        """
        self._prefix = prefix
        self._began_s = 0.0
        self.count = [0] * GENERATIONS
        """Collections by generation, youngest first; a full one counts as the oldest's."""
        self.seconds = [0.0] * GENERATIONS
        self.longest_s = 0.0

    def start(self) -> None:
        """Begins to watch; a second time changes nothing."""
        if self._noted not in gc.callbacks:
            gc.callbacks.append(self._noted)

    def stop(self) -> None:
        """Watches no more."""
        if self._noted in gc.callbacks:
            gc.callbacks.remove(self._noted)

    def _noted(self, phase: str, info: dict[str, Any]) -> None:
        if phase == "start":
            self._began_s = time.perf_counter()
            return
        pause_s = time.perf_counter() - self._began_s
        generation = info["generation"]
        self.count[generation] += 1
        self.seconds[generation] += pause_s
        self.longest_s = max(self.longest_s, pause_s)

    def collect(self) -> Iterator[Metric]:
        """The figures; called on the scraping thread."""
        count = CounterMetricFamily(
            f"{self._prefix}_gc_pauses", "pauses for garbage collection", labels=["generation"]
        )
        seconds = CounterMetricFamily(
            f"{self._prefix}_gc_pause_seconds", "seconds of garbage collection", labels=["generation"]
        )
        for generation in range(GENERATIONS):
            count.add_metric([str(generation)], self.count[generation])
            seconds.add_metric([str(generation)], self.seconds[generation])
        yield count
        yield seconds
        yield GaugeMetricFamily(
            f"{self._prefix}_gc_longest_pause_seconds",
            "longest pause for garbage collection since start",
            value=self.longest_s,
        )


class GcControl:
    """Decides when this process makes full collections.

    There is one collector a process: of several controls the first one takes over and gives back.
    """

    def __init__(
        self,
        idle: Callable[[], bool],
        pauses: GcPauses,
        *,
        due_after: int = 20,
        overdue_s: float = 600.0,
        look_s: float = 0.5,
    ) -> None:
        """
        Args:
            idle: Whether a pause of some hundred milliseconds would hurt nobody just now.
            pauses: Counts collections from `start` on.
            due_after: Middle collections from which a full one is due; 20 are some 100,000 objects.
            overdue_s: Seconds for which a due one waits for an idle moment at most.
            look_s: Seconds between two looks.
        """
        self._idle = idle
        self._pauses = pauses
        self._due_after = due_after
        self._overdue_s = overdue_s
        self._look_s = look_s
        self._was_idle = False
        self._due_since_s: float | None = None
        self._former_thresholds: tuple[int, int, int] | None = None

    def start(self) -> None:
        """Collects, freezes what is alive, and takes over."""
        self._pauses.start()
        if gc.get_threshold() == THRESHOLDS:
            return
        self._former_thresholds = gc.get_threshold()
        gc.set_threshold(*THRESHOLDS)
        gc.collect()
        gc.freeze()

    def stop(self) -> None:
        """Leaves the collector as it was found: for tests, and for a process with a life after this."""
        self._pauses.stop()
        if self._former_thresholds is not None:
            gc.unfreeze()
            gc.set_threshold(*self._former_thresholds)
            self._former_thresholds = None

    async def run(self) -> None:
        """Takes over until cancelled."""
        self.start()
        try:
            while True:
                await asyncio.sleep(self._look_s)
                self.look(time.monotonic())
        finally:
            self.stop()

    def run_in_thread(self) -> None:
        """Takes over for the rest of the process, where there is no event loop."""
        self.start()
        Thread(target=self._look_for_ever, name="autellix-gc", daemon=True).start()

    def _look_for_ever(self) -> None:
        while True:
            time.sleep(self._look_s)
            self.look(time.monotonic())

    def look(self, now: float) -> bool:
        """Makes a full collection if one is due and this is the moment for it.

        Args:
            now: Monotonic seconds.

        Returns: whether it was made.
        """
        was_idle, self._was_idle = self._was_idle, self._idle()
        if gc.get_count()[-1] < self._due_after:
            self._due_since_s = None
            return False
        if self._due_since_s is None:
            self._due_since_s = now
        settled = was_idle and self._was_idle
        if not settled and now - self._due_since_s < self._overdue_s:
            return False
        freed = gc.collect()
        self._due_since_s = None
        log.info("garbage_collected", freed_objects=freed, idle=settled)
        return True
