"""Logs: one line an event, the event constant, everything else as keys.

`log.info("call_dispatched", program_id=..., level=...)`. A terminal gets coloured lines, anything else JSON.
The standard library's loggers (grpc, asyncio, uvicorn, vllm) go through the same renderer. Values of keys
that hold secrets, and bearer tokens inside any string, never reach the output.

Our own lines do not go through the standard library: a record, and a second one for its formatter, would be
made of each, which takes more than twice the time. The scheduler writes a line for every call that ends.
"""

import logging
import re
import sys
from collections.abc import MutableMapping
from contextlib import suppress
from functools import lru_cache
from typing import Any, Literal, TextIO

import structlog
from structlog.tracebacks import ExceptionDictTransformer
from structlog.typing import EventDict, Processor

LogFormat = Literal["auto", "console", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

REDACTED = "[redacted]"
_TRACEBACK = ExceptionDictTransformer(show_locals=False)  # locals hold prompts and keys
_SECRET_KEY = re.compile(
    r"(^|[_-])(api[_-]?keys?|peer[_-]token|access[_-]token|authorization|passwords?|secrets?|credentials?|cookie)$|^token$",
    re.IGNORECASE,
)
_HARMLESS = frozenset({int, float, bool, type(None)})
"""Types of values that hold no text."""
_SECRET_TEXT = re.compile(r"(?i)(bearer\s+|x-api-key[:=]\s*|autellix-peer-token[:=]\s*)[^\s\"',]+")


def configure_logging(service: str, *, level: LogLevel = "info", format: LogFormat = "auto") -> None:
    """Routes structlog and the standard library's loggers to stderr; may be called again.

    Args:
        service: bound to every line as `service`.
        format: "auto" means console when stderr is a terminal, else JSON.
    """
    console = format == "console" or (format == "auto" and sys.stderr.isatty())
    shared, renderers = _shared_processors(service), _renderers(console)
    structlog.configure(
        processors=[*shared, *renderers],
        logger_factory=_Writers(sys.stderr),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.PositionalArgumentsFormatter(), *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())


class _Writer:
    """Writes the lines of one of our loggers."""

    def __init__(self, name: str, file: TextIO) -> None:
        self.name = name
        self._lines = structlog.WriteLogger(file)

    def write(self, line: str) -> None:
        """Writes a line, or drops it, as `logging` does, when it cannot be written: a full disk or a log
        collector that has gone must not end the service, and there is nowhere left to say so."""
        with suppress(OSError, ValueError):  # ValueError: closed
            self._lines.msg(line)

    debug = info = warning = error = critical = write


class _Writers:
    """Makes one writer a name."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._by_name: dict[str, _Writer] = {}

    def __call__(self, name: str = "") -> _Writer:
        writer = self._by_name.get(name)
        if writer is None:
            writer = self._by_name[name] = _Writer(name, self._file)
        return writer


def _shared_processors(service: str) -> list[Processor]:
    return [
        structlog.contextvars.merge_contextvars,
        _free_level,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        _naming(service),
    ]


def _renderers(console: bool) -> list[Processor]:
    if console:
        return [redact_secrets, _console_renderer()]
    return [
        structlog.processors.ExceptionRenderer(_TRACEBACK),
        redact_secrets,
        structlog.processors.JSONRenderer(default=str),
    ]


def _console_renderer() -> Processor:
    return structlog.dev.ConsoleRenderer(
        colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
    )


def _naming(service: str) -> Processor:
    def add_service(_logger: Any, _method: str, event: EventDict) -> EventDict:
        event.setdefault("service", service)
        return event

    return add_service


def _free_level(_logger: Any, _method: str, event: EventDict) -> EventDict:
    """A queue level is logged as `queue_level`: `level` is the severity of the line."""
    if "level" in event:
        event["queue_level"] = event.pop("level")
    return event


def redact_secrets(_logger: Any, _method: str, event: EventDict) -> EventDict:
    """Replaces secrets in an event, in nested mappings and lists too; a structlog processor."""
    return {key: _redacted(key, value) for key, value in event.items()}


@lru_cache(1024)
def _is_secret(key: str) -> bool:
    return _SECRET_KEY.search(key) is not None


def _redacted(key: object, value: Any) -> Any:
    if isinstance(key, str) and _is_secret(key):
        return REDACTED
    if type(value) in _HARMLESS:
        return value
    if isinstance(value, str):
        return _SECRET_TEXT.sub(lambda found: found.group(1) + REDACTED, value)
    if isinstance(value, MutableMapping):
        return {k: _redacted(k, v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_redacted("", item) for item in value]
    return value
