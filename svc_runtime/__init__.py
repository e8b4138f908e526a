"""What all three services need to run: settings, logs, gRPC set-up, typed errors, metrics, life cycle.

Imports grpc, structlog, pydantic and prometheus_client; never a service, never vllm or torch.

gRPC reads its switches while it is loaded, so they are set here, and each service imports this package before
anything else. Its event engine hands every message from thread to thread; polled by the thread that waits for
completions, as gRPC did before, a message on a stream costs each side a third less CPU and keeps its latency.
"""

import os

GRPC_EXPERIMENTS = "-event_engine_client,-event_engine_listener,-event_engine_for_all_other_endpoints"

os.environ.setdefault("GRPC_EXPERIMENTS", GRPC_EXPERIMENTS)
