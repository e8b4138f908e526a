"""Cores that are broken on purpose: the simulation finds each of them, and says how to find it again.

Each sabotage changes one kind of effect, or withholds one kind of event, of an otherwise healthy core.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from scheduler_svc.core import effects as ef
from scheduler_svc.core import events as ev
from scheduler_svc.core.core import Core
from sim.cli import EXIT_BROKEN, main
from sim.episode import EpisodeOptions
from sim.run import EpisodeFailed, RunOptions, run

CALL_STEPS = 40_000


class Sabotaged(Core):
    """A core with something wrong about its effects."""

    def handle(self, event: Any, now: float) -> list[ef.Effect]:
        return [spoiled for effect in super().handle(event, now) for spoiled in self.spoil(effect)]

    def spoil(self, effect: ef.Effect) -> Iterator[ef.Effect]:
        yield effect


class PlanSpoiler(Sabotaged):
    """One with something wrong about its plans."""

    def spoil(self, effect: ef.Effect) -> Iterator[ef.Effect]:
        if isinstance(effect, ef.SendPlan):
            yield replace(effect, plan=self.spoil_plan(effect.plan, self._block_size(effect)))
        else:
            yield effect

    def spoil_plan(self, plan: ef.Plan, block_size: int) -> ef.Plan:
        raise NotImplementedError

    def _block_size(self, effect: ef.SendPlan) -> int:
        executor = self.fleet.get(effect.executor_id)
        assert executor is not None
        return executor.spec.block_size


class ClaimsAPrefixThatIsNotThere(PlanSpoiler):
    """Prefix reuse: a joining call is said to have one block more than was found for it."""

    def spoil_plan(self, plan: ef.Plan, block_size: int) -> ef.Plan:
        joined, chunks = dict(plan.joined), dict(plan.chunks)
        for row in joined:
            if chunks.get(row, 1) > block_size + 1:
                joined[row] += block_size
                chunks[row] -= block_size
        return replace(plan, joined=joined, chunks=chunks)


class SkipsSwapIn(PlanSpoiler):
    """Two tiers: what was copied to the host does not come back."""

    def spoil_plan(self, plan: ef.Plan, block_size: int) -> ef.Plan:
        return replace(plan, swap_in=())


class SwapsOutTooLate(PlanSpoiler):
    """Two tiers: blocks are copied to the host one plan later, when others have written into them."""

    _late: tuple[Any, ...] = ()

    def spoil_plan(self, plan: ef.Plan, block_size: int) -> ef.Plan:
        late, self._late = self._late, tuple(plan.swap_out)
        return replace(plan, swap_out=late)


class MixesUpBlocks(PlanSpoiler):
    """Block tables: two rows of a plan get each other's new blocks."""

    def spoil_plan(self, plan: ef.Plan, block_size: int) -> ef.Plan:
        blocks = {row: tuple(table) for row, table in plan.blocks.items()}
        appended = [row for row in blocks if row not in plan.joined]
        if len(appended) >= 2:
            first, second = appended[:2]
            blocks[first], blocks[second] = blocks[second][:1], blocks[second][:1]
        return replace(plan, blocks=blocks)


class NeverReleases(PlanSpoiler):
    """Executors are never told to forget a call."""

    def spoil_plan(self, plan: ef.Plan, block_size: int) -> ef.Plan:
        return replace(plan, released=())


class DoesNotDiscard(Sabotaged):
    """The token of a call that was cancelled in flight is passed on instead of being discarded."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self._cancelled: dict[tuple[str, int], tuple[Any, Any]] = {}

    def handle(self, event: Any, now: float) -> list[ef.Effect]:
        if isinstance(event, ev.CallCancelled):
            call = self.registry.live(event.call_id)
            if call is not None and call.executor is not None and call.handle is not None:
                names = (call.spec.frontend_id, call.spec.stream_handle)
                self._cancelled[call.executor.executor_id, call.handle] = names
        effects = super().handle(event, now)
        if isinstance(event, ev.StepCompleted):
            effects += self._late_tokens(event)
        return effects

    def _late_tokens(self, result: ev.StepCompleted) -> Iterator[ef.Effect]:
        for handle, token in zip(result.handles, result.tokens, strict=False):
            names = self._cancelled.get((result.executor_id, handle))
            if names is not None:
                yield ef.EmitTokens(frontend_id=names[0], handles=[names[1]], tokens=[token])


class LosesATokenInAMillion(Sabotaged):
    """The last token of a large step does not reach its frontend."""

    def spoil(self, effect: ef.Effect) -> Iterator[ef.Effect]:
        if isinstance(effect, ef.EmitTokens) and len(effect.handles) > 5:
            effect = replace(effect, handles=list(effect.handles)[:-1], tokens=list(effect.tokens)[:-1])
        yield effect


class SaysATokenTwice(Sabotaged):
    """Tokens of one call at a time come twice."""

    def spoil(self, effect: ef.Effect) -> Iterator[ef.Effect]:
        yield effect
        if isinstance(effect, ef.EmitTokens) and len(effect.handles) == 1:
            yield effect


class ForgetsTokensOfALostExecutor(Sabotaged):
    """A call that moves begins anew."""

    def spoil(self, effect: ef.Effect) -> Iterator[ef.Effect]:
        if isinstance(effect, ef.AnnounceCall):
            effect = replace(effect, output_token_ids=())
        yield effect


class HidesFailures(Sabotaged):
    """A call that failed is never heard of again."""

    def spoil(self, effect: ef.Effect) -> Iterator[ef.Effect]:
        if not (isinstance(effect, ef.FinishCall) and effect.error is not None):
            yield effect


class KeepsBrokenExecutors(Sabotaged):
    """An executor that broke the protocol is not closed."""

    def spoil(self, effect: ef.Effect) -> Iterator[ef.Effect]:
        if not (isinstance(effect, ef.CloseExecutor) and not effect.drained):
            yield effect


class IgnoresDeadlines(Core):
    """Nothing happens because time passes."""

    def handle(self, event: Any, now: float) -> list[ef.Effect]:
        return [] if isinstance(event, ev.TimePassed) else super().handle(event, now)


class IgnoresLosses(Core):
    """The loss of an executor goes unnoticed."""

    def handle(self, event: Any, now: float) -> list[ef.Effect]:
        return [] if isinstance(event, ev.ExecutorLost) else super().handle(event, now)


SABOTAGES: list[type[Core]] = [
    ClaimsAPrefixThatIsNotThere,
    SkipsSwapIn,
    SwapsOutTooLate,
    MixesUpBlocks,
    NeverReleases,
    DoesNotDiscard,
    LosesATokenInAMillion,
    SaysATokenTwice,
    ForgetsTokensOfALostExecutor,
    HidesFailures,
    KeepsBrokenExecutors,
    IgnoresDeadlines,
    IgnoresLosses,
]


@pytest.mark.interpreted_core("its classes derive from the core")
@pytest.mark.parametrize("make_core", SABOTAGES, ids=lambda core: core.__name__)
def test_a_broken_core_is_found(make_core: Callable[[Any], Core]) -> None:
    episodes = EpisodeOptions(with_faults=True, check_every=0, make_core=make_core)
    with pytest.raises(EpisodeFailed, match="seed 9, episode"):
        run(RunOptions(seed=9, call_steps=CALL_STEPS), episodes)


@pytest.mark.interpreted_core("it derives a class from the core")
def test_the_command_says_how_to_repeat_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--seed", "9", "--steps", "40000", "--faults", "--check-every", "0"]
    assert main(arguments, make_core=ClaimsAPrefixThatIsNotThere) == EXIT_BROKEN
    repeat = capsys.readouterr().err.splitlines()[-1].removeprefix("repeat with: python -m sim ").split()
    assert repeat[:2] == ["--seed", "9"]
    assert "--faults" in repeat
    assert main(repeat, make_core=ClaimsAPrefixThatIsNotThere) == EXIT_BROKEN
    assert capsys.readouterr().err.splitlines()[-1].endswith(" ".join(repeat))


def test_a_healthy_core_passes_the_same_run(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--seed", "9", "--steps", "5000", "--faults", "--check-every", "0"]
    assert main(arguments) == 0
    assert "call-steps" in capsys.readouterr().out
