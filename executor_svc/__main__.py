"""`python -m executor_svc`: one executor process."""

import sys
from functools import partial

from executor_svc.server import serve
from executor_svc.settings import ExecutorSettings
from svc_runtime.lifecycle import run_service
from svc_runtime.log import configure_logging
from svc_runtime.settings import load_settings


def main() -> int:
    """Returns the exit code."""
    settings = load_settings(ExecutorSettings)
    configure_logging("executor", level=settings.log_level, format=settings.log_format)
    return run_service("executor", partial(serve, settings))


if __name__ == "__main__":
    sys.exit(main())
