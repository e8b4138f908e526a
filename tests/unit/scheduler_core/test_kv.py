"""Blocks and content hashes."""

import pytest

from scheduler_svc.core.ids import BlockId, TenantId
from scheduler_svc.core.kv import NULL_BLOCK, BlockPool, extend_hashes, root_hash

ROOT = root_hash(TenantId("acme"), "")


def hashes_of(tokens: list[int], root: bytes = ROOT, block_size: int = 4) -> list[bytes]:
    hashes: list[bytes] = []
    extend_hashes(hashes, root, tokens, len(tokens) // block_size, block_size)
    return hashes


def fill(pool: BlockPool, tokens: list[int]) -> list[BlockId]:
    """Takes and publishes the full blocks of `tokens`."""
    hashes = hashes_of(tokens)
    blocks = pool.take(len(hashes))
    for block, content in zip(blocks, hashes, strict=True):
        pool.publish(block, content)
    return blocks


class TestHashes:
    def test_equal_prefixes_share_hashes_up_to_the_first_difference(self) -> None:
        left, right = hashes_of([*range(12)]), hashes_of([*range(7), 99, *range(8, 12)])
        assert left[0] == right[0]
        assert left[1] != right[1]
        assert left[2] != right[2], "same tokens after another prefix are other KV"

    def test_tenants_and_salts_do_not_share(self) -> None:
        roots = [root_hash(TenantId(tenant), salt) for tenant, salt in
                 [("a", ""), ("b", ""), ("a", "s"), ("as", ""), ("", "as")]]  # fmt: skip
        assert len({hashes_of([1, 2, 3, 4], root)[0] for root in roots}) == len(roots)

    def test_token_boundaries_matter(self) -> None:
        assert hashes_of([1, 23], block_size=2) != hashes_of([12, 3], block_size=2)

    def test_each_block_is_hashed_once(self) -> None:
        hashes = hashes_of([*range(8)])
        before = list(hashes)
        extend_hashes(hashes, ROOT, [99] * 8 + [8, 9, 10, 11], 3, 4)
        assert hashes[:2] == before
        assert hashes == hashes_of([*range(12)])


class TestBlockPool:
    def test_the_null_block_is_never_handed_out(self) -> None:
        pool = BlockPool(5)
        assert NULL_BLOCK not in pool.take(4)
        assert pool.available == 0

    def test_taking_more_than_there_is_is_our_bug(self) -> None:
        with pytest.raises(AssertionError, match="5 blocks wanted, 4 available"):
            BlockPool(5).take(5)

    def test_a_published_block_is_found_while_held_and_after(self) -> None:
        pool = BlockPool(9)
        blocks = fill(pool, [*range(8)])
        assert pool.find(hashes_of([*range(8)])) == blocks
        pool.release(blocks)
        assert pool.find(hashes_of([*range(8), 1, 2, 3, 4])) == blocks
        assert (pool.held, pool.available, pool.plain) == (0, 8, 6)

    def test_an_unpublished_block_is_worthless_once_released(self) -> None:
        pool = BlockPool(9)
        pool.release(pool.take(2))
        assert pool.plain == 8

    def test_a_shared_block_is_free_when_its_last_holder_leaves(self) -> None:
        pool = BlockPool(3)
        blocks = fill(pool, [*range(4)])
        pool.hold(blocks)
        pool.release(blocks)
        assert pool.references(blocks[0]) == 1
        assert pool.take(1) != blocks
        pool.release(blocks)
        assert pool.available == 1

    def test_a_found_block_that_is_held_again_is_not_evicted(self) -> None:
        pool = BlockPool(2)
        blocks = fill(pool, [*range(4)])
        pool.release(blocks)
        pool.hold(blocks)
        assert pool.available == 0

    def test_worthless_blocks_go_first_then_the_least_recently_used(self) -> None:
        pool = BlockPool(6)
        old, new = fill(pool, [1] * 4), fill(pool, [2] * 4)
        plain = pool.take(3)
        pool.release(old)
        pool.release(new)
        pool.release(plain)
        assert set(pool.take(3)) == set(plain)
        assert pool.take(1) == old
        assert pool.find(hashes_of([1] * 4)) == []
        assert pool.find(hashes_of([2] * 4)) == new

    def test_the_end_of_a_prefix_is_evicted_before_its_beginning(self) -> None:
        pool = BlockPool(4)
        blocks = fill(pool, [*range(12)])
        pool.release(blocks)
        pool.take(1)
        assert pool.find(hashes_of([*range(12)])) == blocks[:2]

    def test_the_first_of_two_equal_blocks_is_the_one_found(self) -> None:
        pool = BlockPool(5)
        first, second = fill(pool, [*range(4)]), fill(pool, [*range(4)])
        assert pool.find(hashes_of([*range(4)])) == first
        pool.release(second)
        assert pool.plain == 3, "the copy has no hash"

    def test_check_sees_a_lost_reference(self) -> None:
        pool = BlockPool(5)
        blocks = pool.take(2)
        pool.check([blocks])
        with pytest.raises(AssertionError, match="do not add up"):
            pool.check([blocks[:1]])
