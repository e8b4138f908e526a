"""Runs a workload against a stack and measures every program.

Response time of a program = seconds from its arrival to its end, less the pauses that it made itself (a
person reading). Both sides of the comparison are measured by the client, not by the server.
"""

import asyncio
import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx
import openai
from openai import AsyncOpenAI

from demo.programs import Agent
from demo.stack import Stack
from demo.workload import Arrival

CALL_S_MAX = 150.0
WATCH_EVERY_S = 1.0
WARM_UP_CALLS = 4

T = TypeVar("T")


class ProgramFailed(Exception):
    """A call of a program failed; the message names both."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one program."""

    name: str
    class_name: str
    response_s: float
    calls: int
    tokens: int


class Experiment:
    """Clients of one stack."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._model = stack.options.model.name
        self._openai = AsyncOpenAI(
            base_url=f"{stack.url}/v1",
            api_key="none",  # the demo's frontend has no keys: it listens on the loopback interface only
            max_retries=0,
            timeout=CALL_S_MAX,
            http_client=openai.DefaultAsyncHttpxClient(trust_env=False),
        )
        self._http = httpx.AsyncClient(base_url=stack.url, trust_env=False, timeout=5.0)

    async def __aenter__(self) -> "Experiment":
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self._openai.close()
        await self._http.aclose()

    async def programs(self) -> list[dict[str, Any]]:
        """The server's process table: `GET /v1/programs`. Raises: httpx.HTTPError."""
        answer = await self._http.get("/v1/programs")
        return list(answer.raise_for_status().json()["programs"])

    async def warm_up(self) -> None:
        """A few untimed calls, so that no side pays for first-time work."""
        agents = [self._agent(f"warm-up-{number}", "warm-up", number) for number in range(WARM_UP_CALLS)]
        question = [{"role": "user", "content": "Say hello."}]
        await asyncio.gather(*(agent.ask(question, max_tokens=8) for agent in agents))
        await asyncio.gather(*(self._end(agent) for agent in agents))

    async def run(self, arrivals: Sequence[Arrival], *, prefix: str) -> list[Outcome]:
        """Plays the arrivals and waits for the last program, watching over the services meanwhile.

        Args:
            prefix: put before the programs' names to make session keys that are new to the server.

        Raises:
            ProgramFailed, StackFailed
        """
        start_s = time.monotonic()
        plays = (self._play(arrival, start_s, prefix, seed) for seed, arrival in enumerate(arrivals))
        return await self._watched(asyncio.gather(*plays))

    async def _play(self, arrival: Arrival, start_s: float, prefix: str, seed: int) -> Outcome:
        await asyncio.sleep(start_s + arrival.at_s - time.monotonic())
        agent = self._agent(prefix + arrival.name, arrival.class_name, seed * 1000)
        try:
            await arrival.program(agent)
            response_s = time.monotonic() - agent.arrived_s - agent.paused_s
            await self._end(agent)
        except (openai.OpenAIError, httpx.HTTPError) as error:
            raise ProgramFailed(f"{arrival.name}, call {agent.calls}: {error}") from error
        return Outcome(
            name=arrival.name,
            class_name=arrival.class_name,
            response_s=response_s,
            calls=agent.calls,
            tokens=agent.tokens,
        )

    def _agent(self, name: str, class_name: str, seed: int) -> Agent:
        return Agent(name=name, class_name=class_name, client=self._openai, model=self._model, seed=seed)

    async def _end(self, agent: Agent) -> None:
        """Tells the server that a program is over; without it, it would idle out."""
        answer = await self._http.delete(f"/v1/programs/{agent.program_id}")
        answer.raise_for_status()

    async def _watched(self, work: Awaitable[T]) -> T:
        """Awaits `work`, and fails at once when a service ends."""
        watching = asyncio.create_task(self._watch())
        working = asyncio.ensure_future(work)
        try:
            await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
            if watching.done():
                watching.result()
            return await working
        finally:
            for task in (working, watching):
                task.cancel()
            await asyncio.gather(working, watching, return_exceptions=True)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(WATCH_EVERY_S)
            await asyncio.to_thread(self._stack.require_alive)
