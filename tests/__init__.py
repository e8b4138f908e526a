"""All tests."""

import svc_runtime  # noqa: F401 - before grpc is loaded, see there: tests run gRPC as services do
