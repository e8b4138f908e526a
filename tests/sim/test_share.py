"""The share of the simulation that every test run pays for: many seeds, all faults, invariants checked.

A part of the share has them checked after every event, the rest now and then, for more steps in the same
time. A failure names the seed and the episode, to be repeated by `python -m sim`.
"""

import ast
from dataclasses import fields
from pathlib import Path

import pytest

import sim
from scheduler_svc.core.config import CoreConfig
from sim.draws import OPTIONS
from sim.episode import EpisodeOptions
from sim.run import RunOptions, expect_all, run
from sim.tally import LONG_RUN_CALL_STEPS, Tally


@pytest.mark.parametrize("seed", [101, 102, 103, 104])
def test_every_event_checked(seed: int) -> None:
    run(RunOptions(seed=seed, call_steps=6_000), EpisodeOptions(with_faults=True, check_every=1))


def test_a_long_run_exercises_everything() -> None:
    """The larger part of the share. It is short enough for a rare thing or two not to come up."""
    tally = run(RunOptions(seed=7, call_steps=160_000), EpisodeOptions(with_faults=True, check_every=101))
    assert len(tally.unseen()) <= 2, tally.unseen()
    assert tally.counts["core.calls_submitted"] > 3000


def test_without_faults_nothing_goes_wrong_for_a_call() -> None:
    tally = run(RunOptions(seed=5, call_steps=10_000), EpisodeOptions(with_faults=False, check_every=11))
    assert not [name for name in tally.counts if name.startswith(("fault.", "protocol.", "cancel.CLIENT"))]
    assert tally.counts["end.EXECUTOR_FAILED"] == 0
    assert tally.counts["end.LENGTH"] > 100


def test_a_run_that_lacks_something_says_so() -> None:
    tally = Tally()
    expect_all(tally, with_faults=True)
    assert tally.missing() == []
    tally.work.call_steps = LONG_RUN_CALL_STEPS
    assert "fault.executor lost" in tally.missing()
    tally.add("fault", "executor lost")
    assert "fault.executor lost" not in tally.missing()


def test_every_option_of_the_core_is_drawn() -> None:
    assert set(OPTIONS) == {field.name for field in fields(CoreConfig)}


def test_the_simulation_knows_the_core_and_nothing_else() -> None:
    """It would prove nothing about the core if it went through the shell, and it needs no library."""
    folder = Path(sim.__file__).parent
    modules = [
        node.module
        for path in sorted(folder.glob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module
    ]
    ours = [name for name in modules if name.startswith(("scheduler_svc", "svc_runtime", "tests", "bench"))]
    assert [
        name for name in ours if not name.startswith(("scheduler_svc.core", "svc_runtime.block_hashes"))
    ] == []
