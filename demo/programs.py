"""The agent programs of the demo, written as a client would write them: with the `openai` SDK.

A program names itself in one header, `X-Session-ID`; everything else is ordinary. Two kinds:

- `chat`: a person asks, reads the answer, asks again. Short calls, pauses in between.
- `tree_search`: a tree-of-thoughts search. Each round expands every kept node into several thoughts and rates
  them, all at once: many parallel calls that flood the engine.

Every call generates exactly `max_tokens` tokens (`ignore_eos`), so that the work does not depend on what the
model says; both policies then have the same number of tokens to generate.
"""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from openai import AsyncOpenAI

PROGRAM_ID_HEADER = "X-Autellix-Program-Id"

Message = dict[str, str]


@dataclass(slots=True, kw_only=True)
class Agent:
    """One program on its way: what it may use, and what was measured about it."""

    name: str
    """Session key, unique in the stack."""
    class_name: str
    client: AsyncOpenAI
    model: str
    seed: int
    program_id: str = ""
    """As echoed by the server, "" before the first answer."""
    calls: int = 0
    tokens: int = 0
    paused_s: float = 0.0
    """Seconds that the program itself waited, e.g. for its person."""
    arrived_s: float = field(default_factory=time.monotonic)

    async def ask(
        self, messages: Sequence[Message], *, max_tokens: int, thread: str = "", temperature: float = 0.7
    ) -> str:
        """One call of the program; returns the text. Raises: openai.OpenAIError."""
        self.calls += 1
        headers = {"X-Session-ID": self.name, "X-Autellix-Program-Class": self.class_name}
        if thread:
            headers["X-Autellix-Thread-Id"] = thread
        raw = await self.client.chat.completions.with_raw_response.create(
            model=self.model,
            messages=list(messages),  # type: ignore[arg-type]  # plain dicts are what the SDK documents
            max_tokens=max_tokens,
            temperature=temperature,
            seed=self.seed + self.calls,
            extra_headers=headers,
            extra_body={"ignore_eos": True},
        )
        self.program_id = raw.headers.get(PROGRAM_ID_HEADER, "")
        return self._count(raw.parse())

    def _count(self, answer: Any) -> str:
        self.tokens += answer.usage.completion_tokens
        return answer.choices[0].message.content or ""

    async def pause(self, pause_s: float) -> None:
        """Lets the program itself wait, off the clock."""
        self.paused_s += pause_s
        await asyncio.sleep(pause_s)


Program = Callable[[Agent], Awaitable[None]]


# ── chat ────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class Chat:
    """A conversation of fixed questions."""

    questions: tuple[str, ...]
    pauses_s: tuple[float, ...]
    """Before the second question, the third, ..."""
    answer_tokens: int = 32

    async def __call__(self, agent: Agent) -> None:
        """Runs the conversation to its end."""
        messages: list[Message] = [{"role": "system", "content": "Answer in one or two short sentences."}]
        for question, pause_s in zip(self.questions, (0.0, *self.pauses_s), strict=True):
            await agent.pause(pause_s)
            messages.append({"role": "user", "content": question})
            answer = await agent.ask(messages, max_tokens=self.answer_tokens)
            messages.append({"role": "assistant", "content": answer})


# ── tree search ─────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Node:
    """A line of thoughts in the search tree."""

    name: str
    thoughts: tuple[str, ...] = ()
    score: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeSearch:
    """Tree of thoughts: expand, rate, keep the best, deeper; at the end the answer."""

    task: str
    depth: int = 3
    """Rounds."""
    width: int = 6
    """Thoughts tried below each kept node."""
    keep: int = 4
    """Nodes kept after each round; the root counts as that many, so that all rounds are equally wide."""
    thought_tokens: int = 40
    rating_tokens: int = 4
    answer_tokens: int = 64

    async def __call__(self, agent: Agent) -> None:
        """Runs the search to its end."""
        kept, ideas = [Node("root")], self.keep * self.width
        for _ in range(self.depth):
            branches = [(node, number) for node in kept for number in range(1, ideas // len(kept) + 1)]
            grown = await asyncio.gather(*(self._grow(agent, node, number) for node, number in branches))
            kept = sorted(grown, key=lambda node: (-node.score, node.name))[: self.keep]
        await agent.ask(self._prompt(kept[0], "Write the final plan."), max_tokens=self.answer_tokens)

    async def _grow(self, agent: Agent, node: Node, number: int) -> Node:
        """A new thought below `node`, rated."""
        name = f"{node.name}.{number}"
        wanted = f"Propose the next step, idea number {number}, in one sentence."
        thought = await agent.ask(self._prompt(node, wanted), max_tokens=self.thought_tokens, thread=name)
        child = Node(name, (*node.thoughts, thought.strip()))
        rating = await agent.ask(
            self._prompt(child, "Rate these steps from 1 to 10. Answer with the number only."),
            max_tokens=self.rating_tokens,
            thread=name,
        )
        return Node(name, child.thoughts, parse_rating(rating))

    def _prompt(self, node: Node, wanted: str) -> list[Message]:
        steps = "".join(f"\nStep {i}: {thought}" for i, thought in enumerate(node.thoughts, start=1))
        return [
            {"role": "system", "content": "You plan step by step. Be brief."},
            {"role": "user", "content": f"Task: {self.task}{steps}\n{wanted}"},
        ]

    @property
    def calls(self) -> int:
        """Calls of one search."""
        return 2 * self._grown + 1

    @property
    def tokens(self) -> int:
        """Tokens that one search generates."""
        return self._grown * (self.thought_tokens + self.rating_tokens) + self.answer_tokens

    @property
    def _grown(self) -> int:
        return self.depth * self.keep * self.width


def parse_rating(text: str) -> int:
    """The first whole number of a rating, limited to 1..10; 5 when the model gave none."""
    found = re.search(r"\d+", text)
    return min(10, max(1, int(found[0][:3]))) if found else 5
