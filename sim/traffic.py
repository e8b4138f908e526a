"""Programs arrive, submit calls, think, submit others and end; frontends acknowledge, late or never."""

from collections.abc import Callable, Sequence
from random import Random

from scheduler_svc.core.events import ProgramEnded, ProgramOpened
from scheduler_svc.core.ids import FrontendId, ProgramId, TenantId
from sim.broken import require
from sim.calls import CallDrawer
from sim.draws import Shape
from sim.ledger import CallRecord
from sim.programs import SHAPES, Ending, Script
from sim.world import World

FRONTENDS = tuple(FrontendId(f"frontend-{number}") for number in range(1, 4))
TENANTS = tuple(TenantId(name) for name in ("acme", "globex"))
CLASSES = ("chat", "react", "search")
ACKNOWLEDGEMENTS = ("at once", "late", "never")


class Traffic:
    """All programs of an episode."""

    def __init__(self, world: World, shape: Shape) -> None:
        self.world = world
        self.shape = shape
        self.random: Random = world.random
        self.calls = CallDrawer(world.random, shape.output_max)
        self.submitted = 0
        self._programs_left = shape.programs
        self._waiting = 0
        """Continuations on the agenda."""
        self._acknowledgement = self.random.choice((*ACKNOWLEDGEMENTS, "mixed"))

    def chance(self) -> float:
        """A number in 0..1."""
        return self.random.random()

    @property
    def is_closing(self) -> bool:
        """Whether enough calls were submitted: programs begin nothing new."""
        return self.submitted >= self.shape.calls

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to come."""
        ready = not self._waiting and not self.world.ledger.live and not self.world.ledger.ended
        return ready and (self.is_closing or not self._programs_left)

    def start(self) -> None:
        """The first program comes now."""
        self._arrive()

    def close(self) -> None:
        """No program begins anything new."""
        self._programs_left = 0
        self.submitted = max(self.submitted, self.shape.calls)

    # ── programs ────────────────────────────────────────────────────────────────────────────────────

    def _arrive(self) -> None:
        if self.is_closing or not self._programs_left:
            self._programs_left = 0
            return
        self._programs_left -= 1
        script = self._draw_script()
        self._begin(script)
        self.world.agenda.after(self.random.expovariate(1 / self.shape.arrival_gap_s), self._arrive)

    def _begin(self, script: Script) -> None:
        """Opens a program and lets it begin; tries again later when too many are open."""
        if self._open(script):
            self.world.tally.add("program", script.shape)
            script.begin()
        elif not self.is_closing:
            self.world.agenda.after(self.random.expovariate(0.5), lambda: self._begin(script))

    def _draw_script(self) -> Script:
        pick = self.random.choice
        tenant = pick(TENANTS)
        number = self.shape.programs - self._programs_left
        ending = pick(list(Ending))
        return Script(
            traffic=self,
            tenant=tenant,
            program_id=ProgramId(f"program-{number}"),
            frontend_id=pick(FRONTENDS),
            class_name=pick(CLASSES),
            model=pick(self.shape.models),
            shape=pick(SHAPES),
            ending=ending,
            calls_left=1 if ending is Ending.SINGLE_CALL else pick((1, 4, 12, 30)),
            width=pick((2, 4, 12)),
        )

    def _open(self, script: Script) -> bool:
        """Opens a program, or finds the open one of its session key, as the shell does."""
        session_key = self.random.choice(("", "", f"session-{self.random.randrange(12)}"))
        found = self.world.core.find_program(script.tenant, session_key) if session_key else None
        if found is not None:
            script.program_id = found.program_id
            self.world.tally.add("program", "found by session key")
        full = self.world.core.statistics().open_programs >= self.world.core.config.open_programs_max
        event = ProgramOpened(
            tenant=script.tenant,
            program_id=script.program_id,
            session_key=session_key,
            class_name=script.class_name,
            single_call=script.ending is Ending.SINGLE_CALL,
        )
        if full and found is None:
            self.world.feed_refused(event, "PROGRAM_LIMIT")
            return False
        self.world.feed(event)
        return True

    def end_program(self, script: Script) -> None:
        """Ends a program as its script says; it may be known no more."""
        if script.ending not in (Ending.SAID, Ending.EARLY, Ending.CANCELLED):
            return
        self.world.tally.add("program", f"ending {script.ending.value}")
        if self.world.core.program(script.tenant, script.program_id) is None:
            event = ProgramEnded(tenant=script.tenant, program_id=script.program_id)
            self.world.feed_refused(event, "PROGRAM_UNKNOWN")
        elif script.ending is Ending.CANCELLED:
            self.world.cancel_program(script.tenant, script.program_id)
        else:
            self.world.feed(ProgramEnded(tenant=script.tenant, program_id=script.program_id))

    # ── calls ───────────────────────────────────────────────────────────────────────────────────────

    def submit(self, script: Script, parents: Sequence[CallRecord]) -> bool:
        """Submits a call that follows from others; returns whether it was taken."""
        spec = self.calls.draw(
            frontend_id=script.frontend_id,
            tenant=script.tenant,
            program_id=script.program_id,
            class_name=script.class_name,
            model=script.model,
            parents=parents,
        )
        self.submitted += 1
        return self.world.submit(self.calls.record(spec, script.model, script))

    def submit_again(self, script: Script, record: CallRecord) -> bool:
        """Submits a call that was cut off once more, with the tokens that came."""
        self.submitted += 1
        self.world.tally.add("call", "resubmitted")
        spec = self.calls.again(record)
        return self.world.submit(self.calls.record(spec, script.model, script))

    def follow_up(self) -> None:
        """Lets the programs of calls that have ended go on after a while, and their frontends acknowledge."""
        ended = self.world.ledger.ended
        for record in ended:
            if record.script is not None:
                self._waiting += 1
                think_s = self.shape.think_s and self.random.expovariate(1 / self.shape.think_s)
                self.world.agenda.after(think_s, self._go_on(record))
            self._plan_acknowledgement(record)
        ended.clear()

    def _go_on(self, record: CallRecord) -> Callable[[], None]:
        def go_on() -> None:
            self._waiting -= 1
            record.script.call_ended(record)

        return go_on

    def _plan_acknowledgement(self, record: CallRecord) -> None:
        how = self._acknowledgement
        if how == "mixed":
            how = self.random.choice(ACKNOWLEDGEMENTS)
        self.world.tally.add("acknowledged", how)
        if how == "at once":
            self.world.acknowledge(record)
        elif how == "late":
            self.world.agenda.after(self.random.expovariate(0.2), lambda: self.world.acknowledge(record))

    def check_books(self) -> None:
        """Holds what the core's process table lists against what the frontends saw."""
        sums: dict[tuple[str, str], list[CallRecord]] = {}
        for record in self.world.ledger.records.values():
            if record.accepted:
                sums.setdefault((record.spec.tenant, record.spec.program_id), []).append(record)
        for program in self.world.core.programs():
            records = sums.get((program.tenant, program.program_id), [])
            name = program.program_id
            tokens = sum(len(record.output) - len(record.spec.output_token_ids) for record in records)
            require(program.tokens == tokens, f"{name} has {program.tokens} tokens instead of {tokens}")
            require(program.finished_calls == len(records), f"{name} lost count of its calls")
            service_s = sum(record.end.service_s for record in records if record.end is not None)
            right = abs(program.attained_service_s - service_s) <= 1e-6 * (1 + service_s)
            require(right, f"{name} has {program.attained_service_s} s of service instead of {service_s} s")
