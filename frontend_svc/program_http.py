"""The HTTP door to programs, beside the OpenAI routes.

    POST   /v1/programs                     {"session": "...", "class": "..."} -> 201 new, 200 found
    GET    /v1/programs                     {"programs": [...]}, recently ended ones included
    GET    /v1/programs/{id}
    DELETE /v1/programs/{id}[?cancel=true]  ends it; with `cancel` its live calls are cancelled too

A program is the row of `program_messages.program_row`. Errors are `Refused`, raised; the application answers
with them as everywhere (`http_errors.refused_handler`).
"""

import json
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from frontend_svc.program_limits import invalid
from frontend_svc.program_messages import program_row
from frontend_svc.program_service import ProgramService

_BODY_FIELDS = frozenset({"session", "class"})
_TRUE, _FALSE = frozenset({"", "1", "true"}), frozenset({"0", "false"})


def make_router(service: ProgramService, tenant_of: Callable[[Request], str]) -> APIRouter:
    """The routes.

    Args:
        tenant_of: the authenticated tenant of a request.
    """
    router = APIRouter(prefix="/v1/programs", tags=["programs"])

    @router.post("")
    async def start_program(request: Request) -> JSONResponse:
        body = await _body(request)
        record, created = await service.start_program(
            tenant_of(request), session=_text(body, "session"), class_name=_text(body, "class")
        )
        return JSONResponse(program_row(record) | {"created": created}, 201 if created else 200)

    @router.get("")
    async def list_programs(request: Request) -> JSONResponse:
        records = await service.list_programs(tenant_of(request))
        return JSONResponse({"programs": [program_row(record) for record in records]})

    @router.get("/{program_id}")
    async def get_program(program_id: str, request: Request) -> JSONResponse:
        return JSONResponse(program_row(await service.get_program(tenant_of(request), program_id)))

    @router.delete("/{program_id}")
    async def end_program(program_id: str, request: Request) -> JSONResponse:
        stop = service.cancel_program if _flag(request, "cancel") else service.end_program
        return JSONResponse(program_row(await stop(tenant_of(request), program_id)))

    return router


async def _body(request: Request) -> dict[str, Any]:
    """The JSON object of a request; no body at all is an empty one."""
    raw = await request.body()
    try:
        body = json.loads(raw) if raw.strip() else {}
    except (ValueError, RecursionError) as error:
        raise invalid("body", "a JSON object", f"{len(raw)} bytes") from error
    if not isinstance(body, dict):
        raise invalid("body", "a JSON object", type(body).__name__)
    if unknown := body.keys() - _BODY_FIELDS:
        known = ", ".join(sorted(_BODY_FIELDS))
        raise invalid("body", f"the fields {known}", f"{len(unknown)} unknown fields")
    return body


def _text(body: dict[str, Any], field: str) -> str:
    value = body.get(field)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise invalid(field, "a string", type(value).__name__)
    return value


def _flag(request: Request, name: str) -> bool:
    value = request.query_params.get(name)
    if value is None or value.lower() in _FALSE:
        return False
    if value.lower() in _TRUE:
        return True
    raise invalid(name, "true or false", f"{len(value)} characters")
