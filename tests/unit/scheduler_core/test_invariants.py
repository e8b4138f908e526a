"""The checker must see what it is there for: each test breaks one thing by hand."""

from collections.abc import Callable

import pytest

from scheduler_svc.core.call import Call
from scheduler_svc.core.call_states import CallState
from scheduler_svc.core.invariants import check
from scheduler_svc.core.kv import KvCache
from tests.unit.scheduler_core.world import World


def leak_a_block(call: Call) -> None:
    call.blocks.pop()


def hand_out_twice(call: Call) -> None:
    kv: KvCache = call.executor.kv  # type: ignore[union-attr]
    kv.give_back([call.blocks[0]], (), None)


def lose_from_queue(call: Call) -> None:
    call.executor.queue.discard(call)  # type: ignore[union-attr]


def lose_from_program(call: Call) -> None:
    del call.program.live_calls[call.spec.call_id]


def lose_from_executor(call: Call) -> None:
    del call.executor.calls[call.spec.call_id]  # type: ignore[union-attr]


def skip_a_token(call: Call) -> None:
    call.planned += 1


def count_a_result_twice(call: Call) -> None:
    call.in_flight -= 1


def change_state_in_passing(call: Call) -> None:
    call.state = CallState.PREPARING


def change_level_in_passing(call: Call) -> None:
    call.level = 99


def change_place_in_passing(call: Call) -> None:
    queue = call.executor.queue  # type: ignore[union-attr]
    queue.discard(call)
    queue._file(call, (call.level, 99, 99, 99))


def generate_too_much(call: Call) -> None:
    call.tokens.extend([1] * 99)


def count_service_twice(call: Call) -> None:
    call.program.completed_service_ps += 10**15


@pytest.mark.parametrize(
    "break_it",
    [
        leak_a_block,
        hand_out_twice,
        lose_from_queue,
        lose_from_program,
        lose_from_executor,
        skip_a_token,
        count_a_result_twice,
        change_state_in_passing,
        change_level_in_passing,
        change_place_in_passing,
        generate_too_much,
        count_service_twice,
    ],
)
def test_a_broken_invariant_is_seen(break_it: Callable[[Call], None]) -> None:
    world = World()
    world.open("p")
    call = world.core.registry.live(world.submit("p", prompt=6, max_tokens=20))
    assert call is not None
    world.turn()
    check(world.core)
    break_it(call)
    with pytest.raises(AssertionError):
        check(world.core)
