"""Commands for people: `python -m demo [run|up|down|model]`; the Makefile's targets call them.

run     agent programs under fcfs and under plas, compared; starts and stops everything itself
up      the services for one's own use, until `down`
down    stops them
model   makes the model ready and prints its path
"""

import argparse
import asyncio
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from demo.commands import DemoFailures, down, prepare_model, run, up


def main(argv: Sequence[str]) -> int:
    """Returns the exit code: 0, 1 after a failure, 2 for wrong usage, 130 when interrupted."""
    options = _parser().parse_args(argv or ["run"])
    console = Console(width=None if sys.stdout.isatty() else 100, highlight=False)
    for signum in (signal.SIGINT, signal.SIGTERM):  # SIGINT too: shells start background jobs that ignore it
        signal.signal(signum, signal.default_int_handler)
    try:
        asyncio.run(options.command(options, console))
    except DemoFailures as error:
        console.print("[bold red]failed:[/] ", end="")
        console.print(str(error), markup=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        console.print("interrupted")
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m demo", description="The demo and local services.")
    commands = parser.add_subparsers(required=True)
    for name, command, text in (
        ("run", run, "compare fcfs and plas on agent programs"),
        ("up", up, "start the services"),
        ("down", down, "stop the services"),
        ("model", prepare_model, "make the model ready"),
    ):
        sub = commands.add_parser(name, help=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        sub.set_defaults(command=command)
        sub.add_argument("--home", type=Path, default=Path(".cache/run"), help="state and logs")
        if name != "down":
            sub.add_argument("--model", default="smollm2", help="smollm2, tiny, a directory or a hub id")
        if name == "run":
            _add_run_flags(sub)
        if name == "up":
            _add_up_flags(sub)
    return parser


def _add_run_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, default=1, help="of arrivals, pauses and sampling")
    parser.add_argument("--max-num-seqs", type=_bounded(1, 256), default=8, help="rows of a batch")
    parser.add_argument("--json", type=Path, default=None, help="write the figures to this file as well")


def _add_up_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--executors", type=_bounded(1, 64), default=1, help="number of model replicas")
    parser.add_argument("--policy", default="plas", help="of the scheduler, e.g. fcfs")
    parser.add_argument("--port", type=_bounded(1, 65535), default=8000, help="HTTP")
    parser.add_argument("--grpc-port", type=_bounded(1, 65535), default=50050, help="public gRPC")
    parser.add_argument("--scheduler-port", type=_bounded(1, 65535), default=50051, help="scheduler")
    parser.add_argument(
        "--metrics-port",
        type=_bounded(1, 65534),
        default=9050,
        help="metrics; the scheduler's port is the next",
    )


def _bounded(low: int, high: int) -> "type[int]":
    def parse(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"must be between {low} and {high}, got {value}")
        return value

    parse.__name__ = "whole number"  # argparse names the type in its message
    return parse  # type: ignore[return-value]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
