"""The form of a script: blocks of commands and of what came of them.

    # A comment goes on to the end of its line. Lines of comment alone may stand anywhere.
    command argument name=value        # a block is one command or several
    command argument
    ----
    what came of them, a line each; the first empty line ends it

Nothing came of a block whose part behind the dashes is empty.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

DIVIDER = "----"

Play = Callable[["Command"], Iterable[str]]


@dataclass(frozen=True, slots=True)
class Command:
    """One line."""

    name: str
    arguments: tuple[str, ...]
    options: dict[str, str]
    line: int

    @classmethod
    def parse(cls, text: str, line: int) -> "Command":
        """Reads `name argument ... option=value ...`."""
        name, *words = text.partition("#")[0].split()
        plain = tuple(word for word in words if "=" not in word)
        options = dict(word.split("=", 1) for word in words if "=" in word)
        return cls(name, plain, options, line)


@dataclass(slots=True)
class Block:
    """Commands with the text around them."""

    head: list[str] = field(default_factory=list)
    """All lines up to the divider, as they stand in the file."""
    commands: list[Command] = field(default_factory=list)
    outcome: list[str] = field(default_factory=list)


def blocks_of(text: str) -> Iterator[Block]:
    """Splits a script.

    Raises: ValueError when commands have no divider behind them.
    """
    block, is_outcome = Block(), False
    for number, line in enumerate(text.splitlines(), 1):
        if is_outcome and line:
            block.outcome.append(line)
        elif is_outcome:
            yield block
            block, is_outcome = Block(), False
        elif line == DIVIDER:
            is_outcome = True
        else:
            block.head.append(line)
            if line.partition("#")[0].strip():
                block.commands.append(Command.parse(line, number))
    if block.commands and not is_outcome:
        raise ValueError(f"line {block.commands[-1].line}: no {DIVIDER} follows")
    if block.head or is_outcome:
        yield block


def replay(text: str, play: Play) -> str:
    """The script with what comes of its commands now."""
    parts: list[str] = []
    for block in blocks_of(text):
        parts += block.head
        if block.commands:
            outcome = [line for command in block.commands for line in play(command)]
            parts += [DIVIDER, *outcome, ""]
    return "\n".join(parts).rstrip("\n") + "\n"
