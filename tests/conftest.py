"""Rules for all tests: directories set the markers, and a test file that collects nothing is an error."""

from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("repository", deadline=None, print_blob=True)  # a shared machine has no deadlines
settings.register_profile("long", parent=settings.get_profile("repository"), max_examples=5000)
settings.load_profile("repository")

MARKED_DIRECTORIES = ("integration", "e2e")
_empty_modules = pytest.StashKey[list[str]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_empty_modules] = []


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector):
    report = yield
    if isinstance(collector, pytest.Module) and report.passed and not report.result:
        collector.config.stash[_empty_modules].append(collector.nodeid)
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if empty := config.stash[_empty_modules]:
        raise pytest.UsageError(f"test files that collect nothing: {', '.join(empty)}")
    for item in items:
        inside = Path(item.path).relative_to(config.rootpath).parts
        for name in MARKED_DIRECTORIES:
            if inside[:2] == ("tests", name):
                item.add_marker(name)
