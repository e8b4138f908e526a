"""The HTTP application: vLLM's OpenAI routes, only those that are ours, behind our doors.

`ROUTES` is the whole surface. vLLM's own application has about forty routes (profiling, LoRA loading,
elastic scaling, raw metrics, SageMaker's /invocations, ...); here only the routers that hold ours are
attached, and of them only what is listed is kept, so that a new route of a later version stays closed
until somebody lists it.
"""

from argparse import Namespace
from collections.abc import Callable
from types import SimpleNamespace

from fastapi import APIRouter, FastAPI, Response
from starlette.routing import Route
from starlette.types import ASGIApp
from vllm.entrypoints.anthropic import api_router as anthropic
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.utils.server_utils import lifespan
from vllm.entrypoints.openai.chat_completion import api_router as chat
from vllm.entrypoints.openai.completion import api_router as completion
from vllm.entrypoints.openai.models import api_router as models
from vllm.entrypoints.openai.responses import api_router as responses
from vllm.entrypoints.serve.exception_handling.register import init_exception_handler
from vllm.entrypoints.serve.instrumentator import basic
from vllm.entrypoints.serve.tokenize import api_router as tokenize

from frontend_svc.auth import ApiKeys
from frontend_svc.call_context import CallRegistry
from frontend_svc.errors import Refused
from frontend_svc.http_door import Authentication, BodyLimit, ProgramDoor, Served
from frontend_svc.http_errors import refused_handler
from frontend_svc.llm import ProgramLLM
from frontend_svc.request_scope import OpensPrograms
from frontend_svc.typed_errors import TypedErrors
from protos.autellix.scheduler.v1 import scheduler_pb2 as pb

TASKS = ("generate",)
ROUTES: frozenset[tuple[str, str]] = frozenset(
    {
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/completions"),
        ("POST", "/v1/responses"),
        ("POST", "/v1/messages"),
        ("POST", "/v1/messages/count_tokens"),
        ("GET", "/v1/models"),
        ("POST", "/tokenize"),
        ("POST", "/detokenize"),
        ("GET", "/version"),
    }
)
"""What is kept of vLLM's routes. `/health` and `/v1/programs` are ours."""

Unavailable = Callable[[], pb.Refusal | None]


async def vllm_app(
    llm: ProgramLLM, args: Namespace, *, unavailable: Unavailable, programs: APIRouter
) -> FastAPI:
    """vLLM's application reduced to `ROUTES`, plus /health and the program routes."""
    app = FastAPI(lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None)
    app.state.args = args
    app.state.server = SimpleNamespace(should_exit=False)  # vLLM's wish to end the process; `server` decides
    for router in (chat, completion, responses, anthropic, models, tokenize, basic):
        app.include_router(router.router)
    app.router.routes[:] = [route for route in app.router.routes if _is_kept(route)]
    init_exception_handler(app)
    await init_app_state(llm, app.state, args, TASKS)
    for base_model in app.state.openai_serving_models.base_model_paths:
        base_model.model_path = base_model.name  # /v1/models would tell a path of this machine
    app.add_exception_handler(Refused, refused_handler)
    app.include_router(programs)

    app.add_api_route("/health", lambda: Response(status_code=200 if unavailable() is None else 503))
    return app


def behind_doors(
    app: ASGIApp,
    *,
    keys: ApiKeys,
    max_body_bytes: int,
    programs: OpensPrograms,
    unavailable: Unavailable,
    calls: CallRegistry,
    served: Served,
) -> ASGIApp:
    """The application as the world sees it: key first, then size, then program; errors with a reason."""
    typed = TypedErrors(app)
    door = ProgramDoor(typed, programs=programs, unavailable=unavailable, calls=calls, served=served)
    return Authentication(BodyLimit(door, max_bytes=max_body_bytes), keys=keys)


def _is_kept(route: object) -> bool:
    return isinstance(route, Route) and any((method, route.path) in ROUTES for method in route.methods or ())
