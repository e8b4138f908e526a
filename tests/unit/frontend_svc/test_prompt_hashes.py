"""Prompts hashed in the frontend: the core's own digests, and others run meanwhile."""

import asyncio

import pytest

from frontend_svc.prompt_hashes import SLICE_BLOCKS, prompt_block_hashes
from svc_runtime.block_hashes import DIGEST_BYTES, hash_prompt


@pytest.mark.parametrize(
    "tokens", [0, 3, 4, 5, 4 * SLICE_BLOCKS, 4 * SLICE_BLOCKS + 3, 4 * (3 * SLICE_BLOCKS + 1)]
)
async def test_they_are_the_digests_of_the_whole_prompt(tokens: int) -> None:
    prompt = [7 * token % 1000 for token in range(tokens)]
    hashes = await prompt_block_hashes("tenant", "salt", prompt, 4)
    assert hashes == hash_prompt("tenant", "salt", prompt, 4)
    assert len(hashes) == DIGEST_BYTES * (tokens // 4)


async def test_without_a_block_size_there_are_none() -> None:
    assert await prompt_block_hashes("tenant", "", [1] * 100, 0) == b""


async def test_tenants_and_salts_share_no_digest() -> None:
    prompt = list(range(64))
    chains = [
        await prompt_block_hashes(tenant, salt, prompt, 4)
        for tenant, salt in [("a", ""), ("b", ""), ("a", "b"), ("ab", "")]
    ]
    digests = [chain[start : start + 16] for chain in chains for start in range(0, len(chain), 16)]
    assert len(set(digests)) == len(digests) == 4 * 16


async def test_others_run_once_a_slice_while_a_long_prompt_is_hashed() -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    running = asyncio.create_task(other())
    await asyncio.sleep(0)
    await prompt_block_hashes("t", "", range(16 * SLICE_BLOCKS * 5), 16)
    running.cancel()
    assert turns == 4


async def test_a_prompt_of_one_slice_is_hashed_at_once() -> None:
    """So that nothing can come between the arrival of a usual call and its submission."""
    hashing = prompt_block_hashes("t", "", range(16 * SLICE_BLOCKS), 16)
    with pytest.raises(StopIteration):
        hashing.send(None)
