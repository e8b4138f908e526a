"""A core that does what the test says: records events, answers with the effects it is given."""

from collections.abc import Callable

from scheduler_svc.core.effects import Effect
from scheduler_svc.core.events import Event, ExecutorJoined
from scheduler_svc.core.ids import FrontendId, ProgramId, TenantId
from scheduler_svc.core.snapshots import (
    EngineSnapshot,
    ExecutorSnapshot,
    ModelSnapshot,
    ProgramSnapshot,
    StatisticsSnapshot,
)

EMPTY_STATISTICS = {name: 0 for name in StatisticsSnapshot.__dataclass_fields__ if name != "policy"}


class ScriptedCore:
    """`respond(event)` gives the effects of an event; what it raises, `handle` raises."""

    def __init__(self, respond: Callable[[Event], list[Effect]] = lambda event: []) -> None:
        self.respond = respond
        self.events: list[Event] = []
        self.times: list[float] = []
        self.live_calls = 0

    def handle(self, event: Event, now: float) -> list[Effect]:
        self.events.append(event)
        self.times.append(now)
        return self.respond(event)

    def seen(self, kind: type[Event]) -> list[Event]:
        """Events of one kind, in order."""
        return [event for event in self.events if isinstance(event, kind)]

    def find_program(self, tenant: TenantId, session_key: str) -> ProgramSnapshot | None:
        return None

    def program(self, tenant: TenantId, program_id: ProgramId) -> ProgramSnapshot | None:
        return None

    def programs(self, tenant: TenantId | None = None) -> list[ProgramSnapshot]:
        return []

    def executors(self) -> list[ExecutorSnapshot]:
        return []

    def models(self) -> list[ModelSnapshot]:
        specs = [event.executor for event in self.events if isinstance(event, ExecutorJoined)]
        return [
            ModelSnapshot(
                model=spec.model, tokenizer_fingerprint=spec.tokenizer_fingerprint,
                max_model_len=spec.max_model_len, block_size=spec.block_size, num_blocks=spec.num_blocks,
                executors=1,
                structured_output_backend="", reasoning_parser="", params_formats=spec.params_formats,
                max_call_tokens=spec.max_call_tokens, simulated=spec.simulated,
            )
            for spec in specs
        ]  # fmt: skip

    def statistics(self) -> StatisticsSnapshot:
        return StatisticsSnapshot(policy="scripted", **(EMPTY_STATISTICS | {"live_calls": self.live_calls}))

    def live_calls_by_level(self) -> list[int]:
        return [self.live_calls, 0]

    def engine_status(self, frontend_id: FrontendId) -> EngineSnapshot:
        return EngineSnapshot(running=1, waiting=2, kv_usage=0.5)
