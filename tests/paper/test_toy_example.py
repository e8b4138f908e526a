"""The toy example of the paper, Figure 2: four programs, a batch of two, unit steps.

PLAS 12 comes out under the `paper` preset with two levels, a quantum of 1 and a boundary at 2 or 3: a call
that used its quantum goes to the tail, in the last level as well, before the calls that arrive because of
that step. The paper's figure for MLFQ depends on quanta that it does not state: there is no test for it.
"""

import pytest

from scheduler_svc.core.config import PRESETS
from scheduler_svc.core.ids import CallId
from tests.unit.scheduler_core.world import World, executor_spec

PROGRAMS = {"A": (4, 3, 1, 1), "B": (3, 3, 4), "C": (1, 2), "D": (4,)}


def total_waiting_s(**config: object) -> float:
    """Runs the example and adds up what the calls waited."""
    spec = executor_spec(max_num_seqs=2, max_plans_in_flight=1)
    world = World(executors=[spec], starvation_beta=None, **config)
    left = {program: list(lengths) for program, lengths in PROGRAMS.items()}
    current: dict[str, CallId] = {}
    for program in left:
        world.open(program)
        current[program] = world.submit(program, prompt=1, max_tokens=left[program].pop(0))
    while world.turn():
        for program, call in current.items():
            if call in world.finished and left[program]:
                current[program] = world.submit(program, prompt=1, max_tokens=left[program].pop(0))
    assert len(world.finished) == sum(len(lengths) for lengths in PROGRAMS.values())
    return sum(finished.waiting_s for finished in world.finished.values())


def paper(policy: str, boundary_s: float, **changes: object) -> dict[str, object]:
    """The constants that the paper's figures need."""
    constants = {"levels": 2, "first_quantum_s": 1.0, "quantum_ratio": 1.0}
    constants |= {"level_boundaries_s": (boundary_s,)}
    return {"policy": policy, **PRESETS["paper"], **constants} | changes


def test_fcfs_waits_18() -> None:
    """Figure 2: FCFS waits 18 units in total."""
    assert total_waiting_s(policy="fcfs") == 18.0


@pytest.mark.parametrize("boundary_s", [2.0, 3.0])
def test_plas_waits_12(boundary_s: float) -> None:
    """Figure 2: PLAS waits 12 units in total."""
    assert total_waiting_s(**paper("plas", boundary_s)) == 12.0


@pytest.mark.parametrize("boundary_s", [2.0, 3.0])
def test_atlas_waits_as_long_for_chains_of_calls(boundary_s: float) -> None:
    """Priorities: the programs of Figure 2 are chains, for which both formulas are the same."""
    assert total_waiting_s(**paper("atlas", boundary_s)) == 12.0
