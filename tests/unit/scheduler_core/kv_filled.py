"""A KV cache and words for what tests of it do."""

from collections.abc import Iterable, Sequence

from scheduler_svc.core.ids import BlockId, ProgramId, TenantId
from scheduler_svc.core.kv import Key, KvCache, ProgramKey


def program(name: str) -> ProgramKey:
    return TenantId("acme"), ProgramId(name)


A, B, C = program("a"), program("b"), program("c")


def keys(name: str, blocks: int) -> list[Key]:
    """Keys of the first blocks of one text."""
    return [f"{name}{index}".ljust(16).encode() for index in range(blocks)]


def keep(cache: KvCache, content: Sequence[Key], owner: ProgramKey | None = A) -> list[BlockId]:
    """A call computes these contents and leaves them. Returns: where they are."""
    table = cache.take(len(content))
    cache.drain_swaps()
    cache.give_back(table, content, owner)
    return table


def hold(cache: KvCache, content: Sequence[Key]) -> list[BlockId]:
    """A call takes over what is found, and brings in what is on the host. Returns: its table."""
    found = cache.find(content)
    cache.hold(found)
    return cache.bring_in(found)


def on_device(cache: KvCache, content: Iterable[Key]) -> list[Key]:
    """Those of the contents that are on the device."""
    there = {key for key, device, _ in cache.contents() if device is not None}
    return [key for key in content if key in there]


def on_host(cache: KvCache, content: Iterable[Key]) -> list[Key]:
    """Those of the contents that are on the host only."""
    there = {key for key, device, _ in cache.contents() if device is None}
    return [key for key in content if key in there]


def push_out(cache: KvCache, count: int) -> list[BlockId]:
    """Takes what is plain and evicts `count` contents; the blocks are given back as plain ones."""
    table = cache.take(cache.plain + count)
    cache.give_back(table, [], None)
    return table
