"""The frontend: `python -m frontend_svc`."""

import svc_runtime  # noqa: F401 - before grpc is loaded, see there
