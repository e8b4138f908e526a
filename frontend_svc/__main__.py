"""`python -m frontend_svc`: the OpenAI-compatible HTTP server and the public gRPC API."""

import os
import sys
from functools import partial

from frontend_svc.settings import FrontendSettings
from svc_runtime.lifecycle import run_service
from svc_runtime.log import configure_logging
from svc_runtime.settings import load_settings


def main() -> int:
    """Run the service; returns its exit code."""
    settings = load_settings(FrontendSettings)
    configure_logging("frontend", level=settings.log_level, format=settings.log_format)
    os.environ.update(settings.vllm_environment())
    from frontend_svc.server import serve  # imports vllm: seconds, and only after its environment is set

    return run_service("frontend", partial(serve, settings))


if __name__ == "__main__":
    sys.exit(main())
