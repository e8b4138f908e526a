"""Asks a gRPC server whether it serves; for container health checks and scripts.

`python -m svc_runtime.healthcheck 127.0.0.1:50051 [autellix.scheduler.v1.SchedulerService]`
exits 0 when SERVING, 1 otherwise, and says which on one line.
"""

import sys
from collections.abc import Sequence

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from svc_runtime.lifecycle import ExitCode

TIMEOUT_S = 3.0


def check(target: str, service: str = "") -> str:
    """Returns the health status by name, or the gRPC status when the server cannot be asked."""
    with grpc.insecure_channel(target) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(service=service), timeout=TIMEOUT_S
            )
        except grpc.RpcError as error:
            return str(error.code().name)
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


def main(argv: Sequence[str]) -> int:
    """Returns the exit code."""
    if not 1 <= len(argv) <= 2:
        print("usage: python -m svc_runtime.healthcheck HOST:PORT [SERVICE]", file=sys.stderr)
        return ExitCode.USAGE
    status = check(*argv)
    print(status)
    return ExitCode.OK if status == "SERVING" else ExitCode.FAILED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
