"""Runs tests against the compiled core: `make test-compiled`, or pytest with `-p tests.on_compiled_core`.

Named on the command line so that it is loaded first: it loads the core before pytest puts the tree in front
of everything else. Tests marked `interpreted_core` are skipped, for the reason that they give.
"""

import pytest

from scheduler_svc.shell.core_kind import core_kind

if core_kind() != "compiled":
    raise pytest.UsageError("the core is interpreted: use `make test-compiled`")


def pytest_report_header() -> str:
    """Says which core is tested."""
    return "core: compiled"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leaves out what cannot be done with a compiled core."""
    for item in items:
        if marker := item.get_closest_marker("interpreted_core"):
            item.add_marker(pytest.mark.skip(reason=f"interpreted core only: {marker.args[0]}"))
