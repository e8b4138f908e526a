"""The runner's process: `python -m executor_svc.runner_server FD`, started by `RunnerProcess` only.

Theory of operation: the main thread takes commands off the socket and obeys them in order: it is the step
thread of the `Runner` contract. A result thread waits for started steps and sends their results; grammars are
prepared on a small pool. After a violation or failure every further plan is answered with it until a reset.
When the session hangs up the process ends at once, also in the middle of loading or of a step: a session that
is gone needs no runner.
"""

import os
import select
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from multiprocessing.connection import Connection
from threading import Lock, Thread

import structlog

from executor_svc.runner import Pending, PlanViolation, Runner, StepPlan
from executor_svc.runner_messages import (
    Answer,
    Command,
    Preparation,
    StartupFailure,
    decode_command,
    encode,
)
from executor_svc.runners import make_runner
from executor_svc.settings import ExecutorSettings
from svc_runtime.gc_control import GcControl, GcPauses
from svc_runtime.lifecycle import StartupError
from svc_runtime.log import configure_logging

log = structlog.get_logger("autellix.runner_server")

PREPARE_THREADS = 2
NO_STEP: tuple[Pending, ...] = ()


class RunnerServer:
    """Obeys a session with a runner."""

    def __init__(self, connection: Connection, runner: Runner) -> None:
        self._connection = connection
        self._runner = runner
        self._sending = Lock()
        self._results = ThreadPoolExecutor(1, thread_name_prefix="autellix-results")
        self._prepares = ThreadPoolExecutor(PREPARE_THREADS, thread_name_prefix="autellix-prepare")
        self._broken: Exception | None = None
        """Answered to every plan until a reset."""
        self._plans_taken = 0
        """Counted by the main thread."""
        self._plans_answered = 0
        """Counted by the result thread."""

    def run(self) -> None:
        """Obeys until told to close.

        Raises: EOFError, OSError when the session is gone.
        """
        self._answer(Answer.READY, self._runner.info)
        while True:
            command, body = decode_command(self._connection.recv_bytes())
            match command:
                case Command.ANNOUNCE:
                    self._guarded(partial(self._runner.announce, body))
                case Command.EXECUTE:
                    self._execute(body)
                case Command.PREPARE:
                    self._prepares.submit(self._prepare, body)
                case Command.RESET:
                    self._reset()
                case Command.CLOSE:
                    return

    @property
    def idle(self) -> bool:
        """Whether every plan so far has been answered."""
        return self._plans_taken == self._plans_answered

    def close(self) -> None:
        """Waits for what runs and frees the runner."""
        self._results.shutdown()
        self._prepares.shutdown(cancel_futures=True)
        self._runner.close()

    def _execute(self, plan: StepPlan) -> None:
        self._plans_taken += 1
        started: list[Pending] = []
        self._guarded(lambda: started.append(self._runner.execute(plan)))
        self._results.submit(self._answer_plan, tuple(started))

    def _reset(self) -> None:
        self._results.submit(lambda: None).result()
        self._broken = None
        self._guarded(self._runner.reset)
        if self._broken is None:
            self._answer(Answer.DONE)
        else:
            self._resolve(NO_STEP)

    def _guarded(self, work: Callable[[], None]) -> None:
        """Does a piece of work unless something broke before; remembers what breaks it."""
        if self._broken is not None:
            return
        try:
            work()
        except Exception as error:  # noqa: BLE001 - answered to the session, which decides
            self._broken = error

    def _answer_plan(self, started: tuple[Pending, ...]) -> None:
        """Result thread."""
        self._resolve(started)
        self._plans_answered += 1

    def _resolve(self, started: tuple[Pending, ...]) -> None:
        """Answers one plan; `started` is empty when the plan was not executed."""
        for pending in started:
            try:
                message = encode(Answer.RESULT, pending.result())
            except Exception as error:  # noqa: BLE001 - answered to the session, which decides
                self._broken = error
            else:
                self._send(message)
                return
        broken = self._broken
        if isinstance(broken, PlanViolation):
            self._answer(Answer.VIOLATION, str(broken))
        else:
            log.error("runner_failed", exc_info=broken)
            self._answer(Answer.FAILED, f"{type(broken).__name__}: {broken}")

    def _prepare(self, handle: int) -> None:
        """One call's preparation must not harm the others: whatever it raises fails that call alone."""
        try:
            error = self._runner.prepare(handle)
        except Exception:
            log.exception("preparation_failed", handle=handle)
            error = "the call could not be prepared"
        self._answer(Answer.PREPARED, Preparation(handle, error))

    def _answer(self, answer: Answer, body: object = None) -> None:
        self._send(encode(answer, body))

    def _send(self, message: bytes) -> None:
        with self._sending:
            self._connection.send_bytes(message)


def serve(connection: Connection) -> None:
    """Makes the runner that the session's first message asks for, and obeys the session."""
    _, chosen = decode_command(connection.recv_bytes())
    settings = ExecutorSettings(**chosen)
    configure_logging("executor", level=settings.log_level, format=settings.log_format)
    try:
        runner = make_runner(settings)
    except StartupError as error:
        failure = StartupFailure(error.message, int(error.exit_code))
        connection.send_bytes(encode(Answer.STARTUP_FAILED, failure))
        return
    server = RunnerServer(connection, runner)
    GcControl(lambda: server.idle, GcPauses("autellix_runner")).run_in_thread()
    try:
        server.run()
    except (EOFError, OSError):
        log.warning("session_gone")
    else:
        server.close()


def end_with(connection: Connection) -> None:
    """Ends this process when the other end of the connection is closed, whatever it is doing."""
    hang_up = select.poll()
    hang_up.register(connection.fileno(), 0)  # no event but hang-up, which is always reported
    Thread(target=lambda: (hang_up.poll(), os._exit(0)), name="autellix-hang-up", daemon=True).start()


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the session decides when to end
    session = Connection(int(sys.argv[1]))
    end_with(session)
    serve(session)
