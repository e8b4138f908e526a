"""What every policy must do under every option, run over all of them; then what each promises."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from scheduler_svc.core.call import Call
from scheduler_svc.core.config import CoreConfig, Fit, ServiceUnit, Tie
from scheduler_svc.core.events import PolicyChanged
from scheduler_svc.core.ids import ProgramId
from scheduler_svc.core.policies import FOREVER_PS, POLICIES, LevelTable, Policy, make_policy
from scheduler_svc.core.prices import PS_PER_S
from scheduler_svc.core.queues import MultilevelQueue
from tests.unit.scheduler_core.test_queues import make_call, make_program
from tests.unit.scheduler_core.world import (
    TENANT,
    World,
    assert_right_outputs,
    executor_spec,
)

ALL = list(POLICIES)
BY_LEVEL = [name for name in ALL if name not in ("fcfs", "program_fcfs")]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("tie", [*Tie])
@pytest.mark.parametrize("unit", [*ServiceUnit])
@pytest.mark.parametrize("running_first", [True, False])
class TestConformance:
    @pytest.fixture
    def options(self, name: str, tie: Tie, unit: ServiceUnit, running_first: bool) -> dict[str, object]:
        return {"policy": name, "tie": tie, "service_unit": unit, "running_first": running_first}

    def test_orders_totally_and_without_change(self, options: dict[str, object]) -> None:
        world = World(executors=(), **options)
        _submit_without_executor(world)
        policy = world.core.policy
        calls = list(world.core.registry.all_live())
        ties = [policy.tie(call, number) for number, call in enumerate(calls)]
        assert len(set(ties)) == len(calls), "two calls tie"
        assert {len(key) for key in ties} == {len(ties[0])}, "keys of different shape cannot be compared"
        assert [policy.tie(call, number) for number, call in enumerate(calls)] == ties
        levels = [policy.level_at_arrival(call) for call in calls]
        assert [policy.level_at_arrival(call) for call in calls] == levels, "asking changes nothing"

    def test_every_level_has_a_quantum_and_a_way_on(self, options: dict[str, object]) -> None:
        policy = make_policy(CoreConfig(**options))  # type: ignore[arg-type]
        call = make_call(1)
        for level in range(len(policy.levels)):
            assert 0 < policy.quantum_ps(level) <= FOREVER_PS
            call.level = level
            assert 0 <= policy.level_after_quantum(call) <= policy.levels.last

    def test_reads_its_own_unit_only(self, options: dict[str, object], unit: ServiceUnit) -> None:
        policy = make_policy(CoreConfig(**options))  # type: ignore[arg-type]
        assert policy.unit is unit
        call = make_call(1)
        _use(call, ServiceUnit.SECONDS if unit is ServiceUnit.COST else ServiceUnit.COST, 10**6 * PS_PER_S)
        assert policy.level_at_arrival(call) == policy.level_of_next(call.program) == 0

    def test_serves_every_call_to_its_end(self, options: dict[str, object]) -> None:
        world = World(first_quantum_s=2.0, **options)
        for program in ("a", "b", "c"):
            world.open(program)
            for length in (3, 9):
                world.submit(program, prompt=5, max_tokens=length)
        world.run()
        assert len(world.finished) == 6
        assert_right_outputs(world)

    def test_equal_traffic_gives_equal_plans(self, options: dict[str, object]) -> None:
        assert _trace(options) == _trace(options)

    def test_a_change_to_it_and_back_loses_nothing(self, options: dict[str, object]) -> None:
        world = World(policy="fcfs", first_quantum_s=2.0)
        for program in ("a", "b", "c"):
            world.open(program)
            for length in (3, 9, 5):
                world.submit(program, prompt=5, max_tokens=length)
        for changes in (options, {"policy": "mlfq"}, options):
            world.turn()
            before = _standing(world)
            assert world.feed(PolicyChanged(changes=changes)) == []
            assert _standing(world) == before
            for call in world.core.registry.all_live():
                assert call.level == world.core.policy.level_at_arrival(call)
                assert call.quantum_used_ps == 0
        assert world.core.statistics().policy == options["policy"]
        world.run()
        assert len(world.finished) == 9
        assert_right_outputs(world)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("running_first", [True, False])
def test_a_step_costs_no_more_comparisons_however_many_wait(name: str, running_first: bool) -> None:
    policy = make_policy(CoreConfig(policy=name, running_first=running_first))
    few, many = (_comparisons(policy, waiting) for waiting in (100, 10_000))
    assert many <= 2 * few, "logarithmic: log(10,000) = 2 log(100)"


def _submit_without_executor(world: World) -> None:
    """Two programs whose calls alternate; all wait, since the executor is gone."""
    world.join(executor_spec())
    world.lose()
    for program in ("a", "b"):
        world.open(program)
    for program in ("b", "a", "b", "a"):
        world.submit(program)


def _standing(world: World) -> list[tuple[object, ...]]:
    """What must not change with the policy."""
    return [
        (call.spec.call_id, call.state, call.service_ps, call.computed, call.in_flight, list(call.blocks))
        for call in world.core.registry.all_live()
    ]


def _trace(options: dict[str, object]) -> object:
    world = World(first_quantum_s=2.0, **options)
    for program in ("a", "b", "c"):
        world.open(program)
    for program in ("c", "a", "b", "a", "b", "c"):
        world.submit(program, prompt=6, max_tokens=8)
    world.run()
    return world.plans()


def _use(call: Call, unit: ServiceUnit, used_ps: int) -> None:
    """Makes `call` the next one of a program whose calls have used this much."""
    program = call.program
    if unit is ServiceUnit.COST:
        program.cost_ps = program.completed_cost_ps = used_ps
        program.path = replace(program.path, cost_ps=used_ps)
    else:
        program.service_ps = program.completed_service_ps = used_ps
        program.path = replace(program.path, service_ps=used_ps)
    call.entry_path = program.path


class Counted(int):
    """A number that counts how often it is compared."""

    comparisons = 0

    def __lt__(self, other: int) -> bool:
        Counted.comparisons += 1
        return int(self) < int(other)

    def __eq__(self, other: object) -> bool:
        Counted.comparisons += 1
        return int(self) == other

    def __hash__(self) -> int:
        return int.__hash__(self)


class CountingPolicy:
    """A policy whose keys count their comparisons."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.running_first = policy.running_first

    def tie(self, call: Call, enqueued: int) -> tuple[int, ...]:
        return tuple(Counted(part) for part in self._policy.tie(call, enqueued))


def _comparisons(policy: Policy, waiting: int) -> int:
    """Of everything that a step may do to the queue, beside so many waiting calls."""
    queue = MultilevelQueue(CountingPolicy(policy))  # type: ignore[arg-type]
    program = make_program()
    for seq in range(waiting):
        queue.add(make_call(seq, program=program))
    runners = [make_call(seq, running=True, program=program) for seq in range(waiting, waiting + 8)]
    for call in runners:
        queue.add(call)
    Counted.comparisons = 0
    first = queue.waiting_first()
    assert first is not None
    queue.to_tail(first)
    queue.to_tail(runners[0])
    queue.discard(runners[1])
    queue.add(runners[1])
    assert sum(1 for _ in _first(10, queue.walk())) == 10
    assert sum(1 for _ in _first(10, queue.waiting())) == 10
    assert queue.level_counts(1) == [waiting + 8]
    assert queue.running_upto(0) == 8
    return Counted.comparisons


def _first(count: int, calls: Iterator[Call]) -> Iterator[Call]:
    return (call for call, _ in zip(calls, range(count), strict=False))


# ── what each promises ──────────────────────────────────────────────────────────────────────────────


def order(policy: Policy, world: World) -> list[str]:
    calls = sorted(world.core.registry.all_live(), key=lambda call: policy.tie(call, call.seq))
    return [call.program.program_id for call in calls]


@pytest.mark.parametrize(("name", "expected"), [("fcfs", "baba"), ("program_fcfs", "aabb")])
def test_both_kinds_of_fcfs_are_what_they_say_whatever_the_tie_option(name: str, expected: str) -> None:
    for tie in Tie:
        world = World(executors=(), policy=name, tie=tie)
        _submit_without_executor(world)
        assert order(world.core.policy, world) == list(expected)


@pytest.mark.parametrize("name", BY_LEVEL)
def test_ties_go_by_program_arrival_unless_told_otherwise(name: str) -> None:
    for tie, expected in (
        (Tie.PROGRAM_ARRIVAL, "aabb"),
        (Tie.CALL_ARRIVAL, "baba"),
        (Tie.QUEUE_ARRIVAL, "baba"),
    ):
        world = World(executors=(), policy=name, tie=tie)
        _submit_without_executor(world)
        assert order(world.core.policy, world) == list(expected)


def test_first_in_first_out_goes_by_entry_into_the_level() -> None:
    policy = make_policy(CoreConfig(tie=Tie.QUEUE_ARRIVAL))
    assert policy.tie(make_call(7), 3) < policy.tie(make_call(1), 4)


@pytest.mark.parametrize("name", ["program_fcfs", *BY_LEVEL])
def test_single_anonymous_calls_come_after_identified_programs_of_their_level(name: str) -> None:
    world = World(executors=(), policy=name)
    world.join(executor_spec())
    world.lose()
    world.open("anonymous", single_call=True)
    world.open("agent")
    for program in ("anonymous", "agent"):
        world.submit(program)
    assert order(world.core.policy, world) == ["agent", "anonymous"]


@pytest.mark.parametrize("name", ["plas", "atlas"])
def test_more_service_never_has_a_better_level(name: str) -> None:
    policy = make_policy(CoreConfig(policy=name, service_unit=ServiceUnit.SECONDS))
    found = []
    for quarters in range(2000):
        call = make_call(1)
        _use(call, ServiceUnit.SECONDS, quarters * PS_PER_S // 4)
        found.append(policy.level_at_arrival(call))
        assert policy.level_of_next(call.program) == found[-1]
    assert found == sorted(found)
    assert (found[0], found[-1]) == (0, policy.levels.last)


def test_mlfq_looks_at_the_call_alone() -> None:
    policy = make_policy(CoreConfig(policy="mlfq", service_unit=ServiceUnit.SECONDS))
    call = make_call(1)
    _use(call, ServiceUnit.SECONDS, 10**6 * PS_PER_S)
    assert policy.level_at_arrival(call) == policy.level_of_next(call.program) == 0
    call.service_ps = 3 * PS_PER_S
    assert policy.level_at_arrival(call) == 2, "at a change of policy"


@pytest.mark.parametrize("name", BY_LEVEL)
@pytest.mark.parametrize("seats", [1, 2])
def test_a_flood_of_anonymous_calls_does_not_starve_a_program(name: str, seats: int) -> None:
    """Fresh calls come in at the first level for ever; a program far below still gets its share: not less
    than one part in beta + 1, counted over its life."""
    beta = 10.0
    spec = executor_spec(max_num_seqs=seats, max_plans_in_flight=1)
    world = World(executors=[spec], policy=name, first_quantum_s=1.0, starvation_beta=beta)
    world.open("agent")
    for _ in range(3):
        world.submit("agent", prompt=2, max_tokens=6)
        world.run()
    last = world.submit("agent", prompt=2, max_tokens=6)
    for number in range(1000):
        if last in world.finished:
            break
        world.open(f"anonymous-{number}", single_call=True)
        world.submit(f"anonymous-{number}", prompt=2, max_tokens=seats)
        world.pass_time(0.0)
        world.turn()
    program = world.core.program(TENANT, ProgramId("agent"))
    assert program is not None
    assert last in world.finished, "starved"
    assert program.waiting_s <= beta * program.attained_service_s + 2 * seats


def test_levels_begin_where_the_quanta_before_are_used_up() -> None:
    levels = LevelTable.from_config(CoreConfig(levels=4, first_quantum_s=1.0, quantum_ratio=2.0))
    assert [quantum / PS_PER_S for quantum in levels.quanta_ps[:-1]] == [1.0, 2.0, 4.0]
    assert [begin / PS_PER_S for begin in levels.begins_ps] == [0.0, 1.0, 3.0, 7.0]
    found = [levels.level_of(round(s * PS_PER_S)) for s in (0.0, 0.99, 1.0, 2.99, 3.0, 7.0, 1e9)]
    assert found == [0, 0, 1, 1, 2, 3, 3]


def test_the_last_quantum_is_endless_unless_calls_take_turns() -> None:
    endless = LevelTable.from_config(CoreConfig(levels=3))
    assert endless.quanta_ps[-1] == FOREVER_PS
    turns = LevelTable.from_config(CoreConfig(levels=3, tie=Tie.QUEUE_ARRIVAL))
    assert turns.quanta_ps[-1] == 4 * PS_PER_S


def test_quanta_fit_into_64_bits_whatever_is_asked_for() -> None:
    levels = LevelTable.from_config(CoreConfig(levels=64, first_quantum_s=3600.0, quantum_ratio=100.0))
    assert max(levels.quanta_ps) == FOREVER_PS < 2**63
    assert list(levels.begins_ps) == sorted(set(levels.begins_ps))


def test_boundaries_can_be_given() -> None:
    levels = LevelTable.from_config(CoreConfig(levels=3, level_boundaries_s=(2.0, 5.0)))
    assert levels.begins_ps == (0, 2 * PS_PER_S, 5 * PS_PER_S)


@pytest.mark.parametrize("boundaries", [(1.0,), (1.0, 1.0), (2.0, 1.0), (0.0, 1.0), (-1.0, 1.0)])
def test_bad_boundaries_are_named(boundaries: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="level_boundaries_s"):
        CoreConfig(levels=3, level_boundaries_s=boundaries)


def test_an_unknown_policy_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"policy must be one of fcfs, .*, gittins, got 'lottery'"):
        make_policy(CoreConfig(policy="lottery"))


@pytest.mark.parametrize(
    ("field", "value"),
    [("levels", 0), ("levels", 65), ("first_quantum_s", 0.0), ("first_quantum_s", float("nan")),
     ("quantum_ratio", 0.5), ("starvation_beta", 0.0), ("idle_timeout_s", 0.0), ("live_calls_max", 0),
     ("short_prompt_tokens", -1), ("idle_kv_s", -1.0), ("preemption_grace_s", float("inf"))],
)  # fmt: skip
def test_a_bad_setting_names_its_field(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        CoreConfig(**{field: value})  # type: ignore[arg-type]


def test_defaults_are_what_simulation_found_good() -> None:
    config = CoreConfig()
    assert (config.policy, config.levels) == ("plas", 8)
    assert (config.first_quantum_s, config.quantum_ratio) == (1.0, 2.0)
    assert (config.service_unit, config.tie, config.fit) == (
        ServiceUnit.COST,
        Tie.PROGRAM_ARRIVAL,
        Fit.STRICT,
    )
    assert config.starvation_beta is not None
    assert config.starvation_beta >= 10
