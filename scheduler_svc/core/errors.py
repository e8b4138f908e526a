"""Errors of the core.

    CoreError
    ├── Refused            refused at the door: the caller broke a limit or named something that is not there
    └── ProtocolBroken     a peer sent what it must not send: its stream is closed, nothing else is harmed

Calls that are lost later are not exceptions: they end with a `FinishCall` effect that carries a `Refusal`.
`docs/errors.md` lists every reason with its gRPC status and HTTP code.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A typed error, fit for clients: names the field, the limit and the value where there are any."""

    reason: str
    """UPPER_SNAKE_CASE, stable: clients may switch on it."""
    message: str
    """What is wrong and what to do."""
    field: str = ""
    limit: str = ""
    value: str = ""
    retry_after_s: float | None = None


class CoreError(Exception):
    """Base of all errors that the core raises on purpose."""


class Refused(CoreError):
    """Refused at the door; nothing was changed."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


class ProtocolBroken(CoreError):
    """A peer's message contradicts what the core knows; raised before anything was changed."""
