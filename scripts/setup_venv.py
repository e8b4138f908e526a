"""Installs exactly what a lock names into a virtual environment; standard library only.

Run by `make setup` with the Python that the environment shall have. Installs with `--no-deps`: the lock
names everything, and what it leaves out stays out (vLLM's CPU build would pull CUDA builds of torchvision,
torchaudio and torchcodec, with which it cannot import its own models). A second run with nothing changed
ends at once.
"""

import argparse
import hashlib
import re
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

UNWANTED = ("torchvision", "torchaudio", "torchcodec")
STAMP = "installed.txt"
"""What is installed: its fingerprint, then the requirement that torch came from."""
FIND_UNWANTED = "import importlib.util as u; print(*[m for m in {names!r} if u.find_spec(m)])"
FIND_NUMA = """
import ctypes
try:
    ctypes.CDLL("libnuma.so.1")
except OSError:
    print("missing")
"""
TORCH_HINT = """\
setup: pip finds no CPU build of torch for this Python.
  wanted: {torch}, Python {python}
  Either point pip at a package index with CPU builds of torch (`pip config set global.extra-index-url ...`;
  the install page of the PyTorch project names it for "Pip, CPU"),
  or say which one to take: make setup TORCH=/path/to/torch-2.13.0+cpu-....whl
  or use another Python:    make setup PYTHON=python3.11"""


NUMA_HINT = """\
setup: vLLM's CPU kernels need libnuma.so.1, which this machine does not have.
  On Debian and Ubuntu: apt install libnuma1; on Fedora and its kin: dnf install numactl-libs"""


class SetupError(Exception):
    """The environment cannot be made; the message says what to do."""


def main(argv: Sequence[str]) -> int:
    """Returns the exit code."""
    arguments = _parse(argv)
    try:
        install(arguments.venv, arguments.lock, arguments.torch)
    except (SetupError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def install(root: Path, lock: Path, torch: str | None) -> None:
    """Makes the environment equal to the lock.

    Args:
        torch: a requirement or a wheel that replaces the lock's torch; remembered for later runs.
    Raises: SetupError.
    """
    torch_locked, others = split_lock(lock.read_text())
    stamp = root / STAMP
    installed, torch_before = read_stamp(stamp)
    torch = torch or torch_before or torch_locked
    wanted = fingerprint(others, torch)
    if installed == wanted:
        return
    stamp.unlink(missing_ok=True)
    python = _make_venv(root)
    _install_torch(python, torch)
    print(f"setup: installing {len(others)} packages of {lock} into {root} (a few minutes)", flush=True)
    _pip_counted(python, others)
    _check(python)
    stamp.write_text(f"{wanted}\n{torch if torch != torch_locked else ''}\n")
    print(f"setup: done; {root}/bin/python is Python {_version()}")


def split_lock(text: str) -> tuple[str, list[str]]:
    """Returns torch's requirement and all others, without comments and blank lines."""
    lines = [line.split(" #")[0].strip() for line in text.splitlines() if not line.startswith("#")]
    requirements = [line for line in lines if line]
    torch = [line for line in requirements if re.match(r"torch\b(?![-_.])", line)]
    if len(torch) != 1:
        raise SetupError(f"setup: the lock names torch {len(torch)} times, expected once")
    return torch[0], [line for line in requirements if line != torch[0]]


def read_stamp(stamp: Path) -> tuple[str, str]:
    """Returns the fingerprint of what is installed and the torch chosen for it, empty where there is none."""
    lines = stamp.read_text().splitlines() if stamp.exists() else []
    installed, torch, *_ = [*lines, "", ""]
    return installed, torch


def fingerprint(requirements: Sequence[str], torch: str) -> str:
    """Changes when anything does that would install something else."""
    facts = "\n".join([_version(), torch, *requirements, *UNWANTED])
    return hashlib.sha256(facts.encode()).hexdigest()


def _make_venv(root: Path) -> Path:
    python = root / "bin" / "python"
    if not _runs(python, _version()):
        print(f"setup: making {root} with Python {_version()}", flush=True)
        try:
            venv.create(root, with_pip=True, clear=True, symlinks=True)
        except (subprocess.CalledProcessError, OSError) as error:
            raise SetupError(
                f"setup: cannot make a virtual environment ({error}).\n"
                f"  On Debian and Ubuntu: apt install python{_version()}-venv"
            ) from error
    return python


def _runs(python: Path, version: str) -> bool:
    """Whether this is a Python of that version with pip."""
    if not python.exists():
        return False
    ask = "import sys, pip; print('%d.%d' % sys.version_info[:2])"
    answer = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=False)
    return answer.stdout.strip() == version


def _install_torch(python: Path, torch: str) -> None:
    print(f"setup: installing {torch}", flush=True)
    done = subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:", torch], check=False
    )
    if done.returncode:
        raise SetupError(TORCH_HINT.format(torch=torch, python=_version()))


def _pip_counted(python: Path, requirements: Sequence[str]) -> None:
    """Runs pip and shows how far it has come, one line on a terminal, every 40 packages elsewhere."""
    command = [str(python), "-m", "pip", "install", "--no-deps", "--progress-bar=off", *requirements]
    tail: list[str] = []
    seen = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as pip:
        assert pip.stdout is not None
        for line in pip.stdout:
            tail = [*tail[-30:], line]
            if line.startswith(("Collecting ", "Requirement already satisfied")):
                seen += 1
                _show(f"setup: fetched {seen} of {len(requirements)}", always=seen % 40 == 0)
            elif line.startswith("Installing collected"):
                _show("setup: all fetched, unpacking", always=True)
    if sys.stdout.isatty():
        print()
    if pip.returncode:
        raise SetupError("".join(tail) + "setup: pip failed, its last lines are above")


def _show(text: str, *, always: bool) -> None:
    if sys.stdout.isatty():
        print(f"\r{text:<60}", end="", flush=True)
    elif always:
        print(text, flush=True)


def _check(python: Path) -> None:
    present = _ask(python, FIND_UNWANTED.format(names=UNWANTED))
    if present:
        raise SetupError(
            f"setup: {present} must not be installed beside vLLM's CPU build:\n"
            f"  {python} -m pip uninstall {present}"
        )
    cuda = _ask(python, "import torch; print(torch.version.cuda)")
    if cuda != "None":
        raise SetupError(
            TORCH_HINT.format(torch="a CPU build", python=_version()) + f"\n  found: a build for CUDA {cuda}"
        )

    if _ask(python, FIND_NUMA) == "missing":
        raise SetupError(NUMA_HINT)


def _ask(python: Path, code: str) -> str:
    answer = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    if answer.returncode:
        raise SetupError(f"setup: {answer.stderr.strip().splitlines()[-1]}\n  while checking: {code}")
    return answer.stdout.strip()


def _version() -> str:
    return "{}.{}".format(*sys.version_info[:2])


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--venv", type=Path, required=True)
    parser.add_argument("--lock", type=Path, required=True)
    parser.add_argument("--torch", help="requirement or wheel instead of the lock's torch")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
