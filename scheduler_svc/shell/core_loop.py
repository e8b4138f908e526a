"""The one writer: feeds the core, in turns.

Theory of operation. Servicers `post` events; nothing else happens on their side. A turn takes everything
that has come in, hands it to the core in order, lets the core plan once, and carries out all effects. A
burst of arrivals is therefore planned as one batch, and the core never sees two callers.

What must be decided in one piece (find a program, else open it) is a `request`: a function that runs inside
a turn, may read the core and apply events, and whose caller awaits the outcome.

Results come thousands of times a second, so an event is posted as it is: no future, no closure. One that may
come too late, or that the core may refuse, is posted with its `Speaker`, who is asked whether it still counts
and hears what was wrong with it.

Failures. A `CoreError` of a request belongs to whoever made it, that of an event to its speaker: it goes back
there, and nothing else is harmed. Everything else, an event without a speaker that the core does not take
included, is a bug of ours: it leaves `run`, and the process ends, because a scheduler whose invariants are
broken must not go on.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

from scheduler_svc.core.effects import Effect
from scheduler_svc.core.errors import CoreError
from scheduler_svc.core.events import Event, PlanDue, TimePassed
from scheduler_svc.shell.clock import Clock

T = TypeVar("T")
CarryOut = Callable[[Sequence[Effect]], None]


class HandlesEvents(Protocol):
    """What the loop needs of the core."""

    def handle(self, event: Event, now: float) -> Sequence[Effect]:
        """Applies one event; returns what is to be done."""
        ...


class Speaker(Protocol):
    """Whoever events come from, when they may come too late or make no sense."""

    def still_counts(self) -> bool:
        """Whether what was posted may still be handed to the core; asked at that moment."""
        ...

    def not_taken(self, error: CoreError) -> None:
        """The core did not take an event; nothing was changed."""
        ...


class TurnTimings(NamedTuple):
    """What a turn did, and how long it took."""

    events: int
    """Events and requests taken in."""
    turn_s: float
    plan_s: float
    """Seconds of the planning alone."""


class Turn:
    """One turn of the loop, as a request sees it: events are applied at one instant."""

    def __init__(self, core: HandlesEvents, now: float, carry_out: CarryOut) -> None:
        self.now = now
        self._core = core
        self._carry_out = carry_out
        self._effects: list[Effect] = []

    def apply(self, event: Event) -> None:
        """Applies an event at once; its effects are carried out at the end of the turn.

        Raises: CoreError when the core does not take it; nothing was changed.
        """
        self._effects.extend(self._core.handle(event, self.now))

    def flush(self) -> None:
        """Carries out what was decided so far: needed before a name in those effects gets a new meaning."""
        effects, self._effects = self._effects, []
        self._carry_out(effects)


class _Posted(NamedTuple):
    event: Event
    speaker: Speaker | None


@dataclass(frozen=True, slots=True)
class _Request:
    decide: Callable[[Turn], Any]
    outcome: "asyncio.Future[Any]"


class CoreLoop:
    """Feeds the core; everything that happens in the scheduler happens in `run`."""

    def __init__(
        self,
        core: HandlesEvents,
        clock: Clock,
        *,
        carry_out: CarryOut,
        on_turn: Callable[[TurnTimings], None] = lambda timings: None,
        tick_s: float = 1.0,
    ) -> None:
        """
        Args:
            carry_out: gets all effects of a turn, in order; must not block.
            on_turn: gets the timings of each turn, for metrics.
            tick_s: seconds between two `TimePassed` events.
        """
        self._core = core
        self._clock = clock
        self._carry_out = carry_out
        self._on_turn = on_turn
        self._tick_s = tick_s
        self._inbox: list[_Posted | _Request] = []
        self._arrived = asyncio.Event()

    @property
    def inbox_length(self) -> int:
        """Events and requests that wait for the next turn."""
        return len(self._inbox)

    def post(self, event: Event, speaker: Speaker | None = None) -> None:
        """Enqueues an event for the next turn.

        Args:
            speaker: whom it comes from; None: it counts whenever it comes, and the core is sure to take it.
        """
        self._inbox.append(_Posted(event, speaker))
        self._arrived.set()

    def enqueue(self, decide: Callable[[Turn], T]) -> "asyncio.Future[T]":
        """Enqueues a request; the future need not be awaited. A cancelled request is not run."""
        outcome: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._inbox.append(_Request(decide, outcome))
        self._arrived.set()
        return outcome

    async def request(self, decide: Callable[[Turn], T]) -> T:
        """Runs `decide` inside the next turn and returns what it returned.

        Raises: CoreError when `decide` did.
        """
        return await self.enqueue(decide)

    async def run(self) -> None:
        """Takes turns until cancelled; an exception that leaves it is a bug of ours: end the process."""
        ticker = asyncio.create_task(self._tick(), name="core-loop-ticker")
        try:
            while True:
                await self._arrived.wait()
                self._arrived.clear()
                self._take_turn()
        finally:
            ticker.cancel()

    async def _tick(self) -> None:
        while True:
            await self._clock.sleep(self._tick_s)
            self.post(TimePassed())

    def _take_turn(self) -> None:
        started_s = time.perf_counter()
        batch, self._inbox = self._inbox, []
        turn = Turn(self._core, self._clock.now(), self._carry_out)
        for item in batch:
            _take(item, turn)
        plan_started_s = time.perf_counter()
        turn.apply(PlanDue())
        plan_s = time.perf_counter() - plan_started_s
        turn.flush()
        self._on_turn(TurnTimings(len(batch), turn_s=time.perf_counter() - started_s, plan_s=plan_s))


def _take(item: _Posted | _Request, turn: Turn) -> None:
    if isinstance(item, _Request):
        _answer(item, turn)
    elif item.speaker is None:
        turn.apply(item.event)
    elif item.speaker.still_counts():
        try:
            turn.apply(item.event)
        except CoreError as error:
            item.speaker.not_taken(error)


def _answer(request: _Request, turn: Turn) -> None:
    if request.outcome.done():  # its caller has gone: nothing was promised, nothing is done
        return
    try:
        request.outcome.set_result(request.decide(turn))
    except CoreError as error:
        request.outcome.set_exception(error)
    except BaseException:
        request.outcome.cancel()
        raise
