"""Prompts that were hashed in the frontend: through door and core to an executor that notices mistakes."""

from collections.abc import AsyncIterator

import pytest

from svc_runtime.block_hashes import DIGEST_BYTES, hash_prompt
from tests.unit.scheduler_shell.conftest import Dial, Start
from tests.unit.scheduler_shell.fake_executor import FakeExecutor, continuation
from tests.unit.scheduler_shell.fake_frontend import FakeFrontend

BLOCK_SIZE = 4
"""The fake executor's."""
PROMPT = list(range(1, 11))
CACHED = 8
"""Tokens in the prompt's full blocks."""


@pytest.fixture
async def frontend(start: Start, dial: Dial) -> AsyncIterator[FakeFrontend]:
    """A frontend with a program of each of two tenants, and an executor."""
    server = await start()
    async with FakeExecutor(dial(server)), FakeFrontend(dial(server)) as frontend:
        await frontend.open_program("of-a", tenant="a")
        await frontend.open_program("of-b", tenant="b")
        yield frontend


async def run(frontend: FakeFrontend, handle: int, tenant: str, hashes: bytes, size: int = BLOCK_SIZE) -> int:
    """Runs a call of the prompt; returns how many of its tokens were found in the cache."""
    await frontend.submit(
        handle,
        PROMPT,
        tenant=tenant,
        program_id=f"of-{tenant}",
        prompt_block_hashes=hashes,
        hash_block_size=size,
    )
    await frontend.finish(handle)
    assert frontend.tokens[handle] == continuation(PROMPT, 8)
    return frontend.started[-1].cached_tokens


def hashes_of(tenant: str, size: int = BLOCK_SIZE) -> bytes:
    return hash_prompt(tenant, "", PROMPT, size)


async def test_they_find_what_was_computed_with_and_without_them(frontend: FakeFrontend) -> None:
    assert await run(frontend, 1, "a", hashes_of("a")) == 0
    assert await run(frontend, 2, "a", hashes_of("a")) == CACHED
    assert await run(frontend, 3, "a", b"", 0) == CACHED, "the scheduler's own hashes are the same"


async def test_what_the_scheduler_hashed_is_found_by_them(frontend: FakeFrontend) -> None:
    assert await run(frontend, 1, "a", b"", 0) == 0
    assert await run(frontend, 2, "a", hashes_of("a")) == CACHED


async def test_they_are_really_used(frontend: FakeFrontend) -> None:
    """The second block has another name here, so it is not found: nobody hashed the prompt again."""
    assert await run(frontend, 1, "a", hashes_of("a")) == 0
    renamed = hashes_of("a")[:DIGEST_BYTES] + bytes(DIGEST_BYTES)
    assert await run(frontend, 2, "a", renamed) == CACHED - BLOCK_SIZE


async def test_tenants_find_nothing_of_each_other(frontend: FakeFrontend) -> None:
    assert await run(frontend, 1, "a", hashes_of("a")) == 0
    assert await run(frontend, 2, "b", hashes_of("b")) == 0
    assert await run(frontend, 3, "b", hashes_of("b")) == CACHED


async def test_those_of_another_tenant_are_refused(frontend: FakeFrontend) -> None:
    assert await run(frontend, 1, "a", hashes_of("a")) == 0
    await frontend.submit(
        2,
        PROMPT,
        tenant="b",
        program_id="of-b",
        prompt_block_hashes=hashes_of("a"),
        hash_block_size=BLOCK_SIZE,
    )
    assert await run(frontend, 3, "b", hashes_of("b")) == 0
    assert frontend.refused[2].field == "prompt_block_hashes"


async def test_those_for_blocks_of_another_size_are_ignored(frontend: FakeFrontend) -> None:
    assert await run(frontend, 1, "a", hashes_of("a")) == 0
    assert await run(frontend, 2, "a", hashes_of("a", 2), 2) == CACHED
