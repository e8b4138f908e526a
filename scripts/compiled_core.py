"""The compiled copy of the scheduling core: what it consists of, whether it is up to date, and who loads it.

Compiled are the core and what each step does besides: the translation of its messages. `scripts.compile_core`
makes the copy, apart from the tree, so that sources are what tests and debuggers see:

    build/compiled/
      scheduler_svc/core/              the core's sources, and beside each the extension loaded instead
      scheduler_svc/shell/*_wire.py    the same; all of it: `modules`
      scheduler_svc/*, svc_runtime/*   links to everything else of these packages in the tree
      *.so                             the machine code of all those extensions
      fingerprint.txt                  of what it was made from

A process loads the copy when `environment` is in its environment: Python then looks there before it looks
into the tree, and PYTHONSAFEPATH keeps `python -m` from putting the working directory first. Children inherit
both. `python -m scripts.compiled_core COMMAND ...` runs a command so. A copy of other sources than those of
the tree is never used.
"""

import hashlib
import importlib.metadata
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COPY = ROOT / "build" / "compiled"
CORE = Path("scheduler_svc/core")
BESIDES = (
    Path("scheduler_svc/shell/executor_wire.py"),
    Path("scheduler_svc/shell/frontend_wire.py"),
    Path("scheduler_svc/shell/output_columns.py"),
    Path("svc_runtime/block_hashes.py"),
    Path("svc_runtime/columns.py"),
)
"""What is compiled besides the core: every step goes through it."""
PACKAGES = tuple(dict.fromkeys(path for module in (CORE, *BESIDES) for path in module.parents[-2::-1]))
"""Packages of which the copy holds a part; the rest are links. Outer ones first."""
PROTOS = Path("protos")
"""Types of the messages; nothing of it is compiled."""
STAMP = "fingerprint.txt"
BUILDERS = (Path("scripts/compile_core.py"), Path("scripts/compiled_core.py"))

COMPILED, INTERPRETED, AUTO = "compiled", "interpreted", "auto"
CHOICES = (AUTO, COMPILED, INTERPRETED)


class NotCompiled(Exception):
    """The compiled core was asked for, and there is none that is up to date."""


@dataclass(frozen=True, slots=True)
class CoreBuild:
    """Which core a process is to run."""

    kind: str
    """`compiled` or `interpreted`."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """What to add to the environment of the process."""

    @property
    def environ(self) -> dict[str, str]:
        """The whole environment of the process: this one's, and that."""
        return os.environ | dict(self.environment)


SOURCES = CoreBuild(INTERPRETED)
"""The core of the tree."""


def choose(choice: str = AUTO, *, copy: Path = COPY) -> CoreBuild:
    """The core that processes of this machine should run.

    Args:
        choice: `auto`: the compiled one if it is up to date; said on stderr when it is out of date.

    Raises: NotCompiled when it must be the compiled one and cannot.
    """
    if choice == INTERPRETED:
        return SOURCES
    if is_current(copy):
        return CoreBuild(COMPILED, environment(copy))
    if choice == COMPILED:
        raise NotCompiled(f"{copy} is {'out of date' if copy.exists() else 'not there'}: run `make compile`")
    if copy.exists():
        print("the compiled core is out of date: running interpreted (`make compile`)", file=sys.stderr)
    return SOURCES


def is_current(copy: Path = COPY) -> bool:
    """Whether the copy was made from what the tree holds now, for this Python."""
    stamp = copy / STAMP
    return stamp.is_file() and stamp.read_text().strip() == fingerprint()


def environment(copy: Path = COPY) -> dict[str, str]:
    """What makes a Python process load the copy."""
    inherited = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    path = os.pathsep.join(dict.fromkeys([str(copy), str(ROOT), *inherited]))
    return {"PYTHONPATH": path, "PYTHONSAFEPATH": "1"}


def fingerprint(root: Path = ROOT) -> str:
    """Changes when anything does that would make another copy."""
    digest = hashlib.sha256()
    for fact in _facts(root):
        digest.update(fact + b"\0")
    return digest.hexdigest()


def modules(root: Path = ROOT) -> list[Path]:
    """The sources to compile, relative to the root."""
    core = (path.relative_to(root) for path in (root / CORE).rglob("*.py"))
    return sorted([*core, *BESIDES])


def module_names(root: Path = ROOT) -> list[str]:
    """The same as dotted names."""
    return [".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in modules(root)]


def linked(root: Path = ROOT) -> list[Path]:
    """What the copy only links to, relative to the root."""
    copied = {CORE, *PACKAGES, *BESIDES}
    entries = (path.relative_to(root) for package in PACKAGES for path in (root / package).iterdir())
    return sorted(path for path in entries if path not in copied and path.name != "__pycache__")


def _facts(root: Path) -> Iterable[bytes]:
    yield str(sysconfig.get_config_var("EXT_SUFFIX")).encode()
    yield _compiler_version().encode()
    yield from (str(path).encode() for path in linked(root))
    protos = sorted(path.relative_to(root) for path in (root / PROTOS).rglob("*.proto"))
    for path in (*modules(root), *protos, *BUILDERS):
        yield str(path).encode()
        yield (root / path).read_bytes()


def _compiler_version() -> str:
    try:
        return importlib.metadata.version("mypy")
    except importlib.metadata.PackageNotFoundError:
        return "none"


def main(command: list[str]) -> int:
    """Runs a command on the compiled core. Returns its exit code; 1 when there is none that is up to date."""
    try:
        build = choose(COMPILED)
    except NotCompiled as error:
        print(error, file=sys.stderr)
        return 1
    return subprocess.run(command, env=build.environ, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
