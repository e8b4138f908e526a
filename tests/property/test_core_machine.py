"""Random traffic over the whole core: whatever happens, every call generates what it would generate alone.

The executors' tokens depend on every byte of KV that a plan points to (see `obedient_executor`), so a block
given to two calls, published too early, or resumed from the wrong place ends in a wrong token. All invariants
of the core are checked after every event.
"""

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from scheduler_svc.core.config import Fit, ServiceUnit, Tie
from scheduler_svc.core.effects import FinishReason
from scheduler_svc.core.events import (
    CancelReason,
    ExecutorDrainRequested,
    FrontendLost,
    PolicyChanged,
    ProgramCancelled,
    ProgramEnded,
)
from scheduler_svc.core.ids import ExecutorId, FrontendId, ProgramId
from scheduler_svc.core.policies import POLICIES
from tests.unit.scheduler_core.obedient_executor import VOCAB_SIZE, expected_output
from tests.unit.scheduler_core.world import TENANT, World, executor_spec

MAX_MODEL_LEN = 64
SYSTEM_PROMPT = [(13 * i) % VOCAB_SIZE for i in range(40)]
"""Calls that start with the same tokens share blocks."""
EXECUTORS = ("executor-1", "executor-2")
FRONTENDS = ("frontend-1", "frontend-2")

specs = st.fixed_dictionaries(
    {
        "num_blocks": st.sampled_from([17, 24, 60]),
        "max_num_seqs": st.sampled_from([1, 2, 4]),
        "max_num_batched_tokens": st.sampled_from([4, 9, 64]),
        "max_plans_in_flight": st.sampled_from([1, 2, 3]),
        "prefix_caching": st.booleans(),
    }
)
calls = st.fixed_dictionaries(
    {
        "max_tokens": st.integers(1, 24),
        "eos_token_id": st.sampled_from([None, 5, 250]),
        "stop_token_ids": st.sampled_from([frozenset(), frozenset(range(0, VOCAB_SIZE, 9))]),
        "min_tokens": st.sampled_from([0, 0, 1]),
        "needs_preparation": st.sampled_from([False, False, True]),
        "skip_reading_prefix_cache": st.sampled_from([False, False, True]),
        "cache_salt": st.sampled_from(["", "", "salt"]),
        "deadline_s": st.sampled_from([None, None, 20.0]),
        "frontend_id": st.sampled_from([FrontendId(name) for name in FRONTENDS]),
    }
)
policies = st.sampled_from(list(POLICIES))
policy_changes = st.fixed_dictionaries(
    {},
    optional={
        "policy": policies,
        "tie": st.sampled_from([*Tie]),
        "service_unit": st.sampled_from([*ServiceUnit]),
        "running_first": st.booleans(),
        "fit": st.sampled_from([*Fit]),
        "first_quantum_s": st.sampled_from([1.0, 3.0]),
        "starvation_beta": st.sampled_from([None, 1.5]),
        "preemption_grace_s": st.sampled_from([0.0, 0.05, 5.0]),
    },
)
prompts = st.one_of(st.integers(1, 40), st.integers(1, 40).map(lambda length: SYSTEM_PROMPT[:length]))


class CoreMachine(RuleBasedStateMachine):
    """Rules are what may happen to a scheduler; `world` checks the invariants after each."""

    @initialize(
        policy=policies,
        quantum_s=st.sampled_from([1.0, 3.0, 1000.0]),
        beta=st.sampled_from([None, 1.5, 10.0]),
        short=st.sampled_from([0, 10, 2048]),
        spec=specs,
    )
    def start(
        self, policy: str, quantum_s: float, beta: float | None, short: int, spec: dict[str, Any]
    ) -> None:
        self.world = World(
            executors=(),
            policy=policy,
            levels=4,
            first_quantum_s=quantum_s,
            starvation_beta=beta,
            short_prompt_tokens=short,
            executor_losses_max=10**6,
            recent_programs_max=5,
        )
        self.epoch = 0
        self.service_s: dict[str, float] = {}
        self._join("executor-1", spec)
        self.world.open("program-0")

    def _join(self, executor_id: str, spec: dict[str, Any]) -> None:
        self.epoch += 1
        self.world.join(executor_spec(executor_id, epoch=self.epoch, max_model_len=MAX_MODEL_LEN, **spec))

    # ── programs and calls ──────────────────────────────────────────────────────────────────────────

    @rule(number=st.integers(0, 20), single_call=st.booleans())
    def open_program(self, number: int, single_call: bool) -> None:
        if self.world.core.program(TENANT, ProgramId(f"program-{number}")) is None:
            self.world.open(f"program-{number}", single_call=single_call)

    @rule(number=st.integers(0, 6), prompt=prompts, changes=calls)
    def submit(self, number: int, prompt: int | list[int], changes: dict[str, Any]) -> None:
        changes["min_tokens"] = min(changes["min_tokens"], changes["max_tokens"])
        self.world.submit(f"program-{number}", prompt=prompt, **changes)

    @precondition(lambda self: self.world.specs)
    @rule(data=st.data(), reason=st.sampled_from([CancelReason.CLIENT, CancelReason.STOP_STRING]))
    def cancel(self, data: st.DataObject, reason: CancelReason) -> None:
        self.world.cancel(data.draw(st.sampled_from(sorted(self.world.specs))), reason)

    @precondition(lambda self: self.world.finished)
    @rule(data=st.data())
    def acknowledge(self, data: st.DataObject) -> None:
        self.world.acknowledge(data.draw(st.sampled_from(sorted(self.world.finished))))

    @rule(number=st.integers(1, 6), event=st.sampled_from([ProgramEnded, ProgramCancelled]))
    def end_program(self, number: int, event: type) -> None:
        if self.world.core.program(TENANT, ProgramId(f"program-{number}")) is not None:
            self.world.feed(event(tenant=TENANT, program_id=ProgramId(f"program-{number}")))

    @rule(frontend=st.sampled_from(FRONTENDS[1:]))
    def lose_frontend(self, frontend: str) -> None:
        self.world.feed(FrontendLost(frontend_id=FrontendId(frontend)))

    @rule(changes=policy_changes)
    def change_policy(self, changes: dict[str, Any]) -> None:
        assert self.world.feed(PolicyChanged(changes=changes)) == []

    # ── executors and time ──────────────────────────────────────────────────────────────────────────

    @rule(executor=st.sampled_from(EXECUTORS), spec=specs)
    def join(self, executor: str, spec: dict[str, Any]) -> None:
        self._join(executor, spec)

    @precondition(lambda self: self.world.executors)
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        self.world.lose(data.draw(st.sampled_from(sorted(self.world.executors))))

    @precondition(lambda self: self.world.executors)
    @rule(data=st.data())
    def drain(self, data: st.DataObject) -> None:
        executor_id = data.draw(st.sampled_from(sorted(self.world.executors)))
        self.world.feed(ExecutorDrainRequested(executor_id=ExecutorId(executor_id)))

    @rule()
    def plan(self) -> None:
        self.world.plan()
        self._service_only_grows()

    @rule(turns=st.integers(1, 6))
    def run_on(self, turns: int) -> None:
        for _ in range(turns):
            self.world.turn()
        self._service_only_grows()

    @rule(seconds=st.floats(0.0, 15.0))
    def pass_time(self, seconds: float) -> None:
        self.world.pass_time(seconds)

    def _service_only_grows(self) -> None:
        for program in self.world.core.programs():
            before = self.service_s.get(program.program_id, 0.0)
            assert program.attained_service_s >= before
            self.service_s[program.program_id] = program.attained_service_s

    # ── the end of the story ────────────────────────────────────────────────────────────────────────

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        self._join("executor-1", {"max_num_seqs": 2})
        self.world.run()
        assert self.world.core.statistics().live_calls == 0
        assert not [close for close in self.world.closed if not close.drained]
        for call_id in self.world.specs:
            self._check_output(call_id)

    def _check_output(self, call_id: Any) -> None:
        world = self.world
        output, expected = world.outputs[call_id], expected_output(world.specs[call_id])
        end = world.finished.get(call_id)
        assert end is not None or call_id in world.refused
        assert output == expected[: len(output)], "a wrong, lost or doubled token"
        if end is not None and end.reason is FinishReason.LENGTH:
            assert output == expected


CoreMachine.TestCase.settings = settings(max_examples=80, stateful_step_count=50, deadline=None)
TestCoreMachine = CoreMachine.TestCase
