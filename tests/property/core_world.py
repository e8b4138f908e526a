"""The core, obedient executors and the second bookkeeper; each method is something that may happen.

What is checked: the core's invariants, the bookkeeper's sums, and that nothing is left of what is over (KV of
ended calls under keys of theirs, KV of ended programs, room promised to them). After every event, or seldom:
to look at a call brings its record up to date, which must not be what makes the core work.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from scheduler_svc.core.effects import Effect, FinishReason
from scheduler_svc.core.events import (
    CallPrepared,
    Event,
    ExecutorDrainRequested,
    PolicyChanged,
    ProgramCancelled,
    ProgramEnded,
    ProgramOpened,
)
from scheduler_svc.core.executor import Executor
from scheduler_svc.core.ids import CallId, ExecutorId, ProgramId, TenantId
from scheduler_svc.core.invariants import check
from scheduler_svc.core.process_table import Program
from svc_runtime.block_hashes import DIGEST_BYTES, hash_prompt
from tests.property.bookkeeper import Bookkeeper
from tests.property.core_options import MAX_MODEL_LEN, TENANTS
from tests.unit.scheduler_core.obedient_executor import expected_output
from tests.unit.scheduler_core.world import World, executor_spec


class CoreWorld(World):
    """A world with several tenants, in which anything may happen."""

    def __init__(self, options: Mapping[str, Any], *, look_every: int = 1) -> None:
        """
        Args:
            look_every: Events between two looks at everything.
        """
        super().__init__(executors=(), **options)
        self.books = Bookkeeper(self.core)
        self.epoch = 0
        self._look_every = look_every
        self._events = 0

    def feed(self, event: Event) -> list[Effect]:
        self._events += 1
        self.books.before(event, self.now)
        effects = self.core.handle(event, self.now)
        for effect in effects:
            self._obey(effect)
        self.books.after(event, effects)
        if self._events % self._look_every == 0:
            self.look()
        return effects

    def look(self) -> None:
        """Checks everything that must hold between two events."""
        check(self.core)
        self.books.compare()
        for executor in self.core.fleet:
            check_nothing_is_left(self, executor)

    # ── programs and calls ──────────────────────────────────────────────────────────────────────────

    def open_program(self, tenant: TenantId, program_id: str, **changes: Any) -> None:
        known = self.core.program(tenant, ProgramId(program_id))
        if known is None or not self._has_ended(tenant, program_id):
            self.feed(ProgramOpened(tenant=tenant, program_id=ProgramId(program_id), **changes))

    def end_program(
        self, tenant: TenantId, program_id: str, how: type[ProgramEnded] | type[ProgramCancelled]
    ) -> None:
        if self.core.program(tenant, ProgramId(program_id)) is not None:
            self.feed(how(tenant=tenant, program_id=ProgramId(program_id)))

    def submit_drawn(
        self, program_id: str, prompt: Sequence[int] | int, drawn: Mapping[str, Any], parents: Sequence[int]
    ) -> CallId:
        """Submits a call with drawn values, mended so that it is not refused for them.

        Args:
            parents: Its parents, as numbers of calls of its program; also such as never were.
        """
        changes = dict(drawn)
        changes["min_tokens"] = min(changes["min_tokens"], changes["max_tokens"])
        number = len(self.specs) + 1
        if isinstance(prompt, int):
            prompt = [(number * 31 + i * 7) % 997 for i in range(prompt)]
        if changes["hash_block_size"]:
            of = changes["tenant"], changes["cache_salt"], prompt, changes["hash_block_size"]
            changes["prompt_block_hashes"] = hash_prompt(*of)
        family = [
            call_id
            for call_id, spec in self.specs.items()
            if (spec.tenant, spec.program_id) == (changes["tenant"], program_id)
        ]
        changes["parent_call_ids"] = tuple(
            family[-parent] if 0 < parent <= len(family) else CallId("unknown") for parent in parents
        )
        return self.submit(program_id, prompt, **changes)

    def fail_soon(self, call_id: CallId) -> None:
        """The call's next row fails, wherever it runs."""
        for executor in self.executors.values():
            executor.failing.add(call_id)

    def _has_ended(self, tenant: TenantId, program_id: str) -> bool:
        program = self.core.table.get(tenant, ProgramId(program_id))
        return program is not None and program.ended is not None

    # ── executors ───────────────────────────────────────────────────────────────────────────────────

    def join_drawn(self, executor_id: str, drawn: Mapping[str, Any], step_s: float = 1.0) -> None:
        """An executor joins that can hold every call."""
        self.epoch += 1
        spec = executor_spec(executor_id, epoch=self.epoch, max_model_len=MAX_MODEL_LEN, **drawn)
        tokens = max(spec.max_num_batched_tokens, spec.max_num_seqs)
        self.join(replace(spec, max_num_batched_tokens=tokens), step_s)

    def drain(self, executor_id: str) -> None:
        self.feed(ExecutorDrainRequested(executor_id=ExecutorId(executor_id)))

    def prepare_one(self, *, error: str) -> None:
        """The oldest preparation is done, or has failed."""
        prepared = self.to_prepare.pop(0)
        self.feed(CallPrepared(executor_id=prepared.executor_id, handle=prepared.handle, error=error))

    def change_policy(self, changes: Mapping[str, Any]) -> None:
        assert self.feed(PolicyChanged(changes=changes)) == []

    # ── the end of the story ────────────────────────────────────────────────────────────────────────

    def finish(self) -> int:
        """Nothing more comes in: all calls must end, soon, and leave nothing.

        Returns: turns that it took.
        """
        turns_max = 20 + 6 * sum(self._turns_alone(call_id) for call_id in self._live())
        turns = 0
        while self.turn():
            turns += 1
            assert turns <= turns_max, f"still busy after {turns} turns: {self._live()}"
        self.look()
        assert not self._live(), f"nothing happens any more, and these wait: {self._live()}"
        assert all(close.drained for close in self.closed), "the core broke its own rules"
        for executor in self.core.fleet:
            assert executor.kv.held == 0
        for tenant in TENANTS:
            for program in self.core.programs(tenant):
                assert program.live_calls == 0
        return turns

    def _live(self) -> list[CallId]:
        return [call.spec.call_id for call in self.core.registry.all_live()]

    def _turns_alone(self, call_id: CallId) -> int:
        """Steps that a call takes that is alone from its first token on, with small chunks."""
        spec = self.specs[call_id]
        return len(spec.prompt_token_ids) // 4 + spec.max_tokens + 2

    def check_outputs(self) -> None:
        for call_id in self.specs:
            self._check_output(call_id)

    def _check_output(self, call_id: CallId) -> None:
        output, expected = self.outputs[call_id], expected_output(self.specs[call_id])
        end = self.finished.get(call_id)
        assert (end is not None) != (call_id in self.refused)
        assert output == expected[: len(output)], "a wrong, lost or doubled token"
        if end is not None and end.reason is FinishReason.LENGTH:
            assert output == expected


def check_nothing_is_left(world: World, executor: Executor) -> None:
    """What an executor keeps is of use to somebody.

    Raises: AssertionError.
    """
    kept = [call.kept for call in executor.calls.values() if call.kept is not None]
    tails = {key for state in kept for key in state.tail_keys}
    private = {key for key, *_ in executor.kv.contents() if len(key) != DIGEST_BYTES}
    assert private <= tails, "KV of one call that nobody can find any more"
    active = {program.key for program in _active(world)}
    footprint = sum(executor.kv.footprint(key) for key in active)
    assert executor.kv.live_footprint == footprint, "KV of a program that is over or idle"
    assert executor.gate._reserved.keys() <= active, "room for a program that is over or idle"


def _active(world: World) -> Iterator[Program]:
    """Programs whose calls may soon come back to what is kept for them."""
    for program in world.core.table.all():
        if (program.ended is None or program.live_calls) and not program.is_kv_idle:
            yield program
