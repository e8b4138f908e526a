"""Says what the core says, by the names that a script gave to things.

announce a to e1                        the executor learns of call a
start a, 4 tokens cached                the frontend learns that a is in a plan for the first time
plan 3 for e1                           a plan; a line for each row, then copies and releases
  a joins with [1 2] holding 4, computes 4..6, samples
  b computes 9, and gets [7]
tokens a[0] b[3]                        a's first and b's fourth token reach the frontend
finish a: length, 3 tokens, 3.0 s of service, 1 preemption
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from scheduler_svc.core import effects as ef
from sim.trace import Trace


@dataclass(slots=True)
class Seen:
    """A call on an executor, as far as effects tell."""

    name: str
    computed: int
    known: int


class Narrator(Trace):
    """Collects a line, or several, for each effect."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._names: dict[int, str] = {}
        """stream handle -> name of the call."""
        self._seen: dict[tuple[str, int], Seen] = {}
        self._tokens: dict[str, int] = {}

    def call_named(self, stream_handle: int, name: str, tokens: int) -> None:
        """Gives a call its name and the number of output tokens that it begins with."""
        self._names[stream_handle] = name
        self._tokens[name] = tokens

    def take(self) -> list[str]:
        """The lines since it was last asked."""
        lines, self.lines = self.lines, []
        return lines

    def note(self, text: str) -> None:
        self.lines.append(text)

    def event(self, now: float, event: Any) -> None:
        """The script says what happens."""

    def effects(self, now: float, effects: Iterable[Any]) -> None:
        for effect in effects:
            self.lines += self._tell(effect)

    def _tell(self, effect: ef.Effect) -> Iterator[str]:
        match effect:
            case ef.AnnounceCall():
                yield self._announce(effect)
            case ef.SendPlan():
                yield f"plan {effect.plan.step} for {effect.executor_id}"
                yield from self._plan(effect.executor_id, effect.plan)
            case ef.CloseExecutor():
                yield f"close {effect.executor_id}: {effect.reason}"
            case ef.EmitTokens():
                yield "tokens " + " ".join(self._token(int(handle)) for handle in effect.handles)
            case ef.ReportStarted():
                cached = f", {effect.cached_tokens} tokens cached" if effect.cached_tokens else ""
                yield f"start {self._names[effect.handle]}{cached}"
            case ef.FinishCall():
                yield self._finish(effect)
            case ef.RefuseCall():
                yield f"refuse {self._names[effect.handle]}: {effect.refusal.reason}"

    def _announce(self, effect: ef.AnnounceCall) -> str:
        name, done = self._names[effect.call.stream_handle], len(effect.output_token_ids)
        known = len(effect.call.prompt_token_ids) + done
        self._seen[effect.executor_id, effect.handle] = Seen(name, 0, known)
        return f"announce {name} to {effect.executor_id}" + (f" with {done} tokens" if done else "")

    def _plan(self, executor_id: str, plan: ef.Plan) -> Iterator[str]:
        if len(plan.swap_out):
            yield "  copies out " + _pairs(plan.swap_out)
        if len(plan.swap_in):
            yield "  copies in " + _pairs(plan.swap_in)
        for row, handle in enumerate(plan.handles):
            yield "  " + self._row(plan, row, self._seen[executor_id, handle])
        if len(plan.released):
            names = [self._seen[executor_id, handle].name for handle in plan.released]
            yield f"  releases {' '.join(names)}"

    def _row(self, plan: ef.Plan, row: int, call: Seen) -> str:
        blocks = " ".join(str(block) for block in plan.blocks.get(row, ()))
        parts = []
        if row in plan.joined:
            call.computed = plan.joined[row]
            parts.append(f"joins with [{blocks}]" + (f" holding {call.computed}" if call.computed else ""))
        start, end = call.computed, call.computed + plan.chunks.get(row, 1)
        parts.append(f"computes {start}" if end == start + 1 else f"computes {start}..{end - 1}")
        if row not in plan.joined and blocks:
            parts.append(f"gets [{blocks}]")
        if end == call.known:
            parts.append("samples")
            call.known += 1
        call.computed = end
        return f"{call.name} " + ", ".join(parts)

    def _token(self, handle: int) -> str:
        name = self._names[handle]
        self._tokens[name] += 1
        return f"{name}[{self._tokens[name] - 1}]"

    def _finish(self, effect: ef.FinishCall) -> str:
        name = self._names[effect.handle]
        how = effect.error.reason if effect.error is not None else effect.reason.value
        parts = [how, f"{self._tokens[name]} tokens", f"{effect.service_s:g} s of service"]
        if effect.preemptions:
            parts.append(f"preempted {effect.preemptions} x")
        return f"finish {name}: {', '.join(parts)}"


def _pairs(pairs: Iterable[tuple[int, int]]) -> str:
    return " ".join(f"{source}>{target}" for source, target in pairs)
