"""The trace: a line for each event and each effect, the same bytes for the same seed.

    12.250000 > StepCompleted executor_id=executor-1 step=7 handles=[1,2] tokens=[40,12] step_s=0.25 ...
    12.250000 < EmitTokens frontend_id=frontend-1 handles=[3,4] tokens=[40,12] payloads={}

`>` goes into the core, `<` comes out of it. Nothing in it depends on hashes of strings, ids of objects or the
wall clock: sets are sorted, numbers are plain, long token lists are shown by length and checksum.
"""

from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from numbers import Integral
from typing import Any, TextIO
from zlib import crc32

_LONG = 24
"""Sequences of integers longer than this are abbreviated."""


class Trace:
    """Writes lines to a file.

    Args:
        file: Open for writing text.
    """

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def note(self, text: str) -> None:
        """A line of its own, such as the beginning of an episode."""
        self._file.write(f"# {text}\n")

    def event(self, now: float, event: Any) -> None:
        """What goes into the core."""
        self._file.write(f"{now:.6f} > {line_of(event)}\n")

    def effects(self, now: float, effects: Iterable[Any]) -> None:
        """What comes out of it."""
        for effect in effects:
            self._file.write(f"{now:.6f} < {line_of(effect)}\n")


def line_of(record: Any) -> str:
    """Name and fields of an event or effect."""
    return f"{type(record).__name__} {_fields_of(record)}".rstrip()


def _fields_of(record: Any) -> str:
    names = getattr(record, "_fields", None) or [field.name for field in fields(record)]
    return " ".join(f"{name}={_text(getattr(record, name))}" for name in names)


def _text(value: Any) -> str:
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, str | float | bool | bytes) or value is None:
        return repr(value)
    if isinstance(value, Integral):
        return str(int(value))
    if is_dataclass(value) and not isinstance(value, type):
        return f"{type(value).__name__}({_fields_of(value)})"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{_text(key)}:{_text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, set | frozenset):
        return "[" + ",".join(_text(item) for item in sorted(value)) + "]"
    return _sequence(list(value))


def _sequence(items: list[Any]) -> str:
    if len(items) > _LONG and all(isinstance(item, Integral) for item in items):
        checksum = crc32(",".join(str(int(item)) for item in items).encode())
        return f"[{len(items)}:{checksum:08x}]"
    return "[" + ",".join(_text(item) for item in items) + "]"
