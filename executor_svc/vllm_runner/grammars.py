"""Grammars of calls, kept where the tokens are sampled.

vLLM's own manager compiles them, fills the bitmasks and follows the tokens; this module decides when. A
grammar is compiled off the step thread (`prepare`), tokens generated elsewhere are replayed into it, and from
then on it advances by each token sampled here. The bitmask of a step is made from those states alone, so a
plan carries none.

A grammar that has ended (after EOS) constrains nothing and takes no more tokens: the row that a plan sent
ahead spends on an ended call passes through. Any error of one grammar fails its call only.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from threading import Lock

import structlog
from vllm.config import VllmConfig
from vllm.v1.core.sched.output import GrammarOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

from executor_svc.vllm_runner.calls import Call

log = structlog.get_logger(__name__)


class Grammars:
    """All grammars of a runner. `prepare` may run on any thread, the rest belongs to the steps."""

    def __init__(self, vllm_config: VllmConfig) -> None:
        self._manager = StructuredOutputManager(vllm_config)
        # `prepare` is called on a thread made for waiting: the manager's own thread pool would be a second
        # hop.
        self._manager._use_async_grammar_compilation = False
        self._first_compilation = Lock()

    def prepare(self, call: Call) -> str:
        """Compiles the call's grammar and brings it to the call's last token.

        Returns: empty string when the call can be planned, else why it cannot run.
        """
        request = call.grammar
        if request is None or call.grammar_ready:
            return ""
        try:
            error = self._compile(request) or self._replay(request, call.outputs)
        except Exception as unexpected:
            log.warning("grammar_preparation_failed", call=call.req_id, exc_info=True)
            error = f"grammar cannot be prepared: {unexpected}"
        call.grammar_ready = not error
        return error

    def bitmask(self, calls: Sequence[Call]) -> GrammarOutput | None:
        """Which tokens the next sampling may choose. Fails calls whose grammar cannot say.

        Args:
            calls: those that sample in this step and have a grammar, in any order.
        """
        try:
            return self._fill(calls)
        except Exception:
            log.warning("grammar_bitmasks_filled_singly", exc_info=True)
            return self._fill([call for call in calls if self._can_fill(call)])

    def advance(self, call: Call, token: int) -> None:
        """Follows a sampled token. Fails the call when its grammar forbids the token."""
        if call.grammar is None:
            return
        try:
            accepted = self._accept(call.grammar, token)
        except Exception as unexpected:
            log.warning("grammar_advance_failed", call=call.req_id, exc_info=True)
            call.failure = f"grammar failed at token {token}: {unexpected}"
            return
        if not accepted:
            call.failure = f"grammar does not allow the sampled token {token}"

    def close(self) -> None:
        """Ends the manager's threads and frees its compiler."""
        self._manager.clear_backend()

    def _compile(self, request: Request) -> str:
        with self._while_backend_is_made():
            self._manager.grammar_init(request)
        grammar = request.structured_output_request.grammar
        return f"grammar cannot be compiled: {grammar}" if isinstance(grammar, Exception) else ""

    def _while_backend_is_made(self) -> AbstractContextManager[object]:
        return self._first_compilation if self._manager.backend is None else nullcontext()

    def _replay(self, request: Request, tokens: Sequence[int]) -> str:
        # An empty draft makes the manager build the call's reasoning parser now rather than in a step.
        self._manager.validate_tokens(request, [])
        for token in tokens:
            if not self._accept(request, token):
                return f"grammar does not allow token {token}, which was generated before"
        return ""

    def _accept(self, request: Request, token: int) -> bool:
        request.append_output_token_ids(token)
        if request.structured_output_request.grammar.is_terminated():
            return True
        return self._manager.accept_tokens(request, [token])

    def _fill(self, calls: Sequence[Call]) -> GrammarOutput | None:
        if not calls:
            return None
        req_ids = [call.req_id for call in calls]
        bitmask = self._manager.grammar_bitmask({call.req_id: call.grammar for call in calls}, req_ids, {})
        return GrammarOutput(req_ids, bitmask)

    def _can_fill(self, call: Call) -> bool:
        try:
            self._fill([call])
        except Exception as unexpected:
            log.warning("grammar_bitmask_failed", call=call.req_id, exc_info=True)
            call.failure = f"grammar failed: {unexpected}"
            return False
        return True
