"""Who calls over gRPC: `authorization: Bearer KEY` metadata becomes the tenant of the RPC.

The interceptor sees every RPC of `ProgramService` before its handler, so none can forget to ask; health and
reflection stay open. The tenant travels in a context variable, since grpc.aio runs an RPC's interceptors
and its handler in one task. `current_tenant` outside such an RPC is our bug and raises LookupError.
"""

from collections.abc import Awaitable, Callable
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
        tenant_of_authorization: the tenant for the value of the `authorization` metadata (None when there is
            none), or None to refuse the caller (`auth.ApiKeys.tenant_of_authorization`).
    """

    def __init__(self, tenant_of_authorization: Callable[[str | None], str | None]) -> None:
        self._tenant_of_authorization = tenant_of_authorization

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        if not handler_call_details.method.startswith(_GUARDED):
            return await continuation(handler_call_details)
        tenant = self._tenant_of_authorization(_authorization(handler_call_details))
        if tenant is None:
            return grpc.unary_unary_rpc_method_handler(_refuse)
        _tenant.set(tenant)
        return await continuation(handler_call_details)


def _authorization(call: grpc.HandlerCallDetails) -> str | None:
    """The one value of the metadata; None as well when it was sent more than once."""
    values = [str(value) for key, value in call.invocation_metadata or () if key == "authorization"]
    return values[0] if len(values) == 1 else None


async def _refuse(_request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
    message = "send metadata `authorization: Bearer KEY` with a key of this server"
    await abort(context, None, "UNAUTHENTICATED", message, field="authorization")
