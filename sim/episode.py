"""One episode: a bounded world, from the draw of its configuration to the last check.

Two phases: programs arrive and things go wrong until enough calls were submitted (or too much time has
passed); then nothing goes wrong any more, every machine comes up, and every call must end.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from scheduler_svc.core.config import CoreConfig
from scheduler_svc.core.core import Core
from sim.broken import Broken
from sim.draws import draw_config, draw_shape
from sim.faults import Faults
from sim.machines import Machines
from sim.oracle import check_end
from sim.tally import Tally
from sim.trace import Trace
from sim.traffic import Traffic
from sim.world import START_S, World

MakeCore = Callable[[CoreConfig], Core]

TROUBLE_S_MAX = 2000.0
"""Virtual seconds after which an episode becomes quiet in any case."""
QUIET_EVENTS_MAX = 200_000
"""Events by which every call of a quiet episode must have ended."""


@dataclass(frozen=True, slots=True)
class EpisodeOptions:
    """How episodes are run. Only `with_faults` changes what happens in them."""

    with_faults: bool
    check_every: int = 1
    """Invariants are checked after every so many events; 0: only at the end."""
    make_core: MakeCore = Core


class Episode:
    """A world drawn from `random`."""

    def __init__(self, random: Random, options: EpisodeOptions, tally: Tally, trace: Trace | None) -> None:
        self._shape = draw_shape(random, with_faults=options.with_faults)
        config = draw_config(random, self._shape)
        if trace is not None:
            trace.note(f"{config} {self._shape}")
        self.world = World(
            options.make_core(config), random, tally, check_every=options.check_every, trace=trace
        )
        self._random = random
        self._machines = Machines(self.world, self._shape)
        self._traffic = Traffic(self.world, self._shape)
        self._faults = Faults(self.world, self._shape, self._machines, self._traffic)
        tally.add("policy", config.policy)

    def run(self) -> None:
        """Runs to the end.

        Raises: Broken, AssertionError, or whatever the core raises, when something is wrong.
        """
        self._machines.start()
        self._traffic.start()
        self._tick()
        quiet_since: int | None = None
        while not self._traffic.is_over:
            self._turn()
            if quiet_since is None and self._is_time_for_quiet():
                quiet_since = self._calm_down()
            if quiet_since is not None and self.world.events - quiet_since > QUIET_EVENTS_MAX:
                raise Broken(f"{len(self.world.ledger.live)} calls do not end though nothing goes wrong")
        if quiet_since is None:
            self._calm_down()
        self._finish()

    def _turn(self) -> None:
        """The next thing happens; plans are made, unless more is to come before."""
        self.world.agenda.next()()
        if self.world.dirty and self._random.random() >= self._shape.hold_back:
            self.world.plan()
        if self.world.ledger.ended:
            self._traffic.follow_up()

    def _tick(self) -> None:
        self.world.tick()
        self.world.agenda.after(self._shape.tick_s, self._tick)

    def _is_time_for_quiet(self) -> bool:
        return self._traffic.is_closing or self.world.now > START_S + TROUBLE_S_MAX

    def _calm_down(self) -> int:
        """Stops the faults, brings every machine up and returns how many events there were before."""
        self._faults.stop()
        self._machines.heal()
        self._traffic.close()
        return self.world.events

    def _finish(self) -> None:
        """Lets results that are still under way arrive, then checks everything."""
        self.world.plan()
        while any(executor.pending for executor in self.world.attached.values()):
            self._turn()
            self.world.plan()
        check_end(self.world, self._traffic)
        self.world.tally.add_statistics(self.world.core.statistics())
        self.world.tally.episodes += 1
