"""Algorithm 1 to the letter: the `paper` preset, line by line, and each trap of its pseudo-code."""

import pytest

from scheduler_svc.core.call import Call
from scheduler_svc.core.call_states import CallState
from scheduler_svc.core.config import PRESETS
from scheduler_svc.core.events import PolicyChanged
from scheduler_svc.core.ids import CallId
from tests.unit.scheduler_core.world import World, assert_right_outputs, executor_spec


def paper_world(*, seats: int = 1, **config: object) -> World:
    """Lockstep, a second a step; K = 3 with quanta 1, 2, 4 and boundaries 1, 3."""
    constants = {"policy": "plas", "levels": 3, "first_quantum_s": 1.0, "starvation_beta": None}
    spec = executor_spec(max_num_seqs=seats, max_plans_in_flight=1)
    return World(executors=[spec], **(constants | PRESETS["paper"] | config))


def live(world: World, call_id: CallId) -> Call:
    call = world.core.registry.live(call_id)
    assert call is not None
    return call


def order(world: World) -> list[str]:
    """Call ids in the order of the queues, batch and waiting calls alike."""
    return [call.spec.call_id for call in next(iter(world.core.fleet)).queue.walk()]


def submit_each(world: World, *programs: str, **changes: object) -> list[CallId]:
    """A call of each of these new programs."""
    for program in programs:
        world.open(program)
    return [world.submit(program, **({"prompt": 2, "max_tokens": 9} | changes)) for program in programs]


def test_line_1_an_arriving_call_goes_to_the_tail_of_its_queue() -> None:
    """Alg. 1, 1: a call that arrives goes behind all calls of its queue, whatever program it belongs to."""
    world = paper_world()
    world.open("early")
    late = submit_each(world, "late-1", "late-2")
    last = world.submit("early", prompt=2)
    assert order(world) == [*late, last]


def test_line_1_service_is_wall_time_of_the_program() -> None:
    """Alg. 1, 1: queue i with lo_i <= service < hi_i, service being model-executor seconds."""
    world = paper_world()
    world.open("p")
    world.submit("p", prompt=2, max_tokens=1)
    next(iter(world.executors.values())).step_s = 2.5
    world.run()
    assert live(world, world.submit("p")).level == 1


def test_line_2_demotion_goes_to_the_tail_of_the_next_queue() -> None:
    """Alg. 1, 2: quantum used up -> tail of the next lower queue, behind those that were there."""
    world = paper_world(seats=2)
    a, b, c = submit_each(world, "a", "b", "c")
    world.turn()
    assert order(world) == [c, a, b]
    world.turn()
    assert order(world) == [a, b, c], "a ran beside c and keeps its place; c enters behind b"
    assert [live(world, call).level for call in (a, b, c)] == [1, 1, 1]


def test_line_2_the_last_queue_takes_turns() -> None:
    """Alg. 1, 2: at the last queue there is no lower one: a used-up quantum sends a call to its tail."""
    world = paper_world(first_quantum_s=1.0, quantum_ratio=1.0, levels=1)
    a, b, c = submit_each(world, "a", "b", "c")
    served = []
    for _ in range(7):
        world.plan()
        served.append(*world.batch())
        world.turn()
    assert served == [a, b, c, a, b, c, a]


def test_line_2_demotions_come_before_the_arrivals_of_the_same_step() -> None:
    """Alg. 1, 2 before the next 1: a call that used up its quantum in a step stands before a call that its
    results cause."""
    world = paper_world(seats=2, level_boundaries_s=(1.0, 3.0))
    (first,) = submit_each(world, "a", max_tokens=1)
    (other,) = submit_each(world, "b")
    world.turn()
    assert first in world.finished
    next_call = world.submit("a", prompt=2)
    assert live(world, next_call).level == live(world, other).level == 1
    assert order(world) == [other, next_call]


def test_line_2_promotion_goes_to_the_tail_of_q1() -> None:
    """Alg. 1, 2: (W_program + W_call) / (T_program + T_call) >= beta -> Q1."""
    world = paper_world(starvation_beta=3.0)
    (starving,) = submit_each(world, "p")
    world.turn()
    in_q1 = submit_each(world, "q", "r", max_tokens=40)
    world.plan()
    world.pass_time(2.9)
    assert live(world, starving).level == 1
    world.pass_time(0.1)
    assert (live(world, starving).level, live(world, starving).quantum_used_ps) == (0, 0)
    assert order(world) == [*in_q1, starving]


def test_line_3_the_order_alone_decides_who_runs() -> None:
    """Alg. 1, 3: the batch is the head of the queues; a running call has no right of way against a call of
    its own queue that stands before it."""
    world = paper_world(quantum_ratio=2.0)
    a, b = submit_each(world, "a", "b")
    world.turn()
    world.turn()
    assert [live(world, call).level for call in (a, b)] == [1, 1]
    c = submit_each(world, "c")[0]
    world.turn()
    assert order(world) == [a, b, c]
    world.plan()
    assert world.batch() == [a]
    world.turn()
    world.turn()
    assert live(world, a).level == 2
    world.plan()
    assert world.batch() == [b]


def test_line_3_a_preempted_call_keeps_its_place_in_line() -> None:
    """Alg. 1, 3: leaving the batch is not leaving the queue."""
    world = paper_world()
    a, b = submit_each(world, "a", "b", max_tokens=20)
    for _ in range(2):
        world.turn()
    world.turn()
    assert live(world, a).state is CallState.RUNNING, "at the head of Q2, its quantum half used"
    (c,) = submit_each(world, "c", max_tokens=1)
    world.plan()
    assert world.batch() == [c]
    assert live(world, a).state is CallState.QUEUED
    assert order(world) == [c, a, b]


class TestTraps:
    def test_promotion_loses_no_service(self) -> None:
        """Trap: zeroing the call's model time at promotion would lose it for the program."""
        world = paper_world(starvation_beta=2.0)
        world.open("p")
        starving = world.submit("p", prompt=2, max_tokens=20)
        world.turn()
        submit_each(world, "q", max_tokens=30)
        world.plan()
        world.pass_time(2.0)
        assert (live(world, starving).level, live(world, starving).service_s) == (0, 1.0)
        world.run()
        assert world.finished[starving].service_s == 20.0

    def test_further_quanta_do_not_wait_for_the_programs_past(self) -> None:
        """Trap: if only the call's counters began anew at promotion, every further quantum would wait beta
        times all that the program ever used."""
        beta = 5.0
        world = paper_world(starvation_beta=beta)
        world.open("p")
        world.submit("p", prompt=2, max_tokens=50)
        world.run()
        starving = live(world, world.submit("p", prompt=2, max_tokens=50))
        submit_each(world, *(f"flood-{i}" for i in range(4)), max_tokens=100)
        world.pass_time(beta * 50)
        assert starving.level == 0
        waited_s = starving.waiting_s(world.now)
        while starving.service_s == 0 or starving.level == 0:
            world.turn()
        submit_each(world, *(f"fresh-{i}" for i in range(300)), max_tokens=1)
        while starving.level > 0:
            world.pass_time(0.0)
            world.turn()
        assert starving.waiting_s(world.now) - waited_s == pytest.approx(beta * 1.0, abs=1.0)

    def test_nothing_falls_out_of_the_last_queue_and_nothing_rises_from_the_first(self) -> None:
        """Traps: no demotion below QK, no promotion from Q1, T = 0 divides by nothing."""
        world = paper_world(starvation_beta=0.001)
        calls = submit_each(world, "a", "b", max_tokens=30)
        world.pass_time(100.0)
        assert [live(world, call).level for call in calls] == [0, 0]
        assert world.core.statistics().promotions == 0
        for _ in range(20):
            world.turn()
            assert all(call.level <= 2 for call in world.core.registry.all_live())
        world.run()
        assert_right_outputs(world)

    def test_a_finished_call_is_in_no_queue(self) -> None:
        """Trap: the finished branch must not fall through to demotion."""
        world = paper_world()
        (call,) = submit_each(world, "a", max_tokens=1)
        world.turn()
        assert call in world.finished
        assert order(world) == []


def test_the_preset_can_be_chosen_and_taken_back_while_calls_live() -> None:
    """The options of the preset are options like others."""
    world = World(executors=[executor_spec(max_num_seqs=2)], policy="plas", levels=3)
    for preset in ("paper", "default", "paper"):
        submit_each(world, *(f"{preset}-{len(world.specs)}-{i}" for i in range(3)))
        world.turn()
        world.feed(PolicyChanged(changes=PRESETS[preset]))
    world.run()
    assert len(world.finished) == 9
    assert_right_outputs(world)
