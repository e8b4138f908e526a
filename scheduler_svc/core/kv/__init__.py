"""KV blocks of one executor: what holds what, in two tiers."""

from scheduler_svc.core.kv.pool import NULL_BLOCK, BlockPool
from svc_runtime.block_hashes import extend_hashes, root_hash

__all__ = ["NULL_BLOCK", "BlockPool", "extend_hashes", "root_hash"]
