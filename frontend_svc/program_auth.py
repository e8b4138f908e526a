"""Who calls over gRPC: `authorization: Bearer KEY` metadata becomes the tenant of the RPC.

The interceptor sees every RPC of `ProgramService` before its handler, so none can forget to ask; health and
reflection stay open. The tenant travels in a context variable, since grpc.aio runs an RPC's interceptors
and its handler in one task. `current_tenant` outside such an RPC is our bug and raises LookupError.
"""

from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from typing import Any

import grpc

from protos.autellix.program.v1 import program_pb2 as pb
from svc_runtime.rpc_errors import abort

_GUARDED = f"/{pb.DESCRIPTOR.services_by_name['ProgramService'].full_name}/"
_tenant: ContextVar[str] = ContextVar("tenant")


def current_tenant() -> str:
    """The tenant of the RPC that is running."""
    return _tenant.get()


class TenantGuard(grpc.aio.ServerInterceptor):
    """Refuses RPCs of ProgramService whose key belongs to nobody.

    Args:
        tenant_of_headers: the tenant for the RPC's metadata by lower-case name, None to refuse it
            (`auth.ApiKeys.tenant_of_headers`).
    """

    def __init__(self, tenant_of_headers: Callable[[Mapping[str, str]], str | None]) -> None:
        self._tenant_of_headers = tenant_of_headers

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        if not handler_call_details.method.startswith(_GUARDED):
            return await continuation(handler_call_details)
        metadata = handler_call_details.invocation_metadata or ()
        tenant = self._tenant_of_headers({key: str(value) for key, value in metadata})
        if tenant is None:
            return grpc.unary_unary_rpc_method_handler(_refuse)
        _tenant.set(tenant)
        return await continuation(handler_call_details)


async def _refuse(_request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
    message = "send metadata `authorization: Bearer KEY` with a key of this server"
    await abort(context, None, "UNAUTHENTICATED", message, field="authorization")
