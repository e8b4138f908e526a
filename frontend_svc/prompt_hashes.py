"""Hashes a prompt's KV blocks here, so that the one scheduler process need not.

Theory of operation. The digests are those of `svc_runtime.block_hashes`: chained over the tokens, begun by
the tenant and the salt, so that prefixes are never found across either. The block size is the one that the
scheduler announces for the model; for an executor with another one the scheduler hashes itself.

A block takes about 0.8 us, all of it with the GIL held (`hashlib` lets go of it from 2 KiB on only). A thread
would therefore delay tokens that stream meanwhile by whole switch intervals: 13 to 17 ms were measured beside
a prompt of 500,000 tokens. So a long prompt is hashed on the event loop in slices of a fifth of a
millisecond, and everything else runs between them: half a millisecond was the usual longest delay.
"""

import asyncio
from collections.abc import Sequence

from svc_runtime.block_hashes import extend_hashes, root_hash

SLICE_BLOCKS = 256
"""Blocks hashed in one go."""


async def prompt_block_hashes(
    tenant: str, cache_salt: str, token_ids: Sequence[int], block_size: int
) -> bytes:
    """The packed digests of a prompt's full blocks; others run while a long one is hashed.

    Args:
        block_size: Tokens in a block; 0: not known.

    Returns: 16 bytes a block; empty when the block size is not known.
    """
    if block_size == 0:
        return b""
    hashes: list[bytes] = []
    root, blocks = root_hash(tenant, cache_salt), len(token_ids) // block_size
    while True:
        extend_hashes(hashes, root, token_ids, min(blocks, len(hashes) + SLICE_BLOCKS), block_size)
        if len(hashes) == blocks:
            return b"".join(hashes)
        await asyncio.sleep(0)
