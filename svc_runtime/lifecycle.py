"""The life of a service process: start, run until told to stop, drain, leave with a telling exit code.

SIGTERM or SIGINT sets the `stop` event that `main` was given; `main` then drains and returns. A second signal
ends the process at once. What cannot start raises `StartupError`: one line on the log, no traceback.
"""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from enum import IntEnum

import structlog
import uvloop

log = structlog.get_logger("autellix.lifecycle")

Main = Callable[[asyncio.Event], Awaitable[None]]


class ExitCode(IntEnum):
    """What the process tells its supervisor; documented in docs/operations.md."""

    OK = 0
    FAILED = 1
    USAGE = 2
    PORT_TAKEN = 3
    MODEL_MISSING = 4
    PEER_UNREACHABLE = 5
    REFUSED = 6


class StartupError(Exception):
    """The service cannot run as configured; the message says what is wrong and what to do."""

    def __init__(self, message: str, exit_code: int = ExitCode.FAILED) -> None:
        super().__init__(message)
        self.message = message
        self.exit_code = exit_code


class PortTaken(StartupError):
    """Another process listens where this service was told to."""

    def __init__(self, address: str, *, purpose: str = "gRPC") -> None:
        super().__init__(
            f"cannot listen on {address} for {purpose}: the port is taken or the address is not this host's",
            ExitCode.PORT_TAKEN,
        )


def run_service(service: str, main: Main) -> int:
    """Runs `main(stop)` on a uvloop event loop until it returns.

    Args:
        service: name for the log lines, e.g. "scheduler".
        main: starts the service, waits for the event, drains, returns.

    Returns: the process's exit code; the caller passes it to `sys.exit`.
    """
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_until_stopped(service, main))
    except StartupError as error:
        log.error(
            "service_cannot_run", service=service, problem=error.message, exit_code=int(error.exit_code)
        )
        return int(error.exit_code)
    except Exception:  # the last line of defence: logged, turned into an exit code
        log.exception("service_failed", service=service)
        return ExitCode.FAILED
    log.info("service_stopped", service=service)
    return ExitCode.OK


async def _until_stopped(service: str, main: Main) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, _on_signal, service, signum, stop)
    await main(stop)


def _on_signal(service: str, signum: signal.Signals, stop: asyncio.Event) -> None:
    if stop.is_set():
        log.warning("service_killed", service=service, signal=signum.name)
        os._exit(128 + signum)
    log.info("service_stopping", service=service, signal=signum.name)
    stop.set()
