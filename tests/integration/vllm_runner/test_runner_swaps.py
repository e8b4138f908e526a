"""Blocks that travel between device and host: same tokens afterwards, and no copy but those a plan names."""

from typing import Any

import numpy as np
import pytest
import torch

from executor_svc.runner import PlanViolation, Runner, StepPlan
from tests.integration.vllm_runner.toy_planner import BLOCK_SIZE, HOST_BLOCKS, ToyCall, ToyPlanner

LOCKSTEP_AND_AHEAD = pytest.mark.parametrize("ahead", [False, True], ids=["lockstep", "one_ahead"])


def request(first_token: int, prompt: int = 100, output: int = 40) -> dict[str, Any]:
    tokens = [1, *(300 + (first_token + 7 * i) % 1700 for i in range(prompt - 1))]
    return {"prompt": tokens, "sampling": {"temperature": 0.0, "max_tokens": output, "ignore_eos": True}}


def alone(runner: Runner) -> list[int]:
    """What the call says when nobody disturbs it."""
    runner.reset()
    planner = ToyPlanner(runner)
    call = planner.submit(request(0))
    planner.finish()
    runner.reset()
    return call.outputs


def swapped_while_others_run(planner: ToyPlanner) -> tuple[ToyCall, list[int]]:
    """A call after 11 of its tokens, all blocks on the host, and the device blocks it had: others have
    written into every one of them since."""
    call = planner.submit(request(0))
    planner.run(12)
    had = list(call.blocks)
    planner.swap(call)
    others = [planner.submit(request(97 * n, prompt=120, output=8)) for n in range(1, 4)]
    planner.run(4)
    assert set(had) <= {block for other in others for block in other.blocks}
    planner.run(8)
    assert all(other.ended for other in others)
    return call, had


@LOCKSTEP_AND_AHEAD
def test_a_swapped_call_goes_on_in_other_blocks(runner: Runner, ahead: bool) -> None:
    undisturbed = alone(runner)
    planner = ToyPlanner(runner, ahead=ahead)
    call, had = swapped_while_others_run(planner)
    planner.resume(call)
    assert len(call.blocks) == len(had)
    assert set(call.blocks).isdisjoint(had)
    planner.finish()
    assert call.outputs == undisturbed
    assert len(undisturbed) == 40


@LOCKSTEP_AND_AHEAD
def test_without_the_swap_in_it_says_something_else(runner: Runner, ahead: bool) -> None:
    undisturbed = alone(runner)
    planner = ToyPlanner(runner, ahead=ahead)
    call, _ = swapped_while_others_run(planner)
    planner.forget_swap_in(call)
    planner.finish()
    assert len(call.outputs) == 40
    assert call.outputs != undisturbed


def test_bytes_and_seconds_are_those_of_the_copies(runner: Runner) -> None:
    planner = ToyPlanner(runner)
    call, had = swapped_while_others_run(planner)
    assert planner.swap_bytes == len(had) * runner.info.block_bytes
    planner.resume(call)
    planner.finish()
    assert planner.swap_bytes == 2 * len(had) * runner.info.block_bytes
    assert 0 < planner.swap_s < 10


def plan(step: int, **columns: Any) -> StepPlan:
    empty: dict[str, Any] = {"handles": [], "chunks": {}, "joined": {}, "blocks": {}, "released": []}
    return StepPlan(step=step, **empty | columns)


def kv(runner: Runner) -> list[torch.Tensor]:
    """The worker's KV tensors. Shape of each: (num_blocks, ...)."""
    return runner._engine.executor.driver_worker.worker.model_runner.kv_caches  # type: ignore[attr-defined]


def test_a_plan_of_copies_alone_moves_these_blocks_and_no_others(runner: Runner) -> None:
    for layer, cache in enumerate(kv(runner)):
        for block in range(len(cache)):
            cache[block] = 1000 * layer + block
    out = runner.execute(plan(1, swap_out=[(7, 0), (300, HOST_BLOCKS - 1), (8, 3)])).result()
    back = runner.execute(plan(2, swap_in=[(HOST_BLOCKS - 1, 5), (0, 511)])).result()
    for layer, cache in enumerate(kv(runner)):
        assert cache.shape[2] == BLOCK_SIZE
        expected = np.arange(512)
        expected[[5, 511]] = (300, 7)
        for block, value in enumerate(expected):
            assert bool((cache[block] == 1000 * layer + value).all())
    assert (out.handles, out.step_s, back.step_s) == ([], 0.0, 0.0)
    assert (out.swap_bytes, back.swap_bytes) == (3 * runner.info.block_bytes, 2 * runner.info.block_bytes)
    assert min(out.swap_s, back.swap_s) > 0


def test_swap_out_comes_before_swap_in(runner: Runner) -> None:
    """In one plan block 4 gives its content to block 8, through the host, and takes that of block 6."""
    for block in range(9):
        kv(runner)[0][block] = block
    runner.execute(plan(1, swap_out=[(4, 10), (6, 11)], swap_in=[(11, 4), (10, 8)])).result()
    assert [kv(runner)[0][block].unique().tolist() for block in (4, 6, 8)] == [[6], [6], [4]]


def test_steps_without_copies_report_none(runner: Runner) -> None:
    planner = ToyPlanner(runner)
    planner.submit(request(0, output=4))
    planner.finish()
    assert (planner.swap_bytes, planner.swap_s) == (0, 0.0)


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"swap_out": [(0, 1)]}, "swapped block 0 is not in 1..511"),
        ({"swap_out": [(512, 1)]}, "swapped block 512"),
        ({"swap_out": [(1, HOST_BLOCKS)]}, f"host block {HOST_BLOCKS} is not in 0..{HOST_BLOCKS - 1}"),
        ({"swap_in": [(-1, 1)]}, "host block -1"),
        ({"swap_in": [(0, 1), (1, 1)]}, "to the same place"),
    ],
)
def test_copies_of_blocks_that_are_not_there_change_nothing(
    runner: Runner, columns: dict[str, Any], words: str
) -> None:
    before = [cache.clone() for cache in kv(runner)]
    with pytest.raises(PlanViolation, match=words):
        runner.execute(plan(1, **columns))
    assert all(torch.equal(now, then) for now, then in zip(kv(runner), before, strict=True))
    assert runner.execute(plan(1)).result().step == 1


def test_registration_tells_both_tiers(runner: Runner) -> None:
    worker = runner._engine.executor.driver_worker.worker  # type: ignore[attr-defined]
    assert runner.info.host_blocks == HOST_BLOCKS
    assert runner.info.block_bytes == worker._autellix_host_pool.block_bytes
    assert runner.info.block_bytes == sum(cache[0].nbytes for cache in kv(runner))
