"""Closed-loop streaming load on any OpenAI completions endpoint; the server's usage confirms token counts."""

import asyncio
import json
import random
import time
from dataclasses import dataclass

import aiohttp


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """`streams` concurrent clients, each sending `calls_per_stream` calls one after the other."""

    streams: int
    calls_per_stream: int
    prompt_tokens: int = 128
    output_tokens: int = 64
    seed: int = 0
    first_token: int = 300
    """Prompts are random token ids in [first_token, vocab)."""
    vocab: int = 2048

    @property
    def tokens(self) -> int:
        """Tokens generated in all."""
        return self.streams * self.calls_per_stream * self.output_tokens

    def prompt(self, stream: int, call: int) -> list[int]:
        """The prompt of one call: the same for the same seed."""
        rng = random.Random(f"{self.seed}/{stream}/{call}")
        return [rng.randrange(self.first_token, self.vocab) for _ in range(self.prompt_tokens)]


async def run(base_url: str, model: str, load: Load) -> float:
    """Runs the load; returns its wall-clock seconds.

    Raises: RuntimeError when a call fails or does not generate exactly `output_tokens` tokens.
    """
    timeout = aiohttp.ClientTimeout(total=600)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        started_s = time.perf_counter()
        await asyncio.gather(*(_stream(session, base_url, model, load, i) for i in range(load.streams)))
        return time.perf_counter() - started_s


async def _stream(session: aiohttp.ClientSession, base_url: str, model: str, load: Load, stream: int) -> None:
    for call in range(load.calls_per_stream):
        body = {
            "model": model,
            "prompt": load.prompt(stream, call),
            "max_tokens": load.output_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        async with session.post(f"{base_url}/completions", json=body) as response:
            if response.status != 200:
                raise RuntimeError(f"HTTP {response.status}: {await response.text()}")
            generated = await _read_usage(response)
        if generated != load.output_tokens:
            raise RuntimeError(
                f"stream {stream} call {call}: {generated} tokens instead of {load.output_tokens}"
            )


async def _read_usage(response: aiohttp.ClientResponse) -> int:
    """Reads the events to their end; returns completion_tokens of the last one that has usage."""
    last = b""
    async for line in response.content:
        if b'"usage":{' in line:
            last = line
    if not last:
        raise RuntimeError("the stream ended without usage")
    return int(json.loads(last.removeprefix(b"data: "))["usage"]["completion_tokens"])
