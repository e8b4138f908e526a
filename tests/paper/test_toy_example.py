"""The toy example of the paper, Figure 2: four programs, a batch of two, unit steps."""

from scheduler_svc.core.ids import CallId
from tests.unit.scheduler_core.world import World, executor_spec

PROGRAMS = {"A": (4, 3, 1, 1), "B": (3, 3, 4), "C": (1, 2), "D": (4,)}


def total_waiting_s(policy: str) -> float:
    """Runs the example and adds up what the calls waited."""
    spec = executor_spec(max_num_seqs=2, max_plans_in_flight=1)
    world = World(executors=[spec], policy=policy)
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


def test_fcfs_waits_18() -> None:
    """Figure 2: FCFS waits 18 units in total."""
    assert total_waiting_s("fcfs") == 18.0


def test_plas_waits_less() -> None:
    """Figure 2: PLAS waits less than FCFS. Its figure of 12 needs round-robin inside the last queue, which
    the order by program arrival replaces here."""
    assert total_waiting_s("plas") < 18.0
