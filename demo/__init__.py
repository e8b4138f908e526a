"""The demonstration: real agent programs on the three services, as local processes."""

import svc_runtime  # noqa: F401 - before grpc is loaded, see there
