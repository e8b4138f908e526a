"""Signals and exit codes, in real processes."""

import signal
import subprocess
import sys
import textwrap

import pytest

from svc_runtime.lifecycle import ExitCode, PortTaken, StartupError, run_service

WAITS = """
    async def main(stop):
        print("started", flush=True)
        await stop.wait()
        print("draining", flush=True)
        {after}
"""


@pytest.fixture
def process():
    """Starts a service whose main is given as text; kills what is left."""
    started = []

    def starting(body):
        code = "import asyncio, sys\nfrom svc_runtime.lifecycle import run_service\n"
        code += "from svc_runtime.log import configure_logging\nconfigure_logging('probe')\n"
        code += textwrap.dedent(body) + "\nsys.exit(run_service('probe', main))\n"
        child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        started.append(child)
        return child

    yield starting
    for child in started:
        child.kill()
        child.communicate()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_service_drain(process, signum):
    child = process(WAITS.format(after="await asyncio.sleep(0)"))
    assert child.stdout.readline() == "started\n"
    child.send_signal(signum)
    assert child.stdout.readline() == "draining\n"
    assert child.wait(30) == ExitCode.OK


def test_a_second_signal_ends_it_at_once(process):
    child = process(WAITS.format(after="await asyncio.Event().wait()"))
    assert child.stdout.readline() == "started\n"
    child.terminate()
    assert child.stdout.readline() == "draining\n"
    child.terminate()
    assert child.wait(30) == 128 + signal.SIGTERM


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (PortTaken("127.0.0.1:1"), 3),
        (StartupError("no such model", ExitCode.MODEL_MISSING), 4),
        (RuntimeError("a bug"), 1),
    ],
)
def test_failures_become_exit_codes(error, code):
    async def main(_stop):
        raise error

    assert run_service("probe", main) == code


def test_an_expected_failure_shows_no_traceback(capsys):
    async def main(_stop):
        raise StartupError("no such model", ExitCode.MODEL_MISSING)

    run_service("probe", main)
    shown = "".join(capsys.readouterr())
    assert "no such model" in shown
    assert "Traceback" not in shown
