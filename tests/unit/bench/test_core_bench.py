"""The core bench: its load is what it says, its executor refuses what no executor could do, its verdicts."""

import statistics
from itertools import islice

import numpy as np
import pytest

from bench.core import FULL, VLLM, Report
from bench.core_load import BLOCK_SIZE, Load, prompt
from bench.core_ours import Side
from bench.core_responder import Responder
from protos.autellix.executor.v1 import executor_pb2 as pb
from scripts.compiled_core import SOURCES

PIECES = {"decode", "result", "plan", "encode", "relay", "total"}


def packed(*values: int) -> bytes:
    return np.array(values, "<i4").tobytes()


def announced(handle: int, tokens: int) -> bytes:
    call = pb.CallAnnouncement(handle=handle, prompt_token_ids=packed(*range(tokens)))
    return pb.AttachResponse(announced=pb.CallsAnnounced(calls=[call])).SerializeToString()


def plan(step: int, handle: int, *, chunk: int = 1, joins: bool = False, blocks: int = 0) -> bytes:
    message = pb.StepPlan(step=step, handles=packed(handle))
    if chunk != 1:
        message.chunk_rows, message.chunk_tokens = packed(0), packed(chunk)
    if joins:
        message.joined_rows, message.joined_computed = packed(0), packed(0)
    if blocks:
        message.blocks.add(rows=packed(0), counts=packed(blocks), block_ids=packed(*range(blocks)))
    return pb.AttachResponse(plan=message).SerializeToString()


def test_rows_cross_blocks_at_each_step_and_share_none():
    lengths = [len(prompt(number)) for number in range(256)]
    assert {lengths.count(length) for length in lengths} == {256 // BLOCK_SIZE}
    assert len({tuple(prompt(number)[:BLOCK_SIZE]) for number in range(100_000)}) == 100_000


def test_two_percent_of_the_rows_end_at_each_step():
    load = Load(rows=256, churn=True)
    lives = list(islice(load.max_tokens(), load.rows))
    assert load.churn_rows == 5
    assert [lives.count(life) for life in sorted(set(lives))][:-1] == [5] * 51
    assert max(lives) - 1 == load.life_steps


def test_the_responder_samples_when_all_tokens_are_computed():
    responder = Responder()
    responder.receive(announced(1, 20))
    responder.receive(plan(1, 1, chunk=15, joins=True, blocks=2))
    responder.receive(plan(2, 1, chunk=5))
    responder.receive(plan(3, 1))
    results = [pb.AttachRequest.FromString(result).result for result in responder.results]
    assert [result.step for result in results] == [1, 2, 3]
    assert [len(result.tokens) // 4 for result in results] == [0, 1, 1]


def test_the_responder_refuses_tokens_that_do_not_exist_and_blocks_that_are_missing():
    responder = Responder()
    responder.receive(announced(1, 20))
    with pytest.raises(AssertionError, match="do not exist"):
        responder.receive(plan(1, 1, chunk=21, joins=True, blocks=2))
    responder.receive(announced(2, 20))
    with pytest.raises(AssertionError, match="lacks blocks"):
        responder.receive(plan(1, 2, chunk=20, joins=True, blocks=1))


def test_the_parts_of_a_step_add_up():
    samples = Side(Load(rows=8, churn=False, waiting=3)).measure(30)
    assert set(samples) == PIECES
    parts = [sum(values) for values in zip(*(samples[name] for name in PIECES - {"total"}), strict=True)]
    assert parts == pytest.approx(samples["total"])


def test_churn_submits_what_ended_and_keeps_the_batch_full():
    load = Load(rows=50, churn=True)
    samples = Side(load).measure(200)
    assert len(samples["total"]) == 200
    ended_per_step = len(samples["acknowledge"]) / 200
    assert ended_per_step == pytest.approx(load.churn_rows, rel=0.1)
    assert len(samples["submit"]) == len(samples["acknowledge"])


def figures(total_us: float, waiting_us: float, vllm_us: float) -> dict[str, dict[str, float]]:
    return {
        "waiting_0": {"total": total_us},
        "waiting_1000": {"total": waiting_us},
        VLLM: {"total": vllm_us},
    }


def test_targets_are_judged_at_256_rows():
    report = Report(FULL, SOURCES)
    report.add(64, "steady", figures(1000, 1000, 1))
    assert report.targets() == []
    report.add(256, "steady", figures(50, 55, 1100))
    report.add(256, "churn", figures(300, 360, 1000))
    assert [target["met"] for target in report.targets()] == [True, True, False, False, True]
    assert report.as_json()["vllm_over_ours"]["256"]["steady"] == 22
    assert statistics.median(report.as_json()["total_us"]["256"]["churn"].values()) == 330
