"""The processes are started, watched, replaced and stopped, with real ones."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from demo.process_runner import SOCKET_PATH_MAX, ProcessRunner, ProcessSpec, RunnerFailed, render_config

LIMIT_S = 20.0
SLEEPER = """
import os, sys, time
print('up', *sys.argv[1:], os.environ.get('SECRET'), flush=True)
time.sleep(600)
"""
SLOW_TO_STOP = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (time.sleep(1), sys.exit(0)))
print('up', flush=True)
time.sleep(600)
"""
DOOMED = """
import time
time.sleep(1.3)
print('no such model')
raise SystemExit(4)
"""


def python(name: str, code: str, *args: str) -> ProcessSpec:
    return ProcessSpec(name=name, argv=(sys.executable, "-c", f"exec({code!r})", *args), stop_wait_s=10)


def until(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < limit, "condition did not come true"
        time.sleep(0.02)


@pytest.fixture
def runner(tmp_path: Path) -> Iterator[ProcessRunner]:
    runner = ProcessRunner(tmp_path / "a home, 100 %s")
    yield runner
    runner.stop()


def test_processes_get_their_arguments_and_the_secret_and_leave_a_log(runner: ProcessRunner) -> None:
    runner.start([python("one", SLEEPER, "50 %"), python("two", SLEEPER)], {"SECRET": "s3cret"})
    until(lambda: "up 50 % s3cret" in runner.log_tail("one") and "up s3cret" in runner.log_tail("two"))
    statuses = runner.statuses()
    assert [(status.name, status.alive) for status in statuses] == [("one", True), ("two", True)]
    assert len({status.pid for status in statuses}) == 2


def test_a_process_gets_an_environment_of_its_own(runner: ProcessRunner) -> None:
    say = "import os, time; print('got', os.environ.get('PATHS'), flush=True); time.sleep(600)"
    with_paths = replace(python("one", say), environment={"PATHS": "/a b,c=d/50%s:/e", "OTHER": "1"})
    runner.start([with_paths, python("two", say)], {})
    until(lambda: "got /a b,c=d/50%s:/e" in runner.log_tail("one") and "got None" in runner.log_tail("two"))


def test_a_quotation_mark_in_the_environment_is_refused() -> None:
    with pytest.raises(ValueError, match="quotation mark"):
        render_config([replace(python("bad", ""), environment={"A": 'b"c'})], Path("/run/x.sock"))


def test_the_secret_is_in_no_file(runner: ProcessRunner) -> None:
    runner.start([python("quiet", "import time; time.sleep(600)")], {"SECRET": "s3cret"})
    files = [path for path in runner.home.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if b"s3cret" in path.read_bytes()]


def test_stopping_waits_until_every_process_has_ended(runner: ProcessRunner) -> None:
    runner.start([python("slow", SLOW_TO_STOP)], {})
    until(lambda: "up" in runner.log_tail("slow"))
    pid = runner.statuses()[0].pid
    assert pid is not None
    assert runner.stop() is True
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert runner.running is False
    assert runner.stop() is False


def test_one_process_is_replaced_while_the_others_keep_running(runner: ProcessRunner) -> None:
    specs = [python("changing", SLEEPER, "fcfs"), python("steady", SLEEPER)]
    runner.start(specs, {})
    pids = {status.name: status.pid for status in runner.statuses()}
    until(lambda: "fcfs" in runner.log_tail("changing"))
    runner.replace([python("changing", SLEEPER, "plas"), specs[1]], "changing")
    until(lambda: "plas" in runner.log_tail("changing"))
    after = {status.name: status.pid for status in runner.statuses()}
    assert after["steady"] == pids["steady"]
    assert after["changing"] != pids["changing"]


def test_a_process_that_ended_is_reported_with_its_exit_code(runner: ProcessRunner) -> None:
    runner.start([python("doomed", DOOMED)], {})
    until(lambda: not runner.statuses()[0].alive)
    status = runner.statuses()[0]
    assert (status.exit_code, status.pid) == (4, None)
    assert runner.log_tail("doomed") == "no such model"


def test_a_crashed_process_is_started_anew(runner: ProcessRunner) -> None:
    crash = "import time; print('up', flush=True); time.sleep(1.3); raise SystemExit(1)"
    runner.start([python("crashing", crash)], {})
    until(lambda: runner.log_tail("crashing").count("up") >= 2)


def test_nobody_else_may_read_the_state(runner: ProcessRunner) -> None:
    runner.start([python("one", SLEEPER)], {})
    assert runner.home.stat().st_mode & 0o077 == 0


def test_a_socket_path_that_is_too_long_moves_to_the_temporary_directory(tmp_path: Path) -> None:
    runner = ProcessRunner(tmp_path / ("long" * 30))
    try:
        runner.start([python("one", SLEEPER)], {})
        assert runner.running
        assert len(str(tmp_path / ("long" * 30))) > SOCKET_PATH_MAX
    finally:
        assert runner.stop() is True


def test_without_a_daemon_there_are_no_statuses(runner: ProcessRunner) -> None:
    assert runner.running is False
    with pytest.raises(RunnerFailed, match="does not answer"):
        runner.statuses()


def test_the_configuration_keeps_the_order_of_start() -> None:
    text = render_config([python("first", ""), python("second", "")], Path("/run/x.sock"))
    assert text.index("[program:first]") < text.index("priority=1")
    assert text.index("priority=1") < text.index("[program:second]") < text.index("priority=2")


def test_the_log_tail_is_the_last_lines(tmp_path: Path) -> None:
    runner = ProcessRunner(tmp_path)
    runner.log_path("x").parent.mkdir()
    runner.log_path("x").write_text("".join(f"line {i}\n" for i in range(100)))
    assert runner.log_tail("x", lines=2) == "line 98\nline 99"
    assert runner.log_tail("nothing") == ""


def test_a_line_break_in_an_argument_is_refused() -> None:
    with pytest.raises(ValueError, match="line break"):
        render_config([ProcessSpec(name="bad", argv=("echo", "a\n[program:evil]"))], Path("/run/x.sock"))
