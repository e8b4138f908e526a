"""Counters since start."""

from dataclasses import dataclass

from scheduler_svc.core.kv import KvCache


@dataclass(slots=True)
class Counters:
    """Only grow. As in `StatisticsSnapshot`."""

    calls_submitted: int = 0
    calls_finished: int = 0
    calls_cancelled: int = 0
    calls_failed: int = 0
    calls_refused: int = 0
    preemptions: int = 0
    promotions: int = 0
    demotions: int = 0
    tokens: int = 0
    recomputed_tokens: int = 0
    cached_tokens: int = 0
    steps: int = 0
    swapped_out_blocks: int = 0
    """Here and below: of executors that are gone; those of attached ones are added when somebody looks."""
    swapped_in_blocks: int = 0
    evicted_blocks: int = 0

    def add_kv(self, kv: KvCache) -> None:
        """Takes over the counts of an executor that leaves."""
        self.swapped_out_blocks += kv.swapped_out
        self.swapped_in_blocks += kv.swapped_in
        self.evicted_blocks += kv.evicted
