"""What becomes of a call's KV when it leaves the batch, and how it gets it back.

A call in the batch holds its block table. When it leaves, it gives every block back to its executor's cache,
each under a key that names what is in it:

    ┌──────── full, result came ────────┬── last one to three blocks ──┐
    │ chained hash of all tokens so far │ a key of this call alone     │
    └──── anyone may find them ─────────┴── not full, or not certain ──┘

Nothing is copied and nothing is lost by that: a preempted call is merely *paused*. Only when others need the
memory does the cache move its blocks to the host, or drop them. When the call comes back it looks its keys up
like any prefix: what is on the device is taken over, what is on the host is brought in, and if all keys are
found it goes on exactly where it stopped, in the middle of a block. What comes after the first key that is
not found is computed again.

Rows in flight need no care: an executor runs its plans in order, so a plan that copies a block does so after
the steps that fill it, and the call is not planned again before their results have come.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scheduler_svc.core.config import KvPreempted
from scheduler_svc.core.ids import BlockId
from scheduler_svc.core.kv import Found, Key, extend_hashes, private_key, root_hash
from svc_runtime.block_hashes import unpack_digests

if TYPE_CHECKING:
    from scheduler_svc.core.call import Call
    from scheduler_svc.core.executor import Executor


@dataclass(frozen=True, slots=True)
class KeptKv:
    """The KV that a call left behind when it was preempted."""

    tokens: int
    """Leading tokens whose KV is in the blocks. > 0."""
    certain: int
    """Leading blocks that are kept under their content's hash."""
    tail_keys: tuple[Key, ...]
    """Keys of the blocks after those, in order."""


def hash_blocks(executor: "Executor", call: "Call", blocks: int) -> None:
    """Makes sure that the hashes of the call's first full blocks are known: those that its frontend sent, if
    they are for blocks of this size; the others are made here."""
    if 0 < blocks <= len(call.block_hashes):
        return
    if not call.block_hashes and call.spec.hash_block_size == executor.spec.block_size:
        call.block_hashes = unpack_digests(call.spec.prompt_block_hashes)
    if len(call.block_hashes) < blocks:
        root = b"" if call.block_hashes else root_hash(call.spec.tenant, call.spec.cache_salt)
        extend_hashes(call.block_hashes, root, call.tokens, blocks, executor.spec.block_size)


def keys_of(executor: "Executor", call: "Call") -> Sequence[Key]:
    """The keys under which a waiting call's KV may be found, in order of its blocks.

    Without KV of its own these are full blocks only, and never the newest token, which must be computed.
    """
    kept = call.kept
    if kept is not None:
        hash_blocks(executor, call, kept.certain)
        return [*call.block_hashes[: kept.certain], *kept.tail_keys]
    if not executor.spec.prefix_caching or call.spec.skip_reading_prefix_cache:
        return ()
    blocks = (len(call.tokens) - 1) // executor.spec.block_size
    hash_blocks(executor, call, blocks)
    return call.block_hashes[:blocks]


def tokens_in(executor: "Executor", call: "Call", found: Found) -> int:
    """Leading tokens of a waiting call whose KV is in the blocks that were found under `keys_of`."""
    kept = call.kept
    if kept is not None and len(found) == kept.certain + len(kept.tail_keys):
        return kept.tokens
    return len(found) * executor.spec.block_size


def take_back(executor: "Executor", call: "Call", found: Found) -> list[BlockId]:
    """Makes what was found (and is held) the beginning of the call's block table. Takes `found.to_bring`
    blocks.

    Returns: the table so far.
    """
    kv = executor.kv
    table = kv.bring_in(found)
    kept, call.kept = call.kept, None
    if kept is not None:
        found_tail = max(0, len(found) - kept.certain)
        kv.own(kept.tail_keys[:found_tail])
        kv.forget(kept.tail_keys[found_tail:])
    return table


def leave(executor: "Executor", call: "Call", choice: KvPreempted) -> None:
    """Gives the blocks of a preempted call back under keys, so that it can go on where it stopped.

    Args:
        choice: SWAP moves them to the host at once, DROP forgets them at once; otherwise they stay until the
            memory is needed.
    """
    certain = _certain_blocks(executor, call)
    tail_keys = tuple(private_key(call.seq, index) for index in range(certain, len(call.blocks)))
    hashes = call.block_hashes[:certain]
    executor.kv.give_back(call.blocks[certain:], tail_keys, call.program.key)  # the first to be evicted
    executor.kv.give_back(call.blocks[:certain], hashes, call.program.key)
    keys = [*hashes, *tail_keys]
    if choice is KvPreempted.DROP:
        executor.kv.drop(keys)
    elif call.planned:
        call.kept = KeptKv(call.planned, certain, tail_keys)
        if choice is KvPreempted.SWAP:
            executor.kv.expel(keys)


def part(executor: "Executor", call: "Call") -> None:
    """Gives back everything of a call that ended or goes elsewhere; its program may come back for it."""
    if call.kept is not None:
        executor.kv.forget(call.kept.tail_keys)
    elif call.blocks:
        certain = _certain_blocks(executor, call)
        executor.kv.give_back(call.blocks, call.block_hashes[:certain], call.program.key)


def publish(executor: "Executor", call: "Call", end: int) -> None:
    """Makes the prompt's blocks findable that became full by computing up to `end`, for calls that share it.

    Blocks with generated tokens are published when the call leaves: nobody asks for them before.
    """
    size = executor.spec.block_size
    first, last = call.computed // size, min(end, call.prompt_len) // size
    if first >= last or not executor.spec.prefix_caching:
        return
    hash_blocks(executor, call, last)
    executor.kv.publish(call.blocks[:last], call.block_hashes[:last])


def _certain_blocks(executor: "Executor", call: "Call") -> int:
    """Full blocks of a running call whose results have come, and makes sure that they are hashed.

    A program that ends with this call asks for none of its generated tokens again: they are not hashed.
    """
    if not executor.spec.prefix_caching:
        return 0
    certain = call.computed // executor.spec.block_size
    if call.program.single_call and not call.is_live:
        return min(certain, len(call.block_hashes))
    hash_blocks(executor, call, certain)
    return certain
