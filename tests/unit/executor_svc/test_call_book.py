"""Every plan is checked against what the executor holds, before anything changes."""

import dataclasses
from typing import Any

import pytest

from executor_svc.runner import PlanViolation, StepPlan
from executor_svc.vllm_runner.calls import Call, CallBook, Limits

LIMITS = Limits(
    num_blocks=10, block_size=4, max_num_seqs=3, max_num_batched_tokens=16, max_model_len=20, host_blocks=6
)


def plan(step: int, handles: list[int], **columns: Any) -> StepPlan:
    empty: dict[str, Any] = {"chunks": {}, "joined": {}, "blocks": {}, "released": []}
    return StepPlan(step=step, handles=handles, **empty | columns)


def book_with(*prompt_lengths: int) -> CallBook:
    """Calls 1, 2, ... with prompts of these lengths."""
    book = CallBook(LIMITS)
    for handle, length in enumerate(prompt_lengths, start=1):
        book.add(Call(handle=handle, req_id=str(handle), prompt=[0] * length, outputs=[]))
    return book


def running(prompt_length: int = 5) -> CallBook:
    """Call 1 has run one step, which sampled a token; call 2 waits."""
    book = book_with(prompt_length, 5)
    book.compose(plan(1, [1], chunks={0: prompt_length}, joined={0: 0}, blocks={0: [1, 2]}))
    land(book, 1)
    return book


def land(book: CallBook, handle: int, token: int = 7) -> None:
    """The result of the last step has come."""
    call = book.calls[handle]
    call.in_flight -= 1
    call.outputs.append(token)


def test_a_call_from_prompt_to_release() -> None:
    book = book_with(6)
    first = book.compose(plan(1, [1], chunks={0: 4}, joined={0: 0}, blocks={0: [3]}))
    assert [(row.start, row.chunk, row.samples) for row in first.rows] == [(0, 4, False)]
    second = book.compose(plan(2, [1], chunks={0: 2}, blocks={0: [5]}))
    assert [(row.start, row.chunk, row.samples) for row in second.rows] == [(4, 2, True)]
    ahead = book.compose(plan(3, [1]))
    assert [(row.start, row.samples) for row in ahead.rows] == [(6, True)]
    land(book, 1)
    land(book, 1)
    last = book.compose(plan(4, [], released=[1]))
    assert (last.rows, [call.handle for call in last.released], last.left) == ([], [1], [])
    assert book.calls == {}


def test_rows_that_leave_are_named_once() -> None:
    book = running()
    assert [call.handle for call in book.compose(plan(2, [])).left] == [1]
    assert book.compose(plan(3, [])).left == []


def test_a_row_rejoins_with_its_whole_table() -> None:
    book = running()
    book.compose(plan(2, []))
    (row,) = book.compose(plan(3, [1], joined={0: 5}, blocks={0: [1, 2]})).rows
    assert (row.start, row.chunk, row.joined) == (5, 1, True)


def test_failed_calls_are_told_once_and_skipped() -> None:
    book = book_with(5, 5)
    book.calls[1].failure = "bad"
    joined = {"chunks": {0: 5, 1: 5}, "joined": {0: 0, 1: 0}, "blocks": {0: [1, 2], 1: [3, 4]}}
    batch = book.compose(plan(1, [1, 2], **joined))
    assert [call.handle for call in batch.failed] == [1]
    assert [row.call.handle for row in batch.rows] == [2]
    again = book.compose(plan(2, [1, 2]))
    assert again.failed == []
    assert [row.call.handle for row in again.rows] == [2]


def test_handle_announced_twice() -> None:
    book = book_with(5)
    with pytest.raises(PlanViolation, match="announced twice"):
        book.add(Call(handle=1, req_id="again", prompt=[0], outputs=[]))


JOIN = {"chunks": {0: 5}, "joined": {0: 0}, "blocks": {0: [3, 4]}}
VIOLATIONS = {
    "step gap": (plan(3, [1]), "step 3 follows step 1"),
    "step again": (plan(1, [1]), "step 1 follows step 1"),
    "unknown handle": (plan(2, [9], joined={0: 0}, blocks={0: [1]}), "handle 9 is not known"),
    "unknown release": (plan(2, [1], released=[9]), "handle 9 is not known"),
    "handle twice": (plan(2, [1, 1]), "names a handle twice"),
    "runs what it releases": (plan(2, [1], released=[1]), "runs a call that it releases"),
    "column without row": (plan(2, [1], chunks={1: 2}), "outside its 1 handles"),
    "joined but was there": (plan(2, [1], joined={0: 5}, blocks={0: [1, 2]}), "was in the batch"),
    "not joined but was not": (plan(2, [2]), "was not in the batch"),
    "no tokens": (plan(2, [1], chunks={0: 0}), "computes 0 tokens"),
    "past its tokens": (plan(2, [1], chunks={0: 2}), "up to token 7 of 6"),
    "claims computed tokens it has not": (
        plan(2, [2], joined={0: 5}, blocks={0: [3, 4]}),
        "up to token 6 of 5",
    ),
    "negative start": (plan(2, [2], joined={0: -1}, blocks={0: [3, 4]}), "from token -1"),
    "null block": (plan(2, [2], **JOIN | {"blocks": {0: [0, 4]}}), "block 0"),
    "block out of range": (plan(2, [2], **JOIN | {"blocks": {0: [3, 10]}}), "block 10"),
    "too few blocks": (plan(2, [2], **JOIN | {"blocks": {0: [3]}}), "1 blocks for 5 tokens"),
    "null block out": (plan(2, [1], swap_out=[(0, 1)]), "swapped block 0 is not in 1..9"),
    "null block in": (plan(2, [1], swap_in=[(1, 0)]), "swapped block 0"),
    "block out of range in": (plan(2, [1], swap_in=[(1, 2), (2, 10)]), "swapped block 10"),
    "host block out of range": (plan(2, [1], swap_out=[(1, 6)]), "host block 6 is not in 0..5"),
    "host block below zero": (plan(2, [1], swap_in=[(-1, 4)]), "host block -1"),
    "two blocks to one place": (plan(2, [1], swap_out=[(1, 0), (2, 0)]), "step 2 copies two blocks"),
    "two blocks to one block": (plan(2, [1], swap_in=[(1, 3), (2, 3)]), "step 2 copies two blocks"),
}


@pytest.mark.parametrize("name", VIOLATIONS)
def test_violations_change_nothing(name: str) -> None:
    bad, words = VIOLATIONS[name]
    book = running()
    before = [(c.computed, c.in_flight, c.blocks_held) for c in book.calls.values()]
    with pytest.raises(PlanViolation, match=words):
        book.compose(bad)
    assert [(c.computed, c.in_flight, c.blocks_held) for c in book.calls.values()] == before
    assert len(book.compose(plan(2, [1])).rows) == 1


def test_copies_may_come_with_rows_or_alone() -> None:
    book = running()
    with_rows = book.compose(plan(2, [1], swap_out=[(4, 0), (5, 5)], swap_in=[(3, 4)]))
    assert with_rows.swap_out.tolist() == [[4, 0], [5, 5]]
    assert with_rows.swap_in.tolist() == [[3, 4]]
    assert (with_rows.copies, len(with_rows.rows)) == (3, 1)
    alone = book.compose(plan(3, [], swap_out=[(4, 0), (4, 1)]))
    assert (alone.copies, alone.rows) == (2, [])
    assert book.compose(plan(4, [])).copies == 0


def test_copies_need_a_host_tier() -> None:
    book = CallBook(dataclasses.replace(LIMITS, host_blocks=0))
    with pytest.raises(PlanViolation, match="step 1 swaps, but the executor has no host blocks"):
        book.compose(plan(1, [], swap_out=[(1, 0)]))


def test_rejoining_with_a_token_in_flight() -> None:
    book = book_with(5)
    book.compose(plan(1, [1], **JOIN))
    book.compose(plan(2, []))
    with pytest.raises(PlanViolation, match="in flight"):
        book.compose(plan(3, [1], joined={0: 5}, blocks={0: [3, 4]}))


def test_budgets_of_a_step() -> None:
    book = book_with(5, 9, 9, 5)
    tables = {0: [1, 2], 1: [3, 4, 5], 2: [6, 7, 8]}
    with pytest.raises(PlanViolation, match="23 tokens in a step, the limit is 16"):
        book.compose(
            plan(1, [1, 2, 3], chunks={0: 5, 1: 9, 2: 9}, joined=dict.fromkeys(range(3), 0), blocks=tables)
        )
    blocks = {row: [row + 1] for row in range(4)}
    with pytest.raises(PlanViolation, match="4 rows, the limit is 3"):
        book.compose(plan(1, [1, 2, 3, 4], joined=dict.fromkeys(range(4), 0), blocks=blocks))


def test_no_sampling_past_the_model_length() -> None:
    book = CallBook(LIMITS)
    book.add(Call(handle=1, req_id="1", prompt=[0] * 20, outputs=[]))
    blocks = {0: [1, 2, 3, 4, 5]}
    with pytest.raises(PlanViolation, match="has 20 tokens, the model takes 20"):
        book.compose(plan(1, [1], chunks={0: 1}, joined={0: 19}, blocks=blocks))
