"""Processes of the core bench: each scenario and each side has a heap of its own.

A worker sets its scenario up, says that it is ready, and then measures a number of steps whenever it is told
to; meanwhile it sleeps. So rounds of different sides alternate on one machine, and neither memory nor garbage
collection of one reaches another.

    parent                     worker
      steps: 100      ──>
                      <──      {"total": [...], ...}      microseconds, one value a step
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from types import TracebackType
from typing import Self

from bench.core_load import Load

Samples = Mapping[str, list[float]]
"""piece -> microseconds of each step."""


class Worker:
    """A measuring process, seen from the parent. Leaves with the `with` block."""

    def __init__(self, module: str, load: Load, environment: Mapping[str, str] | None = None) -> None:
        """
        Args:
            module: e.g. "bench.core_ours"; its main calls `serve`.
            environment: added to this process's own.
        """
        self.load = load
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed by __exit__)
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, json.dumps(asdict(load))],
            env=os.environ | dict(environment or {}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._log.close()

    def wait_ready(self) -> None:
        """Returns when the scenario is set up. Raises: RuntimeError when the worker ended instead."""
        self._read()

    def measure(self, steps: int) -> Samples:
        """Runs `steps` steps. Raises: RuntimeError when the worker ended."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, list[float]]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            self._log.seek(0)
            log = self._log.read().decode(errors="replace")[-4000:]
            raise RuntimeError(f"the worker for {self.load} ended with code {code}:\n{log}")
        return dict(json.loads(line))


def serve(set_up: Callable[[Load], Callable[[int], Samples]]) -> None:
    """Main of a worker: sets up the load named on the command line, then measures as told until stdin ends.

    What libraries print goes to stderr: stdout belongs to the parent.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    measure = set_up(Load(**json.loads(sys.argv[1])))
    print("{}", file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(measure(int(line))), file=answers, flush=True)
