"""Rewrites requirements/*.lock from requirements/*.in: `make lock`, with UPGRADE=1 for the newest versions.

pip resolves each file without installing (`--dry-run --report`); then only what can be reached from the
direct dependencies without passing through an excluded package is kept, with its exact version. Versions
already in the locks stay unless upgraded, and are the same in all locks.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REQUIREMENTS = Path("requirements")
BASE = "cpu"
"""This lock comes first; the others take its versions."""
CUDA_FLAGS = (  # the machine that locks need not be like the one that installs
    "--only-binary=:all:",
    "--python-version=3.12",
    *(f"--platform=manylinux_2_{minor}_x86_64" for minor in range(5, 36)),
    *(f"--platform=manylinux{old}_x86_64" for old in ("2014", "2010", "1")),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lock:
    """One lock: what to leave out of it and what pip must be told."""

    name: str
    excluded: frozenset[str] = frozenset()
    flags: tuple[str, ...] = ()
    python: str = "{}.{}".format(*sys.version_info[:2])
    """The version that markers are evaluated for."""
    own_versions: frozenset[str] = frozenset()
    """Packages whose version may differ from the other locks'."""


NO_MEDIA = frozenset({"torchvision", "torchaudio", "torchcodec"})  # CUDA builds: they break vLLM's CPU build
LOCKS = (
    Lock(name="cpu", excluded=NO_MEDIA | {"triton"}),
    Lock(name="frontend", excluded=NO_MEDIA | {"triton"}),
    Lock(name="scheduler"),
    Lock(name="cuda", flags=CUDA_FLAGS, python="3.12", own_versions=frozenset({"torch", "apache-tvm-ffi"})),
)


@dataclass(frozen=True, slots=True)
class Resolved:
    """A package as pip would install it."""

    name: str
    version: str
    requires: tuple[Requirement, ...]


def main(argv: Sequence[str]) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions")
    parser.add_argument("--only", choices=[lock.name for lock in LOCKS], help="rewrite this lock alone")
    arguments = parser.parse_args(argv)
    for lock in LOCKS:
        if arguments.only in (None, lock.name):
            fresh = arguments.upgrade and lock.name == BASE
            write(lock, {} if fresh else locked_versions(BASE))
    return 0


def write(lock: Lock, versions: Mapping[str, str]) -> None:
    """Resolves one lock under the given versions and rewrites its file."""
    source = REQUIREMENTS / f"{lock.name}.in"
    constraints = [
        f"{name}=={version}" for name, version in versions.items() if name not in lock.own_versions
    ]
    packages: dict[str, Resolved] = {
        canonicalize_name(p.name): p for p in resolve(source, constraints, lock.flags)
    }
    kept = reachable(packages, direct(source), lock)
    lines = sorted((f"{p.name}=={p.version}" for p in kept), key=str.lower)
    marked = [line for line in requirement_lines(source) if ";" in line]  # differ by Python: kept as written
    lines = [line for line in lines if not names_one_of(line, marked)] + marked
    header = f"# Made by `make lock` from {source.name}; install with --no-deps.\n"
    target = REQUIREMENTS / f"{lock.name}.lock"
    target.write_text(header + "\n".join(sorted(lines, key=str.lower)) + "\n")
    print(f"{target}: {len(lines)} packages")


def resolve(source: Path, constraints: Iterable[str], flags: Sequence[str]) -> Iterator[Resolved]:
    """Asks pip what it would install; downloads metadata, and whole wheels only where an index has none."""
    with tempfile.TemporaryDirectory() as folder:
        limits, report = Path(folder, "constraints.txt"), Path(folder, "report.json")
        limits.write_text("\n".join(constraints))
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
        command += [f"--report={report}", f"--constraint={limits}", f"--requirement={source}", *flags]
        command += [f"--target={folder}/never"] if flags else []
        subprocess.run(command, check=True)
        items: list[dict[str, Any]] = json.loads(report.read_text())["install"]
    for item in items:
        metadata = item["metadata"]
        requires = tuple(Requirement(text) for text in metadata.get("requires_dist", ()))
        yield Resolved(metadata["name"], metadata["version"], requires)


def reachable(packages: Mapping[str, Resolved], roots: Iterable[Requirement], lock: Lock) -> list[Resolved]:
    """Everything the roots need, not counting needs of excluded packages."""
    found: dict[str, Resolved] = {}
    waiting = [(canonicalize_name(root.name), frozenset(root.extras)) for root in roots]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        name, extras = waiting.pop()
        if (name, extras) in seen or name in lock.excluded or name not in packages:
            continue
        seen.add((name, extras))
        found[name] = packages[name]
        for need in packages[name].requires:
            if applies(need, extras, lock.python):
                waiting.append((canonicalize_name(need.name), frozenset(need.extras)))
    return list(found.values())


def applies(need: Requirement, extras: frozenset[str], python: str) -> bool:
    """Whether a dependency counts for this Python and under the extras asked for."""
    versions = {"python_version": python, "python_full_version": f"{python}.0"}
    return need.marker is None or any(
        need.marker.evaluate({**versions, "extra": extra}) for extra in ("", *extras)
    )


def direct(source: Path) -> list[Requirement]:
    """The requirements of an .in file and of those it includes."""
    return [Requirement(line) for line in requirement_lines(source)]


def requirement_lines(source: Path) -> list[str]:
    """The lines of an .in file without comments, inclusions resolved."""
    lines: list[str] = []
    for raw in source.read_text().splitlines():
        line = re.sub(r"(^|\s+)#.*", "", raw).strip()
        if line.startswith("-r "):
            lines += requirement_lines(source.parent / line[3:])
        elif line:
            lines.append(line)
    return lines


def locked_versions(name: str) -> dict[str, str]:
    """Canonical names and versions of a lock, lines with markers left out."""
    requirements = [Requirement(line) for line in requirement_lines(REQUIREMENTS / f"{name}.lock")]
    return {
        canonicalize_name(r.name): next(iter(r.specifier)).version for r in requirements if r.marker is None
    }


def names_one_of(line: str, others: Iterable[str]) -> bool:
    """Whether a requirement is about the same package as one of the others."""
    name = canonicalize_name(Requirement(line).name)
    return any(canonicalize_name(Requirement(other).name) == name for other in others)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
