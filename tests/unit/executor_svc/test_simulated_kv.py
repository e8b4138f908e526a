"""The ledger alone: what a slot holds, and what writing it does to the slots around it."""

import numpy as np
import pytest

from executor_svc.runner import PlanViolation
from executor_svc.simulated_kv import BlockLedger, Indices
from executor_svc.simulated_tokens import Hashes, hash_prefixes


def ledger() -> BlockLedger:
    """Blocks of 4 tokens, 1..9; a row uses 1 and 2."""
    blocks = BlockLedger(block_size=4, num_blocks=10, host_blocks=2)
    blocks.use(table(1, 2))
    return blocks


def table(*blocks: int) -> Indices:
    """A block table."""
    return np.array(blocks, np.intp)


def hashes(*tokens: int) -> Hashes:
    """Prefix hashes of a sequence."""
    return hash_prefixes(tokens)


def test_a_block_holds_what_was_written_and_nothing_else() -> None:
    blocks, mine = ledger(), hashes(1, 2, 3, 4, 5, 6)
    blocks.write(table(1, 2), mine, 0, 6)
    for computed in range(7):
        blocks.check_holds(table(1, 2), mine, computed)
    with pytest.raises(PlanViolation, match=r"block 2 .*positions 4\.\.6"):
        blocks.check_holds(table(1, 2), hashes(1, 2, 3, 4, 5, 6, 7), 7)
    with pytest.raises(PlanViolation, match="block 1"):
        blocks.check_holds(table(1, 2), hashes(9, 2, 3, 4), 4)
    with pytest.raises(PlanViolation, match="block 2"):
        blocks.check_holds(table(2, 1), mine, 4)


def test_the_same_tokens_after_other_tokens_are_not_the_same_kv() -> None:
    assert hashes(1, 7)[-1] != hashes(2, 7)[-1]


def test_writing_a_slot_drops_those_behind_it() -> None:
    blocks, first, second = ledger(), hashes(1, 2, 3, 4), hashes(8, 9)
    blocks.write(table(1), first, 0, 4)
    blocks.write(table(1), second, 0, 2)
    blocks.check_holds(table(1), second, 2)
    with pytest.raises(PlanViolation, match="block 1"):
        blocks.check_holds(table(1), first, 4)


@pytest.mark.parametrize(("start", "end"), [(2, 3), (2, 6)])
def test_a_slot_is_written_only_behind_the_prefix_it_continues(start: int, end: int) -> None:
    blocks, mine = ledger(), hashes(1, 2, 3, 4, 5, 6)
    with pytest.raises(PlanViolation, match="before position 2"):
        blocks.write(table(1, 2), mine, start, end)
    blocks.write(table(1, 2), hashes(9, 9), 0, 2)
    with pytest.raises(PlanViolation, match="before position 2"):
        blocks.write(table(1, 2), mine, start, end)


def test_a_swapped_block_is_a_copy() -> None:
    blocks, first, second = ledger(), hashes(1, 2, 3, 4), hashes(8, 9)
    blocks.write(table(1), first, 0, 4)
    blocks.swap_out(1, 0)
    blocks.write(table(1), second, 0, 2)
    blocks.swap_in(0, 5)
    blocks.check_holds(table(5), first, 4)


def test_decode_rows_are_written_together() -> None:
    blocks, first, second = ledger(), hashes(1, 2, 3), hashes(8, 9, 10, 11, 12)
    blocks.use(table(3))
    blocks.write(table(1), first, 0, 2)
    blocks.write(table(2), second, 0, 4)
    assert blocks.write_each(table(1, 3), table(2, 0), first[[1, 0]], np.array([first[2], second[4]]))
    blocks.check_holds(table(1), first, 3)
    blocks.check_holds(table(2, 3), second, 5)


@pytest.mark.parametrize(
    ("block", "slot", "prior"),
    [(1, 2, 9), (1, 3, 2), (5, 0, 0), (4, 0, 0)],
    ids=["another prefix", "a gap", "a block nobody uses", "a block of two rows"],
)
def test_one_bad_row_and_none_is_written(block: int, slot: int, prior: int) -> None:
    blocks, mine = ledger(), hashes(1, 2, 3)
    blocks.use(table(4, 4))
    blocks.write(table(1), mine, 0, 2)
    rows = table(2, block), table(0, slot)
    priors = np.array([0, hashes(1, prior)[-1]], np.uint64)
    assert not blocks.write_each(*rows, priors, mine[:2])
    with pytest.raises(PlanViolation, match="block 2 does not hold"):
        blocks.check_holds(table(2), mine, 1)
    assert blocks.write_each(*(column[:1] for column in rows), priors[:1], mine[:1])


def test_what_lies_behind_the_filled_slots_is_not_there() -> None:
    """The old content still lies in memory; a row must not go on from it."""
    blocks, old = ledger(), hashes(1, 2, 3, 4)
    blocks.write(table(1), old, 0, 3)
    blocks.write(table(1), hashes(9), 0, 1)
    assert not blocks.write_each(table(1), table(3), old[2:3], old[3:4])
    with pytest.raises(PlanViolation, match="before position 3"):
        blocks.write(table(1), old, 3, 4)
