"""Names of KV blocks by content: chained hashes of a prompt's full blocks.

Theory of operation: the KV of a block depends on its tokens and on everything before them, and may be shared
only within a tenant and its salt. So the hash of a block covers its tokens and the hash of the block before
it; the chain of a prompt starts at a root that covers tenant and salt. Two blocks of equal hash hold equal
KV, wherever they lie. A frontend hashes a prompt once and sends the digests along; the scheduler continues
the chain over the tokens that are generated. Both use this module, so their digests are the same.

Pure: nothing but `array` and `hashlib`; the scheduler's core imports it.

    root = H(len(tenant):tenant salt)   digest[i] = H(digest[i - 1] | tokens of block i, int32 little-endian)
"""

import sys
from array import array
from collections.abc import Sequence
from hashlib import blake2b

DIGEST_BYTES = 16
_TOKEN = "i"
_SWAP = sys.byteorder == "big"

_BLANK = blake2b(digest_size=DIGEST_BYTES)
"""Copied for each block: a third cheaper than a new one."""

assert array(_TOKEN).itemsize == 4, "this platform's C int is not 32 bits wide"


def root_hash(tenant: str, cache_salt: str) -> bytes:
    """Start of the chain of a prompt: prefixes are never shared between tenants or salts."""
    return blake2b(f"{len(tenant)}:{tenant}{cache_salt}".encode(), digest_size=DIGEST_BYTES).digest()


def extend_hashes(
    hashes: list[bytes], root: bytes, tokens: Sequence[int], blocks: int, block_size: int
) -> None:
    """Extends `hashes` in place to the first `blocks` full blocks of `tokens`; each block is hashed once.

    Args:
        hashes: Digests of the first full blocks, as far as they are known.
        tokens: At least `blocks * block_size`, each within int32.

    Raises: OverflowError when a token does not fit into 32 bits; nothing is changed then.
    """
    first = len(hashes)
    if first >= blocks:
        return
    parent = hashes[-1] if hashes else root
    content = _packed(tokens[first * block_size : blocks * block_size])
    block_bytes = len(content) // (blocks - first)
    for start in range(0, len(content), block_bytes):
        block = _BLANK.copy()
        block.update(parent + content[start : start + block_bytes])
        parent = block.digest()
        hashes.append(parent)


def hash_prompt(tenant: str, cache_salt: str, tokens: Sequence[int], block_size: int) -> bytes:
    """The digests of all full blocks of a prompt, packed.

    Returns: `len(tokens) // block_size` digests of 16 bytes, one after the other.

    Raises: OverflowError when a token does not fit into 32 bits.
    """
    hashes: list[bytes] = []
    extend_hashes(hashes, root_hash(tenant, cache_salt), tokens, len(tokens) // block_size, block_size)
    return b"".join(hashes)


def unpack_digests(packed: bytes) -> list[bytes]:
    """Reads packed digests back.

    Raises: ValueError when the length is not a multiple of 16 bytes.
    """
    if len(packed) % DIGEST_BYTES:
        raise ValueError(f"packed digests have a multiple of {DIGEST_BYTES} bytes, these {len(packed)}")
    return [packed[start : start + DIGEST_BYTES] for start in range(0, len(packed), DIGEST_BYTES)]


def _packed(tokens: Sequence[int]) -> bytes:
    """Tokens as little-endian int32."""
    content = array(_TOKEN, tokens)
    if _SWAP:
        content.byteswap()
    return content.tobytes()
