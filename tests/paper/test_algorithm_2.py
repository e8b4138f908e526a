"""Algorithm 2, the load balancer."""

from scheduler_svc.core.events import ExecutorDrainRequested
from scheduler_svc.core.ids import CallId, ExecutorId, ProgramId
from tests.unit.scheduler_core.world import MODEL, TENANT, World, executor_spec

SHORT, LONG = 2048, 2049


def three_executors() -> World:
    specs = [
        executor_spec(name, num_blocks=2000, max_model_len=4096, max_num_batched_tokens=4096)
        for name in ("a", "b", "c")
    ]
    world = World(executors=specs)
    for program in ("p", "q"):
        world.open(program)
    return world


def place_of(world: World, call_id: CallId) -> str:
    call = world.core.registry.live(call_id)
    assert call is not None
    assert call.executor is not None
    return call.executor.executor_id


def test_short_calls_go_to_the_least_used_executor() -> None:
    """Alg. 2: len(tokens) <= 2048 -> the engine with the fewest calls in the system."""
    world = three_executors()
    placed = [place_of(world, world.submit("p", prompt=SHORT)) for _ in range(4)]
    assert placed == ["a", "b", "c", "a"]


def test_long_calls_stay_with_their_programs_executor() -> None:
    """Alg. 2: longer -> the program's engine; none yet -> least used, and pin."""
    world = three_executors()
    world.submit("q", prompt=SHORT)
    placed = [place_of(world, world.submit("p", prompt=LONG)) for _ in range(3)]
    assert placed == ["b", "b", "b"]
    assert place_of(world, world.submit("q", prompt=LONG)) == "c", "another program has its own"


def test_short_calls_never_create_a_pin() -> None:
    """Alg. 2: only long calls pin."""
    world = three_executors()
    assert place_of(world, world.submit("p", prompt=SHORT)) == "a"
    assert place_of(world, world.submit("p", prompt=LONG)) == "b"


def test_short_calls_of_a_pinned_program_still_go_to_the_least_used() -> None:
    """Alg. 2: the length alone decides which rule holds."""
    world = three_executors()
    for _ in range(2):
        world.submit("p", prompt=LONG)
    assert place_of(world, world.submit("p", prompt=SHORT)) == "b"


def test_a_pin_to_an_executor_that_is_gone_or_leaving_is_made_anew() -> None:
    world = three_executors()
    first = world.submit("p", prompt=LONG)
    assert place_of(world, first) == "a"
    world.feed(ExecutorDrainRequested(executor_id=ExecutorId("a")))
    assert place_of(world, world.submit("p", prompt=LONG)) == "b"
    world.lose("b")
    assert place_of(world, world.submit("p", prompt=LONG)) == "c"


def test_use_is_counted_in_calls_of_the_system_waiting_or_running() -> None:
    """Alg. 2: fewest calls, not fewest running ones or fewest tokens; an ended call no longer counts."""
    specs = [executor_spec(name, num_blocks=2000, max_model_len=4096, max_num_seqs=1) for name in ("a", "b")]
    world = World(executors=specs)
    world.open("p")
    first, second = (world.submit("p", prompt=100, max_tokens=1) for _ in range(2))
    third = world.submit("p", prompt=2, max_tokens=50)
    assert [place_of(world, call) for call in (first, second, third)] == ["a", "b", "a"]
    world.turn()
    assert place_of(world, world.submit("p", prompt=2)) == "b", "one runs and one waits on a, one runs on b"
    while second not in world.finished:
        world.turn()
    assert place_of(world, world.submit("p", prompt=2)) == "b"


def test_the_pinned_executor_is_taken_however_much_it_is_used() -> None:
    """Alg. 2: locality goes before balance for long calls."""
    world = three_executors()
    assert place_of(world, world.submit("p", prompt=LONG)) == "a"
    for _ in range(9):
        world.submit("q", prompt=SHORT)
    assert [len(executor.calls) for executor in world.core.fleet] == [4, 3, 3]
    assert place_of(world, world.submit("p", prompt=LONG)) == "a"


def test_only_long_calls_leave_a_pin_in_the_table() -> None:
    """Alg. 2: short calls never create a pin, nor do they move one."""
    world = three_executors()
    program = world.core.table.get(TENANT, ProgramId("p"))
    assert program is not None
    for _ in range(4):
        world.submit("p", prompt=SHORT)
    assert program.pins == {}
    world.submit("p", prompt=LONG)
    assert program.pins == {MODEL: "b"}
    for _ in range(4):
        world.submit("p", prompt=SHORT)
    assert program.pins == {MODEL: "b"}
