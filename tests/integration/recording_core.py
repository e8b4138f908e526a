"""The real core, with a second bookkeeper beside it that knows only events and effects.

It adds up, from plans sent and results taken alone, what each call must have been charged; and it checks the
core's invariants after every event.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence

from scheduler_svc.core import invariants
from scheduler_svc.core.config import CoreConfig
from scheduler_svc.core.core import Core
from scheduler_svc.core.effects import AnnounceCall, Effect, FinishCall, SendPlan
from scheduler_svc.core.events import Event, ExecutorJoined, ExecutorLost, StepCompleted
from scheduler_svc.core.ids import CallHandle, CallId, ExecutorId, StreamHandle


class RecordingCore(Core):
    """A core whose plans and results are kept."""

    def __init__(self, config: CoreConfig) -> None:
        super().__init__(config)
        self.service_s: dict[CallId, float] = defaultdict(float)
        """Seconds of the steps each call took part in while it was live."""
        self.steps: Counter[ExecutorId] = Counter()
        self.lost: list[ExecutorId] = []
        self.plans_left_over = 0
        """Plans whose executor was lost before their result."""
        self._names: dict[tuple[ExecutorId, CallHandle], CallId] = {}
        self._streams: dict[StreamHandle, CallId] = {}
        self._planned: dict[tuple[ExecutorId, int], Sequence[CallHandle]] = {}
        self._ended: set[CallId] = set()

    def handle(self, event: Event, now: float) -> list[Effect]:
        """As the core, with notes."""
        effects = super().handle(event, now)
        match event:
            case ExecutorJoined(executor=spec):
                self._forget(spec.executor_id)
            case ExecutorLost(executor_id=executor_id):
                self.lost.append(executor_id)
                self._forget(executor_id)
            case StepCompleted():
                self._charge(event)
        for effect in effects:
            self._note(effect)
        invariants.check(self)
        return effects

    def _charge(self, result: StepCompleted) -> None:
        self.steps[result.executor_id] += 1
        for handle in self._planned.pop((result.executor_id, result.step)):
            call_id = self._names[result.executor_id, handle]
            if call_id not in self._ended:
                self.service_s[call_id] += result.step_s

    def _note(self, effect: Effect) -> None:
        match effect:
            case AnnounceCall():
                self._names[effect.executor_id, effect.handle] = effect.call.call_id
                self._streams[effect.call.stream_handle] = effect.call.call_id
            case SendPlan():
                self._planned[effect.executor_id, effect.plan.step] = effect.plan.handles
            case FinishCall():
                self._ended.add(self._streams[effect.handle])

    def _forget(self, executor_id: ExecutorId) -> None:
        for key in [key for key in self._planned if key[0] == executor_id]:
            del self._planned[key]
            self.plans_left_over += 1
