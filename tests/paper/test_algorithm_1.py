"""Algorithm 1, the scheduler: its three branches, its batch, and the traps in its pseudo-code."""

from scheduler_svc.core.call import Call
from scheduler_svc.core.call_states import CallState
from scheduler_svc.core.ids import CallId
from tests.unit.scheduler_core.world import World, executor_spec


def lockstep(**config: object) -> World:
    """One seat, one plan at a time, a second a step; K = 3 with quanta 1, 2, 4 and boundaries 1, 3."""
    settings = {"levels": 3, "first_quantum_s": 1.0, "starvation_beta": None} | config
    return World(executors=[executor_spec(max_num_seqs=1, max_plans_in_flight=1)], **settings)


def live(world: World, call_id: CallId) -> Call:
    call = world.core.registry.live(call_id)
    assert call is not None
    return call


def test_arrival_goes_to_the_queue_whose_range_holds_the_programs_service() -> None:
    """Alg. 1, 1: queue i with lo_i <= service < hi_i; Q1 starts at 0, QK is unbounded."""
    for served, level in ((0, 0), (1, 1), (2, 1), (3, 2), (50, 2)):
        world = lockstep()
        world.open("p")
        if served:
            world.submit("p", prompt=2, max_tokens=served)
            world.run()
        assert live(world, world.submit("p")).level == level


def test_a_used_up_quantum_demotes_by_one_queue_with_that_queues_quantum() -> None:
    """Alg. 1, 2: quantum used up -> next lower queue, its quantum."""
    world = lockstep()
    world.open("p")
    call = live(world, world.submit("p", prompt=2, max_tokens=20))
    levels = []
    for _ in range(8):
        world.turn()
        levels.append(call.level)
    assert levels == [1, 1, 2, 2, 2, 2, 2, 2], "no demotion below QK"


def test_a_finished_call_updates_the_table_and_is_gone_before_it_could_be_demoted() -> None:
    """Alg. 1, 2: the finished branch does not fall through."""
    world = lockstep()
    world.open("p")
    world.submit("p", prompt=2, max_tokens=1)
    world.turn()
    assert world.core.programs()[0].finished_calls == 1
    executor = next(iter(world.core.fleet))
    assert len(executor.queue) == 0


def test_starvation_promotes_to_q1_at_beta() -> None:
    """Alg. 1, 2: (W_program + W_call) / (T_program + T_call) >= beta -> Q1."""
    world = lockstep(starvation_beta=4.0)
    world.open("old")
    world.submit("old", prompt=2, max_tokens=2)
    world.run()
    world.open("other")
    world.submit("other", prompt=2, max_tokens=40)
    call = live(world, world.submit("old", prompt=2, max_tokens=5))
    world.plan()
    world.pass_time(7.9)
    assert call.level == 1, "7.9 s waited over 2 s of service"
    world.pass_time(0.1)
    assert call.level == 0


def test_promotion_gives_quantum_and_keeps_the_service_counters() -> None:
    """Trap: zeroing the call's counters would lose service; promotion must set queue and quantum."""
    world = lockstep(starvation_beta=2.0)
    world.open("p")
    world.open("q")
    call_id = world.submit("p", prompt=2, max_tokens=20)
    call = live(world, call_id)
    for _ in range(2):
        world.turn()
    world.submit("q", prompt=2, max_tokens=20)
    world.turn()
    assert (call.state, call.level) == (CallState.QUEUED, 1)
    world.pass_time(10.0)
    assert (call.level, call.quantum_used_ps, call.service_s) == (0, 0, 2.0)
    assert world.core.statistics().promotions == 1
    world.run()
    assert world.finished[call_id].service_s == 20.0
    assert world.core.programs()[0].attained_service_s == 20.0


def test_no_promotion_from_q1_and_no_division_by_zero() -> None:
    """Traps: a call of Q1 has nowhere to go; a program without service has T = 0."""
    world = lockstep(starvation_beta=0.001)
    world.open("p")
    call = live(world, world.submit("p"))
    world.pass_time(1000.0)
    assert call.level == 0
    assert world.core.statistics().promotions == 0


def test_the_batch_walks_the_queues_in_order() -> None:
    """Alg. 1, 3: Q1..QK; a call that ran and is not in the new batch is preempted."""
    world = lockstep()
    for program in ("old", "new"):
        world.open(program)
    world.submit("old", prompt=2, max_tokens=1)
    world.run()
    old = world.submit("old", prompt=2, max_tokens=3)
    world.turn()
    new = world.submit("new", prompt=2, max_tokens=1)
    world.plan()
    assert world.batch() == [new]
    assert live(world, old).preemptions == 1


def test_the_batch_stops_at_the_first_misfit() -> None:
    """Alg. 1, 3: append while it fits, stop at the first that does not."""
    spec = executor_spec(num_blocks=9, max_model_len=32, max_num_batched_tokens=64, max_plans_in_flight=1)
    world = World(executors=[spec])
    world.open("p")
    fits = world.submit("p", prompt=20, max_tokens=2)
    world.submit("p", prompt=20, max_tokens=2)
    world.submit("p", prompt=2, max_tokens=2)
    world.plan()
    assert world.batch() == [fits]
