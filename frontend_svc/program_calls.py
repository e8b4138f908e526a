"""Values and ports of the program API: what a caller asks for, what comes back, and what the API stands on.

Theory of operation. `ProgramService` (program_service.py) speaks only these types. The doors (gRPC, HTTP)
turn their messages into them, two ports turn them into work: `ProgramLink` is the scheduler, `Generator` is
vLLM's AsyncLLM in this process. Tests put fakes there, so nothing here imports vLLM or torch. Whatever is
refused or lost is a `frontend_svc.errors.Refused`.
"""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

from frontend_svc.call_context import CallContext
from protos.autellix.scheduler.v1 import scheduler_pb2 as scheduler_pb


@dataclass(frozen=True, slots=True)
class TextPrompt:
    """Text, tokenised as it is."""

    text: str


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """Messages for the model's chat template, oldest first: (role, content)."""

    messages: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class TokenPrompt:
    """Token ids of the model's vocabulary."""

    token_ids: tuple[int, ...]


Prompt = TextPrompt | ChatPrompt | TokenPrompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Sampling of one call. None: the model's default. Ranges: `program_limits.SAMPLING_RANGES`."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logprobs: int | None = None
    """Alternatives to report a token; None: no logprobs."""
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    json_schema: str = ""
    """JSON text; empty: unconstrained output."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRequest:
    """One LLM call as asked for."""

    prompt: Prompt
    sampling: Sampling = Sampling()
    program_id: str = ""
    """Empty: a program of this one call."""
    thread_id: str = ""
    parent_call_ids: tuple[str, ...] = ()
    model: str = ""
    """Empty: the served one."""
    deadline_s: float | None = None
    """Seconds from now after which the caller has gone; None: no deadline."""


class Finish(Enum):
    """Why a generation ended."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class TokenChance:
    """A token and the natural logarithm of its probability."""

    token_id: int
    text: str
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """The token that was taken and the likeliest ones in its place, best first."""

    taken: TokenChance
    top: tuple[TokenChance, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of a call."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    """Prompt tokens served from the prefix cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What was generated since the piece before.

    The first names the call, the last has `finish` and `usage`.
    """

    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    """One a token of `token_ids`, or empty when none were asked for."""
    call_id: str = ""
    program_id: str = ""
    finish: Finish | None = None
    usage: Usage | None = None


class ProgramLink(Protocol):
    """The scheduler as the program API needs it (`program_client.ProgramClient`); every method raises only
    `Refused`."""

    async def open_program(
        self, *, tenant: str, program_id: str, session_key: str, class_name: str, single_call: bool
    ) -> tuple[scheduler_pb.ProgramRecord, bool]: ...

    async def end_program(self, *, tenant: str, program_id: str) -> scheduler_pb.ProgramRecord: ...

    async def cancel_program(self, *, tenant: str, program_id: str) -> scheduler_pb.ProgramRecord: ...

    async def get_program(self, *, tenant: str, program_id: str) -> scheduler_pb.ProgramRecord: ...

    async def list_programs(self, *, tenant: str) -> Sequence[scheduler_pb.ProgramRecord]: ...

    def watch_programs(
        self, *, tenant: str, interval_s: float
    ) -> AsyncGenerator[Sequence[scheduler_pb.ProgramRecord], None]: ...


class Generator(Protocol):
    """The model behind the API: renders prompts and runs calls."""

    async def prepare(self, request: CallRequest) -> Any:
        """Renders and checks everything that can be checked before a program is touched.

        Returns:
            What `generate` takes; opaque.

        Raises:
            Refused: the request cannot be served.
        """

    def generate(self, prepared: Any, context: CallContext) -> AsyncGenerator[Piece, None]:
        """Runs the call; closing the iterator cancels it. Raises `Refused` when the call fails."""

    async def cancel(self, call_id: str) -> None:
        """Ends a live call; its iterator then ends with `Finish.CANCELLED`."""
