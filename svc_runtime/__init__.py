"""What all three services need to run: settings, logs, gRPC set-up, typed errors, metrics, life cycle.

Imports grpc, structlog, pydantic and prometheus_client; never a service, never vllm or torch.
"""
