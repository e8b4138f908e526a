"""Rules about the repository itself: who may import whom, sizes, what is tracked, what texts may not say."""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SERVICES = ("frontend_svc", "scheduler_svc", "executor_svc")
OURS = {*SERVICES, "svc_runtime", "protos", "sim", "bench", "demo", "tests", "scripts"}
HEAVY = {"vllm", "torch", "transformers", "numpy"}

CORE_LIBRARIES = {"numpy"}
CORE_SHARES = ("svc_runtime.block_hashes",)
"""Frontends hash prompts as the core does; the module is as pure as the core."""
IMPURE = {
    "asyncio",
    "time",
    "datetime",
    "threading",
    "multiprocessing",
    "concurrent",
    "socket",
    "os",
    "subprocess",
}
IMPURE |= {"logging", "signal", "tempfile", "pathlib", "secrets", "uuid", "io", "sqlite3", "contextvars"}
VLLM_WORKER_SIDE = ("vllm.v1.worker", "vllm.v1.core")

MODULE_LINES_MAX = 400
FUNCTION_LINES_MAX = 70

# Written in pieces so that this file does not find itself.
REGISTRY_HOSTS = (
    "py" + r"pi\.org",
    "python" + r"hosted\.org",
    "npm" + r"js\.org",
    "download\\.py" + r"torch\.org",
)
MACHINE_PATHS = ("/ro" + "ot/", "/wo" + "rk/", "/ho" + "me/[a-z]", "/opt/wh" + "eels", r"\.\./sha" + "red")
FORBIDDEN_TEXT = re.compile("|".join((*REGISTRY_HOSTS, *MACHINE_PATHS)))


@cache
def tracked() -> tuple[Path, ...]:
    """All files under version control that still exist, relative to the root."""
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True)
    return tuple(Path(name) for name in listing.stdout.split("\0") if name and (ROOT / name).is_file())


def sources(*folders: str) -> list[Path]:
    return [path for path in tracked() if path.suffix == ".py" and (not folders or path.parts[0] in folders)]


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(), str(path))


@cache
def imports_of(path: Path, *, at_load: bool = False) -> frozenset[str]:
    """Dotted names of all modules a file imports, relative ones made absolute.

    Args:
        at_load: only what is imported as soon as the file is, not inside functions.
    """
    package = path.parts[:-1]
    found = set()
    tree = tree_of(path)
    for node in tree.body if at_load else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            found |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return frozenset(found)


def tops_of(path: Path, *, at_load: bool = False) -> set[str]:
    return {name.partition(".")[0] for name in imports_of(path, at_load=at_load)}


def is_under(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def breaches(paths: list[Path], forbidden: set[str], *, at_load: bool = False) -> list[str]:
    """What these files import and must not."""
    return [
        f"{path} imports {name}"
        for path in paths
        for name in sorted(tops_of(path, at_load=at_load) & forbidden)
    ]


def core_modules() -> list[Path]:
    return [path for path in sources("scheduler_svc") if path.parts[1:2] == ("core",)]


def test_there_is_something_to_check():
    assert len(core_modules()) >= 4
    assert all(sources(service) for service in SERVICES)


def test_the_core_imports_only_itself_and_pure_libraries():
    allowed = (sys.stdlib_module_names - IMPURE) | CORE_LIBRARIES
    wrong = [
        f"{path} imports {name}"
        for path in (*core_modules(), *(Path(*name.split(".")).with_suffix(".py") for name in CORE_SHARES))
        for name in sorted(imports_of(path))
        if not is_under(name, "scheduler_svc.core", *CORE_SHARES) and name.partition(".")[0] not in allowed
    ]
    assert wrong == []


def test_the_core_takes_randomness_as_an_argument():
    wrong = [
        f"{path}:{node.lineno} uses random.{node.attr}"
        for path in core_modules()
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "random"
        and node.attr != "Random"
    ]
    wrong += [
        f"{path} imports {name}"
        for path in core_modules()
        for name in imports_of(path)
        if is_under(name, "random") and name not in ("random", "random.Random")
    ]
    assert wrong == []


def test_the_scheduler_is_light():
    assert breaches(sources("scheduler_svc"), HEAVY - {"numpy"}) == []


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_imports_no_other_service(service):
    others = {*SERVICES, "sim", "bench", "demo", "tests", "scripts"} - {service}
    assert breaches(sources(service), others) == []


def test_the_runtime_knows_no_service():
    assert breaches(sources("svc_runtime"), (OURS | HEAVY) - {"svc_runtime"}) == []


def test_only_the_vllm_runner_touches_vllms_worker_side():
    wrong = [
        f"{path} imports {name}"
        for path in sources(*SERVICES)
        if not (path.parts[0] == "executor_svc" and path.parts[1].startswith("vllm_runner"))
        for name in sorted(imports_of(path))
        if is_under(name, *VLLM_WORKER_SIDE)
    ]
    assert wrong == []


def loaded_with(path: Path) -> set[Path]:
    """Files of this repository that are imported when this one is, itself included."""
    reached, waiting = set(), [path]
    while waiting:
        current = waiting.pop()
        reached.add(current)
        files = {
            candidate
            for name in imports_of(current, at_load=True)
            for stem in (Path(*name.split(".")),)
            for candidate in (stem.with_suffix(".py"), stem / "__init__.py")
        }
        waiting += files & set(tracked()) - reached
    return reached


@pytest.mark.parametrize("start", ["executor_svc/__main__.py", "executor_svc/simulated_runner.py"])
def test_an_executor_loads_no_vllm_before_it_chose_a_runner(start):
    light = loaded_with(Path(start))
    assert len(light) > 3
    assert breaches(sorted(light), HEAVY - {"numpy"}, at_load=True) == []


def test_unit_tests_need_no_vllm():
    light = [path for path in sources("tests") if path.parts[1:2] in (("unit",), ("paper",), ("property",))]
    assert breaches(light, {"vllm", "torch"}) == []


def test_generated_code_is_not_tracked():
    assert [path for path in tracked() if re.search(r"_pb2(_grpc)?\.pyi?$", path.name)] == []


def test_texts_name_no_package_host_and_no_path_of_one_machine():
    wrong = []
    for path in tracked():
        try:
            text = (ROOT / path).read_text()
        except UnicodeDecodeError:
            continue
        wrong += [f"{path}: {found.group()}" for found in FORBIDDEN_TEXT.finditer(text)]
    assert wrong == []


def test_a_module_fits_into_a_head():
    lengths = {path: len((ROOT / path).read_text().splitlines()) for path in sources()}
    assert {str(path): lines for path, lines in lengths.items() if lines > MODULE_LINES_MAX} == {}


def test_a_function_fits_on_a_screen():
    wrong = [
        f"{path}:{node.lineno} {node.name} has {lines} lines"
        for path in sources()
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and (lines := node.end_lineno - node.lineno + 1) > FUNCTION_LINES_MAX
    ]
    assert wrong == []


def test_every_module_says_what_it_is():
    def needs_none(path: Path) -> bool:
        return not (ROOT / path).read_text().strip()

    assert [str(p) for p in sources() if not needs_none(p) and not ast.get_docstring(tree_of(p))] == []


def test_no_error_is_swallowed():
    wrong = [
        f"{path}:{node.lineno}"
        for path in sources(*SERVICES, "svc_runtime")
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.ExceptHandler)
        and (
            node.type is None
            or (isinstance(node.type, ast.Name) and node.type.id in ("Exception", "BaseException"))
        )
        and all(isinstance(inner, ast.Pass) for inner in node.body)
    ]
    assert wrong == []
