"""KV blocks of one executor: what holds what, in two tiers (`KvCache`)."""

from scheduler_svc.core.kv.cache import KvCache
from scheduler_svc.core.kv.runs import NOTHING_FOUND, Found, Key, ProgramKey, private_key
from svc_runtime.block_hashes import extend_hashes, root_hash

__all__ = [
    "NOTHING_FOUND",
    "Found",
    "Key",
    "KvCache",
    "ProgramKey",
    "extend_hashes",
    "private_key",
    "root_hash",
]
