"""The core compiled ahead of time does what the interpreted one does, event for event.

Needs a C compiler and Python's headers; skipped, and it says so, only where one of them is missing.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from scripts import compiled_core
from scripts.compile_core import bring_up_to_date, missing_tools
from scripts.compiled_core import COPY, ROOT, CoreBuild, choose

TESTED_COPY = COPY.with_name("compiled-for-tests")
"""Made by these tests where `make compile` did not; kept, and used again while it is up to date."""
LIMIT_S = 300
"""Of one child process. The longest takes half a minute on a quiet machine of two cores."""
PRINT_FILES = "import importlib, sys; print(*(importlib.import_module(n).__file__ for n in sys.argv[1:]))"
PYTEST_OPTIONS = ("-q", "-p", "no:cacheprovider", "-p", "tests.on_compiled_core")
TESTS = (
    "tests/unit/scheduler_core",
    "tests/unit/scheduler_shell",
    "tests/unit/svc_runtime/test_block_hashes.py",
    "tests/unit/svc_runtime/test_columns.py",
    "tests/scenarios",
    "tests/paper",
    "tests/property/test_core_machine.py",
)
"""The faster ones; `make test-compiled` runs all."""
TRACE = ("-m", "sim", "--faults", "--check-every", "0", "--steps", "40000")

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(missing_tools() is not None, reason=f"CANNOT COMPILE THE CORE: {missing_tools()}"),
]


@pytest.fixture(scope="module")
def build() -> CoreBuild:
    """The compiled core."""
    copy = COPY if compiled_core.is_current(COPY) else TESTED_COPY
    bring_up_to_date(copy)
    return choose(compiled_core.COMPILED, copy=copy)


def run(build: CoreBuild, *arguments: str) -> str:
    """Runs Python on a core; returns what it printed."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=build.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def test_every_module_of_the_core_is_compiled(build: CoreBuild) -> None:
    files = run(build, "-c", PRINT_FILES, *compiled_core.module_names()).split()
    assert len(files) == len(compiled_core.modules()) > 50
    assert {Path(file).suffix for file in files} == {".so"}


@pytest.mark.parametrize("module", compiled_core.module_names())
def test_any_module_can_be_the_first_to_be_loaded(build: CoreBuild, module: str) -> None:
    """What a compiled class refers to is looked up while it is loaded, in whatever order that happens."""
    run(build, "-c", f"import {module}")


@pytest.mark.parametrize("seed", ["11", "21", "22"])
def test_the_same_seed_tells_the_same_story(build: CoreBuild, seed: str, tmp_path: Path) -> None:
    for core, name in ((compiled_core.SOURCES, "interpreted"), (build, "compiled")):
        run(core, *TRACE, "--seed", seed, "--trace", str(tmp_path / name))
    interpreted = (tmp_path / "interpreted").read_bytes()
    assert len(interpreted) > 1_000_000
    assert (tmp_path / "compiled").read_bytes() == interpreted


def test_it_passes_the_tests_of_the_core(build: CoreBuild) -> None:
    output = run(build, "-m", "pytest", *PYTEST_OPTIONS, *TESTS)
    assert int(output.splitlines()[-1].split(" passed")[0].split()[-1]) > 1000


def test_a_scheduler_says_which_core_it_runs(build: CoreBuild) -> None:
    program = "from scheduler_svc.shell.core_kind import core_kind; print(core_kind())"
    assert run(build, "-c", program).split() == ["compiled"]
    assert run(compiled_core.SOURCES, "-c", program).split() == ["interpreted"]
