"""`python -m scheduler_svc`: runs a scheduler until SIGTERM. See --help."""

import sys

from scheduler_svc.settings import SchedulerSettings
from scheduler_svc.shell.server import SchedulerServer
from svc_runtime.lifecycle import run_service
from svc_runtime.log import configure_logging
from svc_runtime.settings import load_settings


def main() -> int:
    """Returns the exit code."""
    settings = load_settings(SchedulerSettings)
    configure_logging("scheduler", level=settings.log_level, format=settings.log_format)
    return run_service("scheduler", lambda stop: SchedulerServer(settings).run(stop))


if __name__ == "__main__":
    sys.exit(main())
