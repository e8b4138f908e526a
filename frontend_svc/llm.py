"""AsyncLLM on top of our scheduler: vLLM's tokenizer side as it is, with typed failures.

What is overridden, and why:

    check_admission    vLLM asks before it starts a streamed response: 503 while the scheduler is away
    _add_request       vLLM keeps the state of a request for ever when its engine core refuses it
    abort              vLLM does not say why it aborts: a client that went away is not a stop string
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from vllm.config import VllmConfig
from vllm.v1.engine import EngineCoreRequest, async_llm
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.core_client import EngineCoreClient
from vllm.v1.executor import Executor
from vllm.v1.metrics.loggers import PrometheusStatLogger

from frontend_svc.engine_core_client import GrpcEngineCoreClient
from frontend_svc.vllm_errors import CallRefused
from protos.autellix.scheduler.v1 import scheduler_pb2 as pb


class ProgramLLM(AsyncLLM):
    """vLLM's asynchronous engine whose engine core is our scheduler.

    Args:
        vllm_config: of the served model; nothing in it causes weights to be loaded.
        engine_core: the way to the scheduler.
        unavailable: why nothing can be served just now, None when all is well.
    """

    def __init__(
        self,
        vllm_config: VllmConfig,
        engine_core: GrpcEngineCoreClient,
        *,
        unavailable: Callable[[], pb.Refusal | None],
    ) -> None:
        self._unavailable = unavailable
        with _engine_core_is(engine_core):
            super().__init__(
                vllm_config,
                Executor,
                log_stats=False,
                log_requests=False,
                stat_loggers=[PrometheusStatLogger],
            )
        engine_core.fail_request = self._fail_request

    def check_admission(self, n: int = 1, request_id: str | None = None) -> None:
        """Raises CallRefused while nothing can be served."""
        if (why_not := self._unavailable()) is not None:
            raise CallRefused(why_not)
        super().check_admission(n, request_id)

    async def abort(self, request_id: str | Iterable[str], internal: bool = False) -> None:
        """End requests whose client does not want them any more; their output ends with finish reason
        `abort`.

        Args:
            request_id: vLLM's ids, or ids of calls as clients know them. Unknown ones are ignored.
        """
        request_ids = [request_id] if isinstance(request_id, str) else list(request_id)
        aborted = self.output_processor.abort_requests(request_ids, internal)
        if not internal:
            named = [rid for call_id in request_ids for rid in self.engine_core.request_ids_of(call_id)]
            aborted += self.output_processor.abort_requests(named, internal=True)
        self.engine_core.cancel(aborted)

    async def _add_request(self, request: EngineCoreRequest, *args: Any) -> None:
        try:
            await super()._add_request(request, *args)
        except BaseException:
            self.output_processor.abort_requests([request.request_id], internal=True)
            raise

    def _fail_request(self, request_id: str, why: pb.Refusal) -> None:
        """Raise in the generator that waits for the request; its sibling samples are cancelled."""
        state = self.output_processor.request_states.get(request_id)
        if state is None:
            return
        state.queue.put(CallRefused(why))
        root = state.parent_req.request_id if state.parent_req is not None else request_id
        self.engine_core.cancel(self.output_processor.abort_requests([root], internal=True))


@contextmanager
def _engine_core_is(engine_core: EngineCoreClient) -> Iterator[None]:
    """Let AsyncLLM's constructor find our client: it takes none as an argument and asks a module-level
    factory."""

    class Factory(EngineCoreClient):
        make_async_mp_client = staticmethod(lambda **_: engine_core)

    original = async_llm.EngineCoreClient
    async_llm.EngineCoreClient = Factory
    try:
        yield
    finally:
        async_llm.EngineCoreClient = original
