"""The levels of calls by the words of Algorithm 1: arrival, used-up quanta, starvation."""

from collections.abc import Iterator
from math import inf
from typing import TYPE_CHECKING

from scheduler_svc.core.call_states import CallState
from scheduler_svc.core.config import CoreConfig, ServiceUnit, Tie
from scheduler_svc.core.core import Core

if TYPE_CHECKING:
    from tests.property.bookkeeper import Bookkeeper, CallBook

Standing = tuple[float, dict[ServiceUnit, int]]
"""W in seconds, T in picoseconds by unit."""

_LOOK_S = 30.0
"""A starving call is found after this long at the latest."""


def begins_ps(config: CoreConfig) -> list[int]:
    """Where each level begins."""
    if config.level_boundaries_s is not None:
        return [0, *(round(boundary_s * 1e12) for boundary_s in config.level_boundaries_s)]
    quanta = [round(config.first_quantum_s * config.quantum_ratio**level * 1e12) for level in range(64)]
    return [sum(quanta[:level]) for level in range(config.levels)]


def level_of(config: CoreConfig, used_ps: int) -> int:
    """The last level that begins at `used_ps` or before."""
    return max(level for level, begin_ps in enumerate(begins_ps(config)) if begin_ps <= used_ps)


def quantum_ps(config: CoreConfig, level: int) -> float:
    """What may be used in a level."""
    last = level == config.levels - 1
    own_ps = round(config.first_quantum_s * config.quantum_ratio**level * 1e12)
    quantum = inf if last and config.tie is not Tie.QUEUE_ARRIVAL else own_ps
    if config.policy == "gittins":
        return min(quantum, begins_ps(config)[-1] or inf)
    return quantum


class NaiveLevels:
    """Levels of the bookkeeper's calls. Of Gittins only the ranks are the core's own; see its tests."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def at_arrival(self, config: CoreConfig, call: "CallBook") -> int:
        """By what the policy is about; what the call used itself counts at a change of policy."""
        unit, program = config.service_unit, call.program
        match config.policy:
            case "fcfs" | "program_fcfs":
                return 0
            case "mlfq":
                return level_of(config, call.used[unit])
            case "plas":
                return level_of(config, program.completed()[unit] + call.used[unit])
            case "atlas":
                return level_of(config, call.inherited[unit] + call.used[unit])
        return level_of(config, self._rank_ps(config, call))

    def use_quantum(self, config: CoreConfig, call: "CallBook", used_ps: int) -> bool:
        """Charges a step. Returns: whether the call was demoted."""
        if config.policy in ("fcfs", "program_fcfs"):
            call.quantum_used_ps += used_ps
            return False
        call.quantum_used_ps += used_ps
        if call.quantum_used_ps < quantum_ps(config, call.level):
            return False
        before, call.quantum_used_ps = call.level, 0
        call.level = min(call.level + 1, config.levels - 1)
        if config.policy == "gittins":
            rank_ps = self._rank_ps(config, call)
            bounds = level_of(config, rank_ps * 4 // 5), level_of(config, rank_ps * 5 // 4)
            call.level = min(max(before, bounds[0]), bounds[1])
        return call.level > before

    def _rank_ps(self, config: CoreConfig, call: "CallBook") -> int:
        program = self._core.table.get(call.spec.tenant, call.spec.program_id)
        assert program is not None
        unit = config.service_unit
        return self._core.table.history.of(program, unit).rank_ps(call.program.used()[unit])

    # ── starvation ──────────────────────────────────────────────────────────────────────────────────

    def take_promotions(self, books: "Bookkeeper", now: float) -> None:
        """Learns which calls the core has promoted: each must starve, and nobody starves for long."""
        for call in books.live_calls():
            known = self._core.registry.live(call.spec.call_id)
            assert known is not None
            waits = known.state is CallState.QUEUED and known.queue_key is not None
            if waits and known.level == 0 < call.level:
                standings = list(_standings(call))
                assert any(_starves(books.config, call, standing) for standing in standings), (
                    f"{call.spec.call_id} was promoted and does not starve"
                )
                assert known.promoted_at is not None
                told = known.promoted_at
                call.promoted_at = next(
                    (waited_s, used)
                    for waited_s, used in standings
                    if abs(waited_s - told.waited_s) < 1e-6
                    and used[ServiceUnit.SECONDS] == told.used.service_ps
                )
                call.level, call.quantum_used_ps = 0, 0
                books.counts["promotions"] += 1
            if not (waits and call.level > 0 and _starves(books.config, call, [*_standings(call)][-1])):
                call.starves_since_s = None
            elif call.starves_since_s is None:
                call.starves_since_s = now

    def check_no_starvation(self, books: "Bookkeeper", now: float) -> None:
        """After the core has looked at the time."""
        for call in books.live_calls():
            since_s = call.starves_since_s
            assert since_s is None or now - since_s <= _LOOK_S + 1e-3, f"{call.spec.call_id} starves"


def _standings(call: "CallBook") -> Iterator[Standing]:
    """What the call and the completed calls of its program have waited and used: before, amid and after the
    ends that the last event brought, since the call may have been looked at between any two."""
    ended = call.program.ended
    for count in range(call.program.ended_before, len(ended) + 1):
        calls = [*ended[:count], call]
        used = {unit: sum(other.used[unit] for other in calls) for unit in ServiceUnit}
        yield sum(other.waited_s for other in calls), used


def _starves(config: CoreConfig, call: "CallBook", standing: Standing) -> bool:
    """Whether W / T >= beta since the last promotion."""
    if config.starvation_beta is None:
        return False
    unit = config.service_unit
    waited_s = standing[0] - call.promoted_at[0]
    used_ps = standing[1][unit] - call.promoted_at[1].get(unit, 0)
    return waited_s + 1e-5 >= config.starvation_beta * used_ps / 1e12
