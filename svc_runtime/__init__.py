"""What all three services need to run: settings, logs, gRPC set-up, typed errors, metrics, life cycle.

Imports grpc, structlog, pydantic and prometheus_client; never a service, never vllm or torch.

gRPC reads its switches while it is loaded, so they are set here, and each package that uses gRPC imports this
one before anything else. Its event engine hands every message from thread to thread; without it the thread
that waits for completions polls the sockets, as gRPC did before, for less CPU (figures in
docs/adr/0010-grpc-without-its-event-engine.md). A program that loaded gRPC earlier keeps the event engine,
and works all the same.
"""

import os

GRPC_EXPERIMENTS = "-event_engine_client,-event_engine_listener,-event_engine_for_all_other_endpoints"

os.environ.setdefault("GRPC_EXPERIMENTS", GRPC_EXPERIMENTS)
