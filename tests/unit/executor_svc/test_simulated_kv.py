"""The ledger alone: what a slot holds, and what writing it does to the slots around it."""

import pytest

from executor_svc.runner import PlanViolation
from executor_svc.simulated_kv import BlockLedger
from executor_svc.simulated_tokens import extend_prefix


def ledger() -> BlockLedger:
    """Blocks of 4 tokens, 1..9; a row uses 1 and 2."""
    blocks = BlockLedger(block_size=4, num_blocks=10, host_blocks=2)
    blocks.use([1, 2])
    return blocks


def hashes(*tokens: int) -> list[int]:
    """Prefix hashes of a sequence."""
    made: list[int] = []
    extend_prefix(made, tokens)
    return made


def test_a_block_holds_what_was_written_and_nothing_else() -> None:
    blocks, mine = ledger(), hashes(1, 2, 3, 4, 5, 6)
    blocks.write([1, 2], mine, 0, 6)
    for computed in range(7):
        blocks.check_holds([1, 2], mine, computed)
    with pytest.raises(PlanViolation, match=r"block 2 .*positions 4\.\.6"):
        blocks.check_holds([1, 2], hashes(1, 2, 3, 4, 5, 6, 7), 7)
    with pytest.raises(PlanViolation, match="block 1"):
        blocks.check_holds([1, 2], hashes(9, 2, 3, 4), 4)
    with pytest.raises(PlanViolation, match="block 2"):
        blocks.check_holds([2, 1], mine, 4)


def test_the_same_tokens_after_other_tokens_are_not_the_same_kv() -> None:
    assert hashes(1, 7)[-1] != hashes(2, 7)[-1]


def test_writing_a_slot_drops_those_behind_it() -> None:
    blocks, first, second = ledger(), hashes(1, 2, 3, 4), hashes(8, 9)
    blocks.write([1], first, 0, 4)
    blocks.write([1], second, 0, 2)
    blocks.check_holds([1], second, 2)
    with pytest.raises(PlanViolation, match="block 1"):
        blocks.check_holds([1], first, 4)


@pytest.mark.parametrize(("start", "end"), [(2, 3), (2, 6)])
def test_a_slot_is_written_only_behind_the_prefix_it_continues(start: int, end: int) -> None:
    blocks, mine = ledger(), hashes(1, 2, 3, 4, 5, 6)
    with pytest.raises(PlanViolation, match="before position 2"):
        blocks.write([1, 2], mine, start, end)
    blocks.write([1, 2], hashes(9, 9), 0, 2)
    with pytest.raises(PlanViolation, match="before position 2"):
        blocks.write([1, 2], mine, start, end)


def test_a_swapped_block_is_a_copy() -> None:
    blocks, first, second = ledger(), hashes(1, 2, 3, 4), hashes(8, 9)
    blocks.write([1], first, 0, 4)
    blocks.swap_out(1, 0)
    blocks.write([1], second, 0, 2)
    blocks.swap_in(0, 5)
    blocks.check_holds([5], first, 4)
