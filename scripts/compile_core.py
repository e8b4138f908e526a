"""Compiles the scheduling core ahead of time: `python -m scripts.compile_core`, into build/compiled/.

mypyc turns the typed sources of the core, and of what each step does besides, into C, and the machine's C
compiler turns that into one library. It takes about a minute and is done again only when something that goes
in has changed. The tree is left alone: what the copy looks like and who loads it, says
`scripts.compiled_core`.

The copy is made in a directory beside the final one, every module of it is loaded once, and only then does it
take the place of the one before. One process at a time makes a copy; another that wants it waits, and then
finds it made. Exit codes: 0, done or nothing to do; 1, it cannot be made.
"""

import argparse
import fcntl
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from scripts import compiled_core
from scripts.compiled_core import COPY, PACKAGES, PROTOS, ROOT, STAMP

LIBRARY = "autellix_core"
SET_UP = """\
from mypyc.build import mypycify
from setuptools import setup

extensions = mypycify(
    ["--config-file=", "--cache-dir={cache}", "--ignore-missing-imports", *{modules!r}],
    opt_level="{level}",
    debug_level="0",
    group_name="{library}",
)
print("{translated}", flush=True)
setup(name="{library}", packages=[], ext_modules=extensions)
"""
OPTIMISATION = "1"
"""-O2 and -O3 take the C compiler three times as long and make no step faster."""
TRANSLATED = "translated to C"
"""What the child process prints between its two parts."""
LOAD_ALL = """\
import importlib, sys
names = sys.argv[1:]
interpreted = [name for name in names if importlib.import_module(name).__file__.endswith(".py")]
sys.exit(f"not compiled: {interpreted}" if interpreted else 0)
"""
TELL_EVERY_S = 10.0
TAIL_LINES = 30

COMPILER_HINT = """\
there is no C compiler ({compiler}).
  On Debian and Ubuntu: apt install gcc; on Fedora and its kin: dnf install gcc.
  Everything works without: the core then runs interpreted, a step takes longer."""
HEADERS_HINT = """\
this Python's headers are missing ({header}).
  On Debian and Ubuntu: apt install python{version}-dev; on Fedora and its kin: dnf install python3-devel.
  Everything works without: the core then runs interpreted, a step takes longer."""


class CompileError(Exception):
    """The core cannot be compiled; the message says why, and what helps."""


def main(argv: Sequence[str]) -> int:
    """Returns the exit code."""
    options = _parse(argv)
    if (missing := missing_tools()) is not None:
        _say(missing)
        return 0 if options.if_possible else 1
    try:
        bring_up_to_date(options.out, force=options.force)
    except (CompileError, OSError) as error:
        _say(str(error))
        return 1
    return 0


def missing_tools() -> str | None:
    """What this machine lacks to compile anything, in words; None: nothing."""
    compiler = shlex.split(os.environ.get("CC") or str(sysconfig.get_config_var("CC") or "cc"))[0]
    if shutil.which(compiler) is None:
        return COMPILER_HINT.format(compiler=compiler)
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.is_file():
        return HEADERS_HINT.format(header=header, version="{}.{}".format(*sys.version_info))
    return None


def bring_up_to_date(out: Path = COPY, *, force: bool = False) -> None:
    """Makes the copy if it is not up to date, or `force`; waits for another process that is making it.

    Raises: CompileError.
    """
    if not force and compiled_core.is_current(out):
        return
    with _alone(out):
        if force or not compiled_core.is_current(out):
            compile_core(out)


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Holds the lock on a copy. It goes with the process, however that ends."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.with_name(f"{out.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say("waiting for another process that is making the copy")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def compile_core(out: Path) -> None:
    """Makes the copy anew; nobody else may be at it.

    Raises: CompileError.
    """
    started_s = time.monotonic()
    work = out.resolve().with_name(f"{out.name}.new")
    shutil.rmtree(work, ignore_errors=True)  # of a process that was killed
    try:
        fingerprint = _copy_sources(work)
        _build(work)
        _link_the_rest(work)
        _check(work)
        (work / STAMP).write_text(fingerprint + "\n")
        _replace(out.resolve(), work)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    _say(f"done in {time.monotonic() - started_s:.0f} s: {out}")


def _replace(out: Path, work: Path) -> None:
    """By names alone, so that nobody finds half of the old copy."""
    old = out.with_name(f"{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    work.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def _copy_sources(work: Path) -> str:
    """Returns: the fingerprint of what was copied."""
    fingerprint = compiled_core.fingerprint()
    for path in compiled_core.modules():
        (work / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, work / path)
    for package in PACKAGES:
        (work / package / "__init__.py").touch()  # what is linked later is not looked at
    (work / PROTOS).symlink_to(ROOT / PROTOS)
    if compiled_core.fingerprint() != fingerprint:
        raise CompileError("the sources were changed while they were copied: try again")
    return fingerprint


def _build(work: Path) -> None:
    modules = [str(path) for path in compiled_core.modules()]
    script = SET_UP.format(
        modules=modules, level=OPTIMISATION, library=LIBRARY, translated=TRANSLATED, cache=os.devnull
    )
    (work / "set_up.py").write_text(script)
    log = work / "build.log"
    command = [sys.executable, "set_up.py", "build_ext", "--inplace", "--parallel", str(os.cpu_count() or 1)]
    with (
        log.open("wb") as output,
        subprocess.Popen(command, cwd=work, stdout=output, stderr=subprocess.STDOUT) as child,
    ):
        try:
            code = _wait_telling(child, log, len(modules))
        except BaseException:
            child.kill()
            raise
    if code:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-TAIL_LINES:])
        raise CompileError(f"{tail}\nfailed with code {code}, its last lines are above")
    shutil.rmtree(work / "build")
    (work / "set_up.py").unlink()
    log.unlink()


def _wait_telling(child: subprocess.Popen[bytes], log: Path, modules: int) -> int:
    """Says now and then what the child is at. Returns its exit code."""
    started_s = time.monotonic()
    while (code := child.poll()) is None:
        translated = TRANSLATED.encode() in log.read_bytes()
        stage = "compiling the C code" if translated else f"translating {modules} modules to C"
        _progress(f"{stage}, {time.monotonic() - started_s:.0f} s of about 60")
        with suppress(subprocess.TimeoutExpired):
            child.wait(1.0 if sys.stdout.isatty() else TELL_EVERY_S)
    if sys.stdout.isatty():
        print()
    return code


def _link_the_rest(work: Path) -> None:
    """Everything else of the packages is the tree's. Links are relative: the tree may move."""
    (work / PROTOS).unlink()
    for package in PACKAGES:
        (work / package / "__init__.py").unlink()
    for path in compiled_core.linked():
        (work / path).symlink_to(os.path.relpath(ROOT / path, (work / path).parent))


def _check(work: Path) -> None:
    """Loads all modules, in both orders: where the compiler went wrong it shows, if by a crash."""
    environment = os.environ | compiled_core.environment(work)
    names = compiled_core.module_names()
    for order in (names, names[::-1]):
        command = [sys.executable, "-c", LOAD_ALL, *order]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            tail = done.stderr.strip()
            raise CompileError(f"{tail}\nwhat was compiled cannot be loaded (code {done.returncode})")


def _progress(text: str) -> None:
    if sys.stdout.isatty():
        print(f"\rcompile: {text:<60}", end="", flush=True)
    else:
        _say(text)


def _say(text: str) -> None:
    print(f"compile: {text}", flush=True)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.compile_core",
        description="Compiles the scheduling core ahead of time; nothing to do when the copy is up to date.",
    )
    parser.add_argument("--out", type=Path, default=COPY, help="where to (default: build/compiled)")
    parser.add_argument("--force", action="store_true", help="even if the copy is up to date")
    parser.add_argument(
        "--if-possible", action="store_true", help="no failure where there is no C compiler or no header"
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
