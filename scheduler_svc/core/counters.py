"""Counters since start."""

from dataclasses import dataclass


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
