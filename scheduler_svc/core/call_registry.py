"""Every call by its id, from its submission until its frontend acknowledges its end.

Ended calls keep their tokens until they are acknowledged, so that a frontend which missed the end can be
told, and so that the same id cannot be submitted twice. A frontend that never acknowledges loses its oldest
ones.
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

from scheduler_svc.core.call import Call
from scheduler_svc.core.ids import CallId, FrontendId


@dataclass(slots=True)
class FrontendCalls:
    """The calls of one frontend."""

    live: dict[CallId, Call] = field(default_factory=dict)
    """In order of submission."""
    ended: OrderedDict[CallId, Call] = field(default_factory=OrderedDict)
    """Not acknowledged yet, in order of ending."""
    running: int = 0
    """How many of the live ones are RUNNING."""


class CallRegistry:
    """Calls by id and by frontend."""

    def __init__(self, *, unacknowledged_calls_max: int) -> None:
        self._unacknowledged_calls_max = unacknowledged_calls_max
        self._calls: dict[CallId, Call] = {}
        self._frontends: dict[FrontendId, FrontendCalls] = {}
        self.live_count = 0

    def __contains__(self, call_id: CallId) -> bool:
        return call_id in self._calls

    def live(self, call_id: CallId) -> Call | None:
        """A call that has not ended."""
        call = self._calls.get(call_id)
        return call if call is not None and call.is_live else None

    def ended(self, call_id: CallId) -> Call | None:
        """A call that has ended and is not acknowledged."""
        call = self._calls.get(call_id)
        return call if call is not None and not call.is_live else None

    def all_live(self) -> Iterator[Call]:
        """All live calls, frontend by frontend."""
        for frontend in self._frontends.values():
            yield from frontend.live.values()

    def of_frontend(self, frontend_id: FrontendId) -> FrontendCalls:
        """A frontend's calls; empty when it has none."""
        return self._frontends.get(frontend_id) or FrontendCalls()

    def add(self, call: Call) -> None:
        """Enters a live call."""
        spec = call.spec
        self._calls[spec.call_id] = call
        frontend = self._frontends.get(spec.frontend_id)
        if frontend is None:
            frontend = self._frontends[spec.frontend_id] = FrontendCalls()
        frontend.live[spec.call_id] = call
        self.live_count += 1

    def count_running(self, call: Call, change: int) -> None:
        """Books that a call became RUNNING (1) or ceased to be (-1)."""
        self._frontends[call.spec.frontend_id].running += change

    def mark_ended(self, call: Call) -> None:
        """Moves a call to the unacknowledged ones, of which the oldest go when there are too many."""
        spec = call.spec
        frontend = self._frontends[spec.frontend_id]
        del frontend.live[spec.call_id]
        frontend.ended[spec.call_id] = call
        self.live_count -= 1
        while len(frontend.ended) > self._unacknowledged_calls_max:
            oldest, _ = frontend.ended.popitem(last=False)
            del self._calls[oldest]

    def acknowledge(self, call_id: CallId) -> None:
        """Forgets a call that has ended; other ids are ignored."""
        call = self.ended(call_id)
        if call is None:
            return
        frontend = self._frontends[call.spec.frontend_id]
        del frontend.ended[call_id]
        del self._calls[call_id]
        if not frontend.ended and not frontend.live:
            del self._frontends[call.spec.frontend_id]

    def forget_frontend(self, frontend_id: FrontendId) -> None:
        """Forgets a frontend whose calls have all ended."""
        frontend = self._frontends.pop(frontend_id, FrontendCalls())
        assert not frontend.live, "live calls of a lost frontend must be cancelled first"
        for call_id in frontend.ended:
            del self._calls[call_id]
