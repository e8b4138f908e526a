"""The command: `python -m sim --seed S --steps N --faults`."""

import argparse
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from scheduler_svc.core.core import Core
from sim.episode import EpisodeOptions, MakeCore
from sim.run import EpisodeFailed, RunOptions, run
from sim.tally import Tally
from sim.trace import Trace

EXIT_BROKEN = 1
EXIT_NOT_EXERCISED = 3

_PROGRESS_S = 10.0


def main(arguments: Sequence[str] | None = None, *, make_core: MakeCore = Core) -> int:
    """Runs the simulation and returns the exit code: 0, 1 when something broke, 3 when a long run missed
    something it should have exercised."""
    options = _parser().parse_args(arguments)
    episodes = EpisodeOptions(options.faults, check_every=options.check_every, make_core=make_core)
    what = RunOptions(seed=options.seed, call_steps=options.steps, episode=options.episode)
    with ExitStack() as stack:
        trace = None
        if options.trace is not None:
            trace = Trace(stack.enter_context(options.trace.open("w", encoding="utf-8")))
        try:
            tally = run(what, episodes, trace=trace, on_episode=_progress(options.steps))
        except EpisodeFailed as failed:
            return _report(failed, options)
    print("\n".join(tally.lines()))
    missing = tally.missing()
    if missing and options.episode is None:
        print(f"seed {options.seed}: never happened: {', '.join(missing)}", file=sys.stderr)
        return EXIT_NOT_EXERCISED
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sim",
        description="Run the scheduler's core in virtual time against simulated executors.",
    )
    add = parser.add_argument
    add("--seed", type=int, default=1, help="all randomness comes from it (default: %(default)s)")
    add("--steps", type=_positive, default=100_000, help="call-steps to run (default: %(default)s)")
    add("--faults", action="store_true", help="lose executors, cancel calls, break protocols, ...")
    add(
        "--check-every",
        type=int,
        default=1,
        metavar="N",
        help="check invariants after every N-th event, 0: never",
    )
    add("--episode", type=int, metavar="K", help="run only this episode of the seed")
    add("--trace", type=Path, metavar="FILE", help="write a line for each event and effect")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value <= 0:
        raise argparse.ArgumentTypeError("must be > 0")
    return value


def _progress(call_steps: int) -> Callable[[Tally], None]:
    """Says on standard error how far a long run is."""
    started_s = last_s = time.monotonic()

    def report(tally: Tally) -> None:
        nonlocal last_s
        now_s = time.monotonic()
        if now_s - last_s >= _PROGRESS_S:
            last_s = now_s
            done = tally.work.call_steps
            rate = done / (now_s - started_s)
            print(
                f"{done} of {call_steps} call-steps, {tally.episodes} episodes, {rate:.0f}/s", file=sys.stderr
            )

    return report


def _report(failed: EpisodeFailed, options: argparse.Namespace) -> int:
    traceback.print_exception(failed)
    command = [
        f"--seed {options.seed}",
        f"--episode {failed.number}",
        *(["--faults"] if options.faults else []),
    ]
    print(f"FAILED: {failed}", file=sys.stderr)
    print(f"repeat with: python -m sim {' '.join(command)} --check-every 1", file=sys.stderr)
    return EXIT_BROKEN
