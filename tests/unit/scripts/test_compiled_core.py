"""The compiled copy: when it counts as up to date, who gets it, what is said where it cannot be made."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from threading import Event, Thread

import pytest

from scripts import compile_core, compiled_core
from scripts.compiled_core import COMPILED, INTERPRETED, SOURCES, STAMP, NotCompiled, choose, fingerprint


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A repository in small: all that goes into the copy."""
    for name in (
        "scheduler_svc/core/core.py",
        "scheduler_svc/core/kv/store.py",
        "scheduler_svc/shell/server.py",
        "scheduler_svc/settings.py",
        "protos/autellix/executor.proto",
        *map(str, compiled_core.BESIDES),
        *map(str, compiled_core.BUILDERS),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"# {name}\n")
    return tmp_path


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy that says it is up to date."""
    (tmp_path / STAMP).write_text(fingerprint() + "\n")
    return tmp_path


@pytest.mark.parametrize(
    "name",
    [
        "scheduler_svc/core/kv/store.py",
        "scheduler_svc/shell/executor_wire.py",
        "svc_runtime/block_hashes.py",
        "protos/autellix/executor.proto",
        "scripts/compile_core.py",
    ],
)
def test_a_changed_source_makes_another_copy(tree: Path, name: str) -> None:
    before = fingerprint(tree)
    (tree / name).write_text("changed\n")
    assert fingerprint(tree) != before


def test_a_new_module_makes_another_copy(tree: Path) -> None:
    before = fingerprint(tree)
    (tree / "scheduler_svc/core/another.py").touch()
    assert fingerprint(tree) != before


def test_what_is_linked_is_never_out_of_date(tree: Path) -> None:
    before = fingerprint(tree)
    (tree / "scheduler_svc/shell/server.py").write_text("changed\n")
    assert fingerprint(tree) == before
    (tree / "scheduler_svc/shell/another.py").touch()
    assert fingerprint(tree) != before, "there would be no link to it"


def test_a_copy_that_is_up_to_date_is_chosen(copy: Path) -> None:
    build = choose(copy=copy)
    assert build.kind == COMPILED
    assert build.environment["PYTHONPATH"].split(os.pathsep)[0] == str(copy)
    assert choose(INTERPRETED, copy=copy) == SOURCES


def test_a_stale_copy_is_never_chosen_and_that_is_said(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copy / STAMP).write_text("of other sources\n")
    assert choose(copy=copy) == SOURCES
    assert "out of date" in capsys.readouterr().err
    with pytest.raises(NotCompiled, match="out of date: run `make compile`"):
        choose(COMPILED, copy=copy)


def test_without_a_copy_nothing_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert choose(copy=tmp_path / "none") == SOURCES
    assert capsys.readouterr().err == ""
    with pytest.raises(NotCompiled, match="not there"):
        choose(COMPILED, copy=tmp_path / "none")


def test_a_process_and_its_children_look_into_the_copy_first(tmp_path: Path) -> None:
    package = tmp_path / "scheduler_svc"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text("import svc_runtime; print(__file__, svc_runtime.__file__)\n")
    program = "import subprocess, sys; subprocess.run([sys.executable, '-m', 'scheduler_svc'], check=True)"
    for command in (["-m", "scheduler_svc"], ["-c", program]):
        done = subprocess.run(
            [sys.executable, *command],
            cwd=compiled_core.ROOT,
            env=os.environ | compiled_core.environment(tmp_path),
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.split() == [
            str(package / "__main__.py"),
            str(compiled_core.ROOT / "svc_runtime" / "__init__.py"),
        ]


def test_without_a_compiler_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CC", "no-such-compiler -pthread")
    arguments = ["--out", str(tmp_path / "copy")]
    assert compile_core.main(arguments) == 1
    said = capsys.readouterr().out
    assert "no C compiler (no-such-compiler)" in said
    assert "apt install gcc" in said
    assert compile_core.main([*arguments, "--if-possible"]) == 0
    assert not (tmp_path / "copy").exists()


def test_without_headers_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", sys.executable)  # something that exists
    monkeypatch.setattr(compile_core.sysconfig, "get_path", lambda name: str(tmp_path))
    missing = compile_core.missing_tools()
    assert missing is not None
    assert f"({tmp_path / 'Python.h'})" in missing
    assert f"python{sys.version_info[0]}.{sys.version_info[1]}-dev" in missing


def test_an_up_to_date_copy_is_not_made_again(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[Path] = []
    monkeypatch.setattr(compile_core, "missing_tools", lambda: None)
    monkeypatch.setattr(compile_core, "compile_core", made.append)
    assert compile_core.main(["--out", str(copy)]) == 0
    assert made == []
    assert compile_core.main(["--out", str(copy), "--force"]) == 0
    assert made == [copy]


def test_who_waits_for_another_to_make_the_copy_does_not_make_it_again(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = Event()
    made: list[Path] = []
    monkeypatch.setattr(compile_core, "_say", lambda _: waits.set())
    monkeypatch.setattr(compile_core, "compile_core", made.append)
    (copy / STAMP).rename(copy / "made by the other one")
    second = Thread(target=compile_core.bring_up_to_date, args=(copy,))
    with compile_core._alone(copy):
        second.start()
        assert waits.wait(30.0), "it does not wait"
        (copy / "made by the other one").rename(copy / STAMP)
    second.join(30.0)
    assert not second.is_alive()
    assert made == []


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_new_copy_takes_the_place_of_the_old_one(tmp_path: Path, *, interrupted: bool) -> None:
    out, work, old = tmp_path / "compiled", tmp_path / "compiled.new", tmp_path / "compiled.old"
    for directory in (out, work, *([old] if interrupted else [])):
        directory.mkdir()
        (directory / directory.name).touch()
    compile_core._replace(out, work)
    assert [path.name for path in tmp_path.iterdir()] == ["compiled"]
    assert [path.name for path in out.iterdir()] == ["compiled.new"]


def test_sources_that_change_while_they_are_copied_are_not_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stamp would be that of other sources, and the copy be used when those come back."""
    fingerprints = iter(["before", "after"])
    monkeypatch.setattr(compiled_core, "fingerprint", lambda: next(fingerprints))
    monkeypatch.setattr(compile_core, "_build", lambda work: pytest.fail("it goes on"))
    with pytest.raises(compile_core.CompileError, match="changed"):
        compile_core.compile_core(tmp_path / "compiled")
    assert list(tmp_path.iterdir()) == []


def test_a_compiler_that_is_broken_off_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    children: list[subprocess.Popen[bytes]] = []

    def broken_off(child: subprocess.Popen[bytes], log: Path, modules: int) -> int:
        children.append(child)
        raise KeyboardInterrupt

    monkeypatch.setattr(compile_core, "SET_UP", "import time; time.sleep(60)\n")
    monkeypatch.setattr(compile_core, "_wait_telling", broken_off)
    with pytest.raises(KeyboardInterrupt):
        compile_core._build(tmp_path)
    assert [child.returncode for child in children] == [-signal.SIGKILL]
