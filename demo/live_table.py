"""The process table on screen while a run goes on: a live table on a terminal, plain lines elsewhere."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

import httpx
from rich.console import Console
from rich.live import Live
from rich.table import Table

Row = dict[str, Any]
Fetch = Callable[[], Awaitable[list[Row]]]

REFRESH_S = 0.5
PLAIN_EVERY_S = 5.0
UNKNOWN = "-"


class ProgramDisplay:
    """Shows the programs whose session key starts with `prefix`.

    Use as an asynchronous context manager around the run.
    """

    def __init__(self, console: Console, title: str, prefix: str, fetch: Fetch) -> None:
        self._console = console
        self._title = title
        self._prefix = prefix
        self._fetch = fetch
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "ProgramDisplay":
        show = self._show_table if self._console.is_terminal else self._show_lines
        self._task = asyncio.create_task(show())
        return self

    async def __aexit__(self, *_exc: object) -> None:
        assert self._task is not None
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task

    async def _show_table(self) -> None:
        with Live(console=self._console, auto_refresh=False, vertical_overflow="visible") as live:
            rows: list[Row] = []
            try:
                while True:
                    rows = await self._rows() or rows
                    live.update(program_table(self._title, self._prefix, rows), refresh=True)
                    await asyncio.sleep(REFRESH_S)
            finally:
                live.update(program_table(self._title, self._prefix, rows), refresh=True)

    async def _show_lines(self) -> None:
        elapsed_s = 0.0
        while True:
            await asyncio.sleep(PLAIN_EVERY_S)
            elapsed_s += PLAIN_EVERY_S
            for line in plain_lines(elapsed_s, self._prefix, await self._rows()):
                self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    async def _rows(self) -> list[Row]:
        try:
            rows = await self._fetch()
        except httpx.HTTPError:
            return []  # the run itself reports what is wrong with the server
        return [row for row in rows if str(row.get("session", "")).startswith(self._prefix)]


def program_table(title: str, prefix: str, rows: Sequence[Row]) -> Table:
    """One row a program, in order of arrival."""
    table = Table(title=title, title_justify="left", min_width=88)
    for name in ("program", "class", "state"):
        table.add_column(name)
    for name in ("calls", "live", "tokens", "service s", "waiting s", "level"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*_cells(prefix, row), style="dim" if row.get("state") == "ended" else "")
    return table


def plain_lines(elapsed_s: float, prefix: str, rows: Sequence[Row]) -> list[str]:
    """What the table says, for logs: one line a program that has live calls, and one for the rest."""
    live = [row for row in rows if row.get("live_calls")]
    lines = [f"{elapsed_s:4.0f} s  {len(rows)} programs seen, {len(live)} with live calls"]
    for row in live:
        name, class_name, state, calls, live_calls, tokens, service_s, waiting_s, level = _cells(prefix, row)
        lines.append(
            f"        {name} ({class_name}, {state}): {calls} calls done, {live_calls} live, {tokens} tokens,"
            f" service {service_s} s, waited {waiting_s} s, level {level}"
        )
    return lines


def _cells(prefix: str, row: Row) -> tuple[str, ...]:
    def number(key: str, form: str) -> str:
        value = row.get(key)
        return UNKNOWN if value is None else format(value, form)

    return (
        str(row.get("session", UNKNOWN)).removeprefix(prefix),
        str(row.get("class", UNKNOWN)),
        str(row.get("state", UNKNOWN)),
        number("finished_calls", "d"),
        number("live_calls", "d"),
        number("tokens", "d"),
        number("attained_service_s", ".1f"),
        number("waiting_s", ".1f"),
        number("level", "d"),
    )
