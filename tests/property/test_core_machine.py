"""Any story about the whole core: whatever happens, every call generates what it would generate alone.

The executors' tokens depend on every byte of KV that a plan points to (see `obedient_executor`), so a block
given to two calls, published too early, shared across tenants or resumed from the wrong place ends in a wrong
token. All invariants of the core are checked after every event, and its books against a second bookkeeper's.
In the end nothing more happens, and every call must end within a bounded number of steps.

`pytest --hypothesis-profile=long` tells many more stories.
"""

from collections.abc import Mapping
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from scheduler_svc.core.events import CancelReason, FrontendLost, ProgramCancelled, ProgramEnded
from scheduler_svc.core.ids import FrontendId, TenantId
from tests.property.core_options import (
    CALL,
    CORE,
    EXECUTOR,
    EXECUTORS,
    FRONTENDS,
    POLICY_CHANGES,
    PROGRAMS,
    SYSTEM_PROMPT,
    TENANTS,
    Options,
)
from tests.property.core_world import CoreWorld

Drawn = dict[str, Any]


def drawn(options: Options) -> st.SearchStrategy[Drawn]:
    return st.fixed_dictionaries({name: st.sampled_from(values) for name, values in options.items()})


def some_of(options: Options) -> st.SearchStrategy[Drawn]:
    return st.fixed_dictionaries({}, optional={n: st.sampled_from(v) for n, v in options.items()})


tenants = st.sampled_from(TENANTS)
programs = st.integers(0, PROGRAMS - 1).map(lambda number: f"program-{number}")
lengths = st.integers(1, 40)
prompts = st.one_of(lengths, lengths.map(lambda length: SYSTEM_PROMPT[:length]))
parents = st.lists(st.sampled_from([0, 1, 2, 3, 9, 10]), max_size=2)
ways_to_end = st.sampled_from([ProgramEnded, ProgramCancelled])
cancel_reasons = st.sampled_from([CancelReason.CLIENT, CancelReason.STOP_STRING])


class CoreMachine(RuleBasedStateMachine):
    """Rules are what may happen to a scheduler; `CoreWorld` checks what must hold."""

    @initialize(options=drawn(CORE), spec=drawn(EXECUTOR), look_every=st.sampled_from([1, 1, 7]))
    def start(self, options: Drawn, spec: Drawn, look_every: int) -> None:
        self.world = CoreWorld(options, look_every=look_every)
        self.world.join_drawn("executor-1", spec)
        for tenant in TENANTS:
            self.world.open_program(tenant, "program-0")

    # ── programs and calls ──────────────────────────────────────────────────────────────────────────

    @rule(tenant=tenants, program=programs, single_call=st.booleans())
    def open_program(self, tenant: TenantId, program: str, single_call: bool) -> None:
        self.world.open_program(tenant, program, single_call=single_call)

    @rule(program=programs, prompt=prompts, values=drawn(CALL), parents=parents)
    def submit(
        self, program: str, prompt: int | list[int], values: Mapping[str, Any], parents: list[int]
    ) -> None:
        self.world.submit_drawn(program, prompt, values, parents)

    @precondition(lambda self: self.world.specs)
    @rule(data=st.data(), reason=cancel_reasons)
    def cancel(self, data: st.DataObject, reason: CancelReason) -> None:
        self.world.cancel(data.draw(st.sampled_from(sorted(self.world.specs))), reason)

    @precondition(lambda self: self.world.specs)
    @rule(data=st.data())
    def fail_soon(self, data: st.DataObject) -> None:
        self.world.fail_soon(data.draw(st.sampled_from(sorted(self.world.specs))))

    @precondition(lambda self: self.world.finished)
    @rule(data=st.data())
    def acknowledge(self, data: st.DataObject) -> None:
        self.world.acknowledge(data.draw(st.sampled_from(sorted(self.world.finished))))

    @rule(tenant=tenants, program=programs, how=ways_to_end)
    def end_program(
        self, tenant: TenantId, program: str, how: type[ProgramEnded] | type[ProgramCancelled]
    ) -> None:
        self.world.end_program(tenant, program, how)

    @rule(frontend=st.sampled_from(FRONTENDS[1:]))
    def lose_frontend(self, frontend: FrontendId) -> None:
        self.world.feed(FrontendLost(frontend_id=frontend))

    # ── executors, policy, time ─────────────────────────────────────────────────────────────────────

    @rule(executor=st.sampled_from(EXECUTORS), spec=drawn(EXECUTOR), step_s=st.sampled_from([0.01, 1.0]))
    def join(self, executor: str, spec: Drawn, step_s: float) -> None:
        self.world.join_drawn(executor, spec, step_s)

    @precondition(lambda self: self.world.executors)
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        self.world.lose(data.draw(st.sampled_from(sorted(self.world.executors))))

    @precondition(lambda self: self.world.executors)
    @rule(data=st.data())
    def drain(self, data: st.DataObject) -> None:
        self.world.drain(data.draw(st.sampled_from(sorted(self.world.executors))))

    @precondition(lambda self: self.world.to_prepare)
    @rule(error=st.sampled_from(["", "", "broken on purpose"]))
    def prepare(self, error: str) -> None:
        self.world.prepare_one(error=error)

    @rule(changes=some_of(POLICY_CHANGES))
    def change_policy(self, changes: Drawn) -> None:
        self.world.change_policy(changes)

    @rule()
    def plan(self) -> None:
        self.world.plan()

    @rule(turns=st.integers(1, 6))
    def run_on(self, turns: int) -> None:
        for _ in range(turns):
            self.world.turn()

    @rule(seconds=st.sampled_from([0.0, 0.5, 3.0, 15.0, 31.0, 601.0]))
    def pass_time(self, seconds: float) -> None:
        self.world.pass_time(seconds)

    # ── the end of the story ────────────────────────────────────────────────────────────────────────

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        self.world.join_drawn("executor-1", {"max_num_seqs": 2})
        self.world.finish()
        self.world.check_outputs()


CoreMachine.TestCase.settings = settings(
    max_examples=settings().max_examples, stateful_step_count=50, deadline=None
)
TestCoreMachine = CoreMachine.TestCase
