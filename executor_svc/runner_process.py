"""A runner in a process of its own, as the session sees it.

Theory of operation: Python runs one thread at a time. A step of a small model is mostly Python, and so is
receiving plans and sending results; within one process they take turns, and every step waits for its turn.
So the runner lives in a child process that does nothing else:

    session process                                       runner process (runner_server)
    Stepper -> RunnerProcess ─────── one socket pair ───> announce, execute, prepare, reset
               reader thread <────── answers, in order ── result thread

Commands go down without waiting for answers, so the next plan lies ready when a step ends. A plan that
contradicts the runner's state is reported by its `Pending`, not by `execute`. When either process ends, the
other sees the end of the socket: the child leaves at once, the parent reports `RunnerLost`.
"""

import subprocess
import sys
import threading
from collections import deque
from concurrent.futures import Future
from multiprocessing.connection import Pipe
from typing import Any

import structlog

from executor_svc.runner import AnnouncedCall, Pending, PlanViolation, RunnerInfo, StepPlan
from executor_svc.runner_messages import Answer, Command, Preparation, decode_answer, encode
from executor_svc.settings import ExecutorSettings
from svc_runtime.lifecycle import StartupError

log = structlog.get_logger("autellix.runner_process")

CLOSE_S_MAX = 20.0
"""Seconds the process gets to end by itself."""


class RunnerLost(Exception):
    """The runner's process has ended, or its runner raised what it must not."""


class RunnerProcess:
    """A `Runner` whose work is done by a child process.

    Args:
        module: what `python -m` runs there.

    Raises, when made: StartupError as the runner's maker does; RunnerLost when the process ends instead.
    """

    def __init__(self, settings: ExecutorSettings, *, module: str = "executor_svc.runner_server") -> None:
        self._connection, theirs = Pipe()
        with theirs:
            descriptor = theirs.fileno()
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, str(descriptor)], pass_fds=(descriptor,)
            )
        self._sending = threading.Lock()
        self._answers: deque[Future[Any]] = deque()
        """Of plans and resets, oldest first."""
        self._preparations: dict[int, Future[str]] = {}
        self._failure: Exception | None = None
        """Set once nothing more will be answered."""
        self._info = self._start(settings)
        reader = threading.Thread(target=self._read, name="autellix-runner-answers", daemon=True)
        reader.start()

    @property
    def info(self) -> RunnerInfo:
        """See Runner."""
        return self._info

    @property
    def pid(self) -> int:
        """Process id of the runner."""
        return self._process.pid

    def announce(self, call: AnnouncedCall) -> None:
        """See Runner. A violation is reported by the next plan."""
        self._send(encode(Command.ANNOUNCE, call))

    def prepare(self, handle: int) -> str:
        """See Runner. Any thread."""
        answer: Future[str] = Future()
        with self._sending:  # the reader thread walks them under the same lock when the process ends
            self._preparations[handle] = answer
        self._send(encode(Command.PREPARE, handle))
        return answer.result()

    def execute(self, plan: StepPlan) -> Pending:
        """See Runner. Returns when the plan is on its way; its `Pending` raises PlanViolation, RunnerLost."""
        return self._ask(encode(Command.EXECUTE, plan))

    def reset(self) -> None:
        """See Runner."""
        self._ask(encode(Command.RESET)).result()

    def close(self) -> None:
        """Lets the process end and waits for it; kills it when that takes too long."""
        try:
            self._send(encode(Command.CLOSE))
        except RunnerLost:
            log.info("runner_process_had_ended")
        try:
            self._process.wait(CLOSE_S_MAX)
        except subprocess.TimeoutExpired:
            log.warning("runner_process_killed", waited_s=CLOSE_S_MAX)
            self._process.kill()
            self._process.wait()

    def _start(self, settings: ExecutorSettings) -> RunnerInfo:
        self._send(encode(Command.SETTINGS, settings.model_dump(mode="json", exclude={"peer_token"})))
        try:
            tag, body = decode_answer(self._connection.recv_bytes())
        except (EOFError, OSError) as error:
            raise RunnerLost(self._epitaph()) from error
        if tag is Answer.STARTUP_FAILED:
            self._process.wait(CLOSE_S_MAX)
            raise StartupError(body.message, body.exit_code)
        assert isinstance(body, RunnerInfo), f"the first answer is {tag.name}"
        return body

    def _ask(self, message: bytes) -> "Future[Any]":
        answer: Future[Any] = Future()
        self._send(message, answer)
        return answer

    def _send(self, message: bytes, answer: "Future[Any] | None" = None) -> None:
        """Raises: RunnerLost when the process has ended."""
        with self._sending:
            if self._failure is not None:
                raise self._failure
            if answer is not None:
                self._answers.append(answer)
            try:
                self._connection.send_bytes(message)
            except OSError as error:
                raise RunnerLost(self._epitaph()) from error

    def _read(self) -> None:
        """Reader thread: hands answers to those who wait for them, until the process ends."""
        try:
            while True:
                self._settle(*decode_answer(self._connection.recv_bytes()))
        except (EOFError, OSError):
            self._fail_all(RunnerLost(self._epitaph()))

    def _settle(self, tag: Answer, body: Any) -> None:
        match tag:
            case Answer.RESULT | Answer.DONE:
                self._answers.popleft().set_result(body)
            case Answer.VIOLATION:
                self._answers.popleft().set_exception(PlanViolation(body))
            case Answer.FAILED:
                self._answers.popleft().set_exception(RunnerLost(body))
            case Answer.PREPARED:
                assert isinstance(body, Preparation)
                self._preparations.pop(body.handle).set_result(body.error)

    def _fail_all(self, failure: Exception) -> None:
        with self._sending:
            self._failure = failure
            waiting = [*self._answers, *self._preparations.values()]
            self._answers.clear()
            self._preparations.clear()
        for answer in waiting:
            answer.set_exception(failure)

    def _epitaph(self) -> str:
        try:
            code: int | None = self._process.wait(CLOSE_S_MAX)
        except subprocess.TimeoutExpired:
            code = None
        return f"the runner's process ended with code {code}; its own log lines say why"
