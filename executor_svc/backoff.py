"""Growing pauses between attempts, with jitter, so that executors do not come back all at once."""

import random
from dataclasses import dataclass


@dataclass(slots=True)
class Backoff:
    """The pauses of one series of attempts.

    Each is drawn from [w/2, w], where w doubles from `first_s` up to `most_s`.
    """

    rng: random.Random
    first_s: float = 0.2
    most_s: float = 5.0
    failures: int = 0

    def next_s(self) -> float:
        """Seconds to wait before the next attempt."""
        width_s = min(self.most_s, self.first_s * 2 ** min(self.failures, 30))
        self.failures += 1
        return self.rng.uniform(width_s / 2, width_s)

    def reset(self) -> None:
        """An attempt succeeded: the next series starts small."""
        self.failures = 0
