"""Unguessable ids that sort by the time they were made (UUIDv7, RFC 9562 section 5.7)."""

import secrets
import time
from uuid import UUID

_RANDOM_A_BITS = 12
_RANDOM_B_BITS = 62
_VERSION = 7
_VARIANT = 0b10


def uuid7(now_ms: int | None = None) -> UUID:
    """A UUID of version 7: 48 bits of milliseconds, 74 random bits.

    Args:
        now_ms: Unix time in milliseconds; None: now.
    """
    if now_ms is None:
        now_ms = time.time_ns() // 1_000_000
    value = (now_ms & ((1 << 48) - 1)) << 80
    value |= _VERSION << 76
    value |= secrets.randbits(_RANDOM_A_BITS) << 64
    value |= _VARIANT << _RANDOM_B_BITS
    return UUID(int=value | secrets.randbits(_RANDOM_B_BITS))


def new_id() -> str:
    """A fresh UUIDv7 as text; used for programs and calls."""
    return str(uuid7())
