"""What every policy must do, run over all of them; then what each promises."""

import pytest

from scheduler_svc.core.config import CoreConfig, Tie
from scheduler_svc.core.policies import POLICIES, LevelTable, Policy, make_policy
from tests.unit.scheduler_core.world import World, executor_spec

ALL = sorted(POLICIES)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("tie", [*Tie])
class TestConformance:
    def test_orders_totally_and_without_change(self, name: str, tie: Tie) -> None:
        world = World(executors=(), policy=name, tie=tie)
        _submit_without_executor(world)
        policy = world.core.policy
        calls = list(world.core.registry.all_live())
        ties = [policy.tie(call) for call in calls]
        assert len(set(ties)) == len(calls), "two calls tie"
        assert {len(key) for key in ties} == {len(ties[0])}, "keys of different shape cannot be compared"
        assert [policy.tie(call) for call in calls] == ties

    def test_every_service_has_a_level_and_more_service_never_a_better_one(self, name: str, tie: Tie) -> None:
        levels = make_policy(CoreConfig(policy=name, tie=tie)).levels
        found = [levels.level_of(service_s / 4) for service_s in range(2000)]
        assert found == sorted(found)
        assert found[0] == 0
        assert found[-1] == levels.last
        assert all(quantum_s > 0 for quantum_s in levels.quanta_s)

    def test_serves_every_call_to_its_end(self, name: str, tie: Tie) -> None:
        world = World(policy=name, tie=tie, first_quantum_s=2.0)
        for program in ("a", "b", "c"):
            world.open(program)
            for length in (3, 9):
                world.submit(program, prompt=5, max_tokens=length)
        world.run()
        assert len(world.finished) == 6

    def test_equal_traffic_gives_equal_plans(self, name: str, tie: Tie) -> None:
        assert _trace(name, tie) == _trace(name, tie)


def _submit_without_executor(world: World) -> None:
    """Two programs whose calls alternate; all wait, since the executor is gone."""
    world.join(executor_spec())
    world.lose()
    for program in ("a", "b"):
        world.open(program)
    for program in ("b", "a", "b", "a"):
        world.submit(program)


def _trace(name: str, tie: Tie) -> object:
    world = World(policy=name, tie=tie, first_quantum_s=2.0)
    for program in ("a", "b", "c"):
        world.open(program)
    for program in ("c", "a", "b", "a", "b", "c"):
        world.submit(program, prompt=6, max_tokens=8)
    world.run()
    return world.plans()


def order(policy: Policy, world: World) -> list[str]:
    calls = sorted(world.core.registry.all_live(), key=policy.tie)
    return [call.program.program_id for call in calls]


def test_fcfs_goes_by_call_arrival_whatever_the_tie_option() -> None:
    for tie in Tie:
        world = World(executors=(), policy="fcfs", tie=tie)
        _submit_without_executor(world)
        assert order(world.core.policy, world) == ["b", "a", "b", "a"]


def test_plas_ties_go_by_program_arrival_unless_told_otherwise() -> None:
    for tie, expected in ((Tie.PROGRAM_ARRIVAL, ["a", "a", "b", "b"]), (Tie.CALL_ARRIVAL, ["b", "a"] * 2)):
        world = World(executors=(), policy="plas", tie=tie)
        _submit_without_executor(world)
        assert order(world.core.policy, world) == expected


def test_levels_begin_where_the_quanta_before_are_used_up() -> None:
    levels = LevelTable.from_config(CoreConfig(levels=4, first_quantum_s=1.0, quantum_ratio=2.0))
    assert levels.quanta_s == (1.0, 2.0, 4.0, 8.0)
    assert levels.begins_s == (0.0, 1.0, 3.0, 7.0)
    assert [levels.level_of(s) for s in (0.0, 0.99, 1.0, 2.99, 3.0, 7.0, 1e9)] == [0, 0, 1, 1, 2, 3, 3]


def test_boundaries_can_be_given() -> None:
    levels = LevelTable.from_config(CoreConfig(levels=3, level_boundaries_s=(2.0, 5.0)))
    assert levels.begins_s == (0.0, 2.0, 5.0)


@pytest.mark.parametrize("boundaries", [(1.0,), (1.0, 1.0), (2.0, 1.0), (0.0, 1.0), (-1.0, 1.0)])
def test_bad_boundaries_are_named(boundaries: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="level_boundaries_s"):
        LevelTable.from_config(CoreConfig(levels=3, level_boundaries_s=boundaries))


def test_an_unknown_policy_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"policy must be one of fcfs, plas, got 'lottery'"):
        make_policy(CoreConfig(policy="lottery"))


@pytest.mark.parametrize(
    ("field", "value"),
    [("levels", 0), ("first_quantum_s", 0.0), ("quantum_ratio", 0.5), ("starvation_beta", 0.0),
     ("idle_timeout_s", 0.0), ("live_calls_max", 0), ("short_prompt_tokens", -1)],
)  # fmt: skip
def test_a_bad_setting_names_its_field(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        CoreConfig(**{field: value})  # type: ignore[arg-type]
