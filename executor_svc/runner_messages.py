"""What a session and its runner's process say to each other: a tag byte, then msgpack.

Both ends are the same version of this file on one machine, joined by a socket pair that nobody else can
reach. Columns may be sent as arrays; they arrive as lists.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import msgspec

from executor_svc.runner import AnnouncedCall, RunnerInfo, StepPlan, StepResult


class Command(IntEnum):
    """From the session, obeyed in order."""

    SETTINGS = 1
    """ExecutorSettings as a dict; the first message. Answered READY or STARTUP_FAILED."""
    ANNOUNCE = 2
    """AnnouncedCall. Not answered."""
    EXECUTE = 3
    """StepPlan. Answered RESULT, VIOLATION or FAILED, in order with RESET."""
    PREPARE = 4
    """A handle. Answered PREPARED, at any time."""
    RESET = 5
    """Answered DONE or FAILED, in order with EXECUTE."""
    CLOSE = 6
    """The last message. Not answered: the process ends."""


class Answer(IntEnum):
    """From the runner."""

    READY = 1
    """RunnerInfo."""
    STARTUP_FAILED = 2
    """StartupFailure; the process ends."""
    RESULT = 3
    """StepResult."""
    VIOLATION = 4
    """What the plan contradicts."""
    FAILED = 5
    """What the runner raised."""
    PREPARED = 6
    """Preparation."""
    DONE = 7
    """The runner is empty."""


@dataclass(frozen=True, slots=True)
class Preparation:
    """How preparing a call went; an empty error means ready."""

    handle: int
    error: str


@dataclass(frozen=True, slots=True)
class StartupFailure:
    """Why no runner could be made."""

    message: str
    exit_code: int


def _array_items(value: Any) -> Any:
    """What is sent of an `array.array` or a numpy array.

    Raises: NotImplementedError for anything else.
    """
    try:
        return value.tolist()
    except AttributeError:
        raise NotImplementedError(f"a {type(value).__name__} cannot be sent") from None


_encoder = msgspec.msgpack.Encoder(enc_hook=_array_items)
_commands: dict[int, msgspec.msgpack.Decoder[Any]] = {
    Command.SETTINGS: msgspec.msgpack.Decoder(dict[str, Any]),
    Command.ANNOUNCE: msgspec.msgpack.Decoder(AnnouncedCall),
    Command.EXECUTE: msgspec.msgpack.Decoder(StepPlan),
    Command.PREPARE: msgspec.msgpack.Decoder(int),
    Command.RESET: msgspec.msgpack.Decoder(None),
    Command.CLOSE: msgspec.msgpack.Decoder(None),
}
_answers: dict[int, msgspec.msgpack.Decoder[Any]] = {
    Answer.READY: msgspec.msgpack.Decoder(RunnerInfo),
    Answer.STARTUP_FAILED: msgspec.msgpack.Decoder(StartupFailure),
    Answer.RESULT: msgspec.msgpack.Decoder(StepResult),
    Answer.VIOLATION: msgspec.msgpack.Decoder(str),
    Answer.FAILED: msgspec.msgpack.Decoder(str),
    Answer.PREPARED: msgspec.msgpack.Decoder(Preparation),
    Answer.DONE: msgspec.msgpack.Decoder(None),
}


def encode(tag: Command | Answer, body: object = None) -> bytes:
    """One message.

    Raises: NotImplementedError when the body holds what cannot be sent.
    """
    return bytes((tag,)) + _encoder.encode(body)


def decode_command(message: bytes) -> tuple[Command, Any]:
    """Tag and body of what a session said.

    Raises: ValueError, msgspec.DecodeError when it is no command.
    """
    tag = Command(message[0])
    return tag, _commands[tag].decode(memoryview(message)[1:])


def decode_answer(message: bytes) -> tuple[Answer, Any]:
    """Tag and body of what a runner said.

    Raises: ValueError, msgspec.DecodeError when it is no answer.
    """
    tag = Answer(message[0])
    return tag, _answers[tag].decode(memoryview(message)[1:])
