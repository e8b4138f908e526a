"""A run: episodes with seeds derived from one, until enough call-steps were simulated."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from random import Random

from scheduler_svc.core.policies import POLICIES
from sim.calls import BAD_CALLS
from sim.episode import Episode, EpisodeOptions
from sim.faults import KINDS
from sim.mischief import SPOILERS
from sim.programs import SHAPES, Ending
from sim.tally import Tally
from sim.trace import Trace
from sim.traffic import ACKNOWLEDGEMENTS


class EpisodeFailed(Exception):
    """An episode found something; the cause is what it found."""

    def __init__(self, seed: int, number: int, now: float, cause: BaseException) -> None:
        super().__init__(
            f"seed {seed}, episode {number}, virtual time {now:.6f}: {type(cause).__name__}: {cause}"
        )
        self.number = number


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """What to run."""

    seed: int
    call_steps: int
    """At least so many in all, unless `episode` is given."""
    episode: int | None = None
    """Only this one."""


def random_of(seed: int, number: int) -> Random:
    """The random numbers of an episode: they depend on nothing but the two numbers."""
    return Random(f"{seed}/{number}")


def run(
    options: RunOptions,
    episodes: EpisodeOptions,
    *,
    trace: Trace | None = None,
    on_episode: Callable[[Tally], None] = lambda tally: None,
) -> Tally:
    """Runs episodes and returns what they exercised.

    Args:
        on_episode: Called after each one.

    Raises: EpisodeFailed.
    """
    tally = Tally()
    expect_all(tally, with_faults=episodes.with_faults)
    numbers = count() if options.episode is None else [options.episode]
    for number in numbers:
        if tally.work.call_steps >= options.call_steps:
            break
        _run_one(options.seed, number, episodes, tally, trace)
        on_episode(tally)
    return tally


def _run_one(seed: int, number: int, options: EpisodeOptions, tally: Tally, trace: Trace | None) -> None:
    if trace is not None:
        trace.note(f"episode {number}")
    episode = Episode(random_of(seed, number), options, tally, trace)
    try:
        episode.run()
    except Exception as error:
        raise EpisodeFailed(seed, number, episode.world.now, error) from error


def expect_all(tally: Tally, *, with_faults: bool) -> None:
    """Names everything that a long run must have seen."""
    tally.expect("policy", POLICIES)
    tally.expect("program", (*SHAPES, "found by session key"))
    tally.expect("program", [f"ending {e.value}" for e in (Ending.SAID, Ending.EARLY, Ending.CANCELLED)])
    tally.expect("acknowledged", ACKNOWLEDGEMENTS)
    tally.expect("end", ("STOP", "LENGTH", "DEADLINE_EXCEEDED", "PREPARATION_FAILED"))
    tally.expect("refusal", ("PROGRAM_LIMIT", "QUEUE_FULL", "PROGRAM_ENDED"))
    tally.expect("core", ("preemptions", "promotions", "demotions", "recomputed_tokens", "cached_tokens"))
    tally.expect("core", ("swapped_out_blocks", "swapped_in_blocks", "evicted_blocks"))
    if with_faults:
        tally.expect("fault", (*KINDS, "executor lost with a plan in flight", "executor drained"))
        tally.expect("protocol", SPOILERS)
        tally.expect("refusal", (*BAD_CALLS, "CALL_DUPLICATE", "MODEL_MISMATCH", "UNSUPPORTED_EXECUTOR"))
        tally.expect("refusal", ("NO_EXECUTOR", "PROGRAM_UNKNOWN"))
        tally.expect("end", ("ABORT", "EXECUTOR_FAILED"))
        reasons = ("CLIENT", "STOP_STRING", "DEADLINE", "PROGRAM", "FRONTEND_LOST")
        tally.expect("cancel", reasons)
        tally.expect("call", ("resubmitted",))
        tally.expect("core", ("calls moved",))
