"""The compiled copy of the scheduling core: what it consists of, whether it is up to date, and who loads it.

`scripts.compile_core` makes it, apart from the tree, so that sources are what tests and debuggers see:

    build/compiled/
      scheduler_svc/core/    the core's sources, and beside each the extension that is loaded in its place
      scheduler_svc/*        links to everything else of the package in the tree
      *.so                   the machine code of all those extensions
      fingerprint.txt        of what it was made from

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
PACKAGE = Path("scheduler_svc")
CORE = PACKAGE / "core"
SHARED = (Path("svc_runtime/block_hashes.py"),)
"""Modules that the core imports from elsewhere; they stay interpreted, but their types are compiled in."""
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
    return sorted(path.relative_to(root) for path in (root / CORE).rglob("*.py"))


def module_names(root: Path = ROOT) -> list[str]:
    """The same as dotted names."""
    return [".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in modules(root)]


def linked(root: Path = ROOT) -> list[str]:
    """Names in the package that the copy only links to."""
    names = (path.name for path in (root / PACKAGE).iterdir())
    return sorted(name for name in names if name not in (CORE.name, "__pycache__"))


def _facts(root: Path) -> Iterable[bytes]:
    yield str(sysconfig.get_config_var("EXT_SUFFIX")).encode()
    yield _compiler_version().encode()
    yield from (name.encode() for name in linked(root))
    for path in (*modules(root), *SHARED, *BUILDERS):
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
