"""Plays the commands of a script against the core, with obedient executors, and says what came of them.

Invariants are checked after every event, and every token is held against what the call must generate: a
script cannot record a wrong one. Time stands still, except that a result takes its step and `time` passes.

    config policy=plas levels=2 ...        fields of CoreConfig; first of all, and once
    executor e1 seats=2 blocks=9 ...       an executor registers; also again, with epoch=2
    lose e1 / drain e1
    open p [class=chat] [single=yes]       a program
    end p / abandon p                      its client ends it / cancels it
    submit a program=p prompt=6 max=4      a call [parents=b,c deadline=9.5]; prompt=6 are tokens of its own,
                                           shared:8+2 has eight that all shared prompts begin with, after:b+3
                                           begins with prompt and output of call b; stops_after=2: its
                                           end-of-sequence token comes as the second one
    cancel a [reason=client]
    plan                                   plans are due
    result e1                              the oldest result of an executor arrives
    turn [times=3]                         plan, then one result of each executor
    run                                    turns until nothing is left to do
    time 2.5                               time passes
    policy policy=fcfs ...                 options of the policy change
    show calls / programs / executors
"""

from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from enum import Enum
from random import Random
from typing import Any, get_type_hints

from scheduler_svc.core import events as ev
from scheduler_svc.core.config import CoreConfig
from scheduler_svc.core.core import Core
from scheduler_svc.core.ids import CallId, ExecutorId, FrontendId, ProgramId, StreamHandle, TenantId
from sim.executor import SimulatedExecutor, StepCost
from sim.ledger import CallRecord
from sim.model import VOCAB_SIZE, expected_output
from sim.tally import Tally
from sim.world import World
from tests.scenarios.narrator import Narrator
from tests.scenarios.script import Command

TENANT = TenantId("acme")
FRONTEND = FrontendId("frontend-1")
MODEL = "tiny"
SHARED = [(31 * i + 5) % VOCAB_SIZE for i in range(64)]
TURNS_MAX = 200

EXECUTOR_FIELDS = {
    "seats": "max_num_seqs",
    "blocks": "num_blocks",
    "block_size": "block_size",
    "budget": "max_num_batched_tokens",
    "ahead": "max_plans_in_flight",
    "host_blocks": "host_blocks",
    "epoch": "epoch",
    "length": "max_model_len",
}
"""Option of `executor` -> field of ExecutorSpec."""


class Stage:
    """A core, executors and one frontend, driven by commands."""

    def __init__(self) -> None:
        self._narrator = Narrator()
        self._config: dict[str, Any] = {}
        self._made: World | None = None
        self._calls: dict[str, CallRecord] = {}
        self._commands: dict[str, Callable[[Command], Iterable[str] | None]] = {
            "config": self._configure,
            "executor": self._executor,
            "lose": lambda command: self._world.lose(self._attached(command)),
            "drain": lambda command: self._world.drain(self._attached(command)),
            "open": self._open,
            "end": self._end,
            "abandon": lambda command: self._world.cancel_program(TENANT, ProgramId(command.arguments[0])),
            "submit": self._submit,
            "cancel": self._cancel,
            "plan": lambda _command: self._world.plan(),
            "result": lambda command: self._deliver(self._attached(command)),
            "turn": self._turns,
            "run": self._run,
            "time": self._pass_time,
            "policy": self._change_policy,
            "show": lambda command: getattr(self, f"_show_{command.arguments[0]}")(),
        }

    def play(self, command: Command) -> list[str]:
        """Plays a command and returns what came of it."""
        shown = self._commands[command.name](command)
        return [*self._narrator.take(), *(shown or ())]

    @property
    def _world(self) -> World:
        if self._made is None:
            core = Core(CoreConfig(**self._config))
            self._made = World(core, Random(0), Tally(), check_every=1, trace=self._narrator)
        return self._made

    # ── commands ────────────────────────────────────────────────────────────────────────────────────

    def _configure(self, command: Command) -> None:
        assert self._made is None, "config comes first"
        self._config |= _config_values(command.options)

    def _executor(self, command: Command) -> None:
        options = dict(command.options)
        step_s = float(options.pop("step_s", "1"))
        values: dict[str, Any] = {
            "epoch": 1,
            "block_size": 4,
            "num_blocks": 33,
            "max_num_seqs": 4,
            "max_num_batched_tokens": 64,
            "max_model_len": 256,
            "max_plans_in_flight": 1,
        }
        values |= {EXECUTOR_FIELDS[name]: int(value) for name, value in options.items()}
        values |= {"executor_id": ExecutorId(command.arguments[0]), "model": MODEL, "vocab_size": VOCAB_SIZE}
        spec = ev.ExecutorSpec(**values, block_bytes=1024)
        self._world.join(spec, StepCost(fixed_s=step_s, token_s=0.0, block_copy_s=0.0))

    def _attached(self, command: Command) -> SimulatedExecutor:
        return self._world.attached[ExecutorId(command.arguments[0])]

    def _open(self, command: Command) -> None:
        options = command.options
        self._world.feed(
            ev.ProgramOpened(
                tenant=TENANT,
                program_id=ProgramId(command.arguments[0]),
                class_name=options.get("class", ""),
                single_call=options.get("single") == "yes",
            )
        )

    def _end(self, command: Command) -> None:
        self._world.feed(ev.ProgramEnded(tenant=TENANT, program_id=ProgramId(command.arguments[0])))

    def _submit(self, command: Command) -> None:
        name, options = command.arguments[0], command.options
        number = len(self._calls) + 1
        spec = ev.CallSpec(
            call_id=CallId(name),
            frontend_id=FRONTEND,
            stream_handle=StreamHandle(number),
            tenant=TENANT,
            program_id=ProgramId(options["program"]),
            parent_call_ids=tuple(
                CallId(parent) for parent in options.get("parents", "").split(",") if parent
            ),
            model=MODEL,
            prompt_token_ids=self._prompt(options["prompt"], number),
            max_tokens=int(options["max"]),
            deadline_s=float(options["deadline"]) if "deadline" in options else None,
        )
        expected = expected_output(spec, "")
        if "stops_after" in options:
            spec = replace(spec, eos_token_id=expected.tokens[int(options["stops_after"]) - 1])
            expected = expected_output(spec, "")
        record = self._calls[name] = CallRecord(spec=spec, expected=expected, fingerprint="", output=[])
        self._narrator.call_named(number, name, 0)
        self._world.submit(record)

    def _prompt(self, text: str, number: int) -> list[int]:
        """Tokens of a prompt such as 6, shared:8, shared:8+2 or after:a+3."""
        source, _, rest = text.partition(":")
        if not rest:
            return _own_tokens(number, int(source))
        base, _, own = rest.partition("+")
        if source == "shared":
            begin = SHARED[: int(base)]
        else:
            begin = [*self._calls[base].spec.prompt_token_ids, *self._calls[base].output]
        return [*begin, *_own_tokens(number, int(own or 0))]

    def _cancel(self, command: Command) -> None:
        reason = ev.CancelReason(command.options.get("reason", "client"))
        self._world.cancel(self._calls[command.arguments[0]], reason)

    def _deliver(self, executor: SimulatedExecutor) -> None:
        self._world.agenda.now += executor.pending[0].busy_s
        self._world.deliver(executor)

    def _turns(self, command: Command) -> None:
        for _ in range(int(command.options.get("times", "1"))):
            self._turn()

    def _turn(self) -> bool:
        """Returns whether there was a result."""
        self._world.plan()
        busy = [executor for executor in self._world.attached.values() if executor.pending]
        self._world.agenda.now += max((executor.pending[0].busy_s for executor in busy), default=0.0)
        for executor in busy:
            self._world.deliver(executor)
        return bool(busy)

    def _run(self, _command: Command) -> None:
        for _ in range(TURNS_MAX):
            if not self._turn():
                return
        raise AssertionError(f"still busy after {TURNS_MAX} turns")

    def _pass_time(self, command: Command) -> None:
        self._world.agenda.now += float(command.arguments[0])
        self._world.tick()

    def _change_policy(self, command: Command) -> None:
        self._world.feed(ev.PolicyChanged(changes=_config_values(command.options)))

    # ── looking ─────────────────────────────────────────────────────────────────────────────────────

    def _show_calls(self) -> Iterable[str]:
        now = self._world.now
        for name, record in self._calls.items():
            call = self._world.core.registry.live(record.spec.call_id)
            if call is not None:
                where = call.executor.executor_id if call.executor is not None else "no executor"
                yield (
                    f"{name} {call.state.value} on {where}, level {call.level}, {call.output_len} tokens, "
                    f"served {call.service_s:g} s, waited {call.waiting_s(now):g} s"
                )

    def _show_programs(self) -> Iterable[str]:
        for program in self._world.core.programs():
            yield (
                f"{program.program_id} {program.state.value}, level {program.level}, "
                f"{program.live_calls} live calls, {program.finished_calls} ended, "
                f"served {program.attained_service_s:g} s"
            )

    def _show_executors(self) -> Iterable[str]:
        for executor in self._world.core.executors():
            draining = ", draining" if executor.draining else ""
            yield (
                f"{executor.executor_id}: {executor.running} running, {executor.waiting} waiting, "
                f"{executor.free_blocks} of {executor.num_blocks - 1} blocks free{draining}"
            )


def _own_tokens(number: int, count: int) -> list[int]:
    """Tokens that no other call's prompt begins with."""
    return [(97 * number + 7 * i) % VOCAB_SIZE for i in range(count)]


def _config_values(options: dict[str, str]) -> dict[str, Any]:
    """Reads `policy=plas levels=2 starvation_beta=none level_boundaries_s=1,2 tie=call`."""
    hints = get_type_hints(CoreConfig)
    known = {field.name for field in fields(CoreConfig)}
    assert options.keys() <= known, f"no such option: {sorted(options.keys() - known)}"
    return {name: _value(text, hints[name]) for name, text in options.items()}


def _value(text: str, hint: Any) -> Any:
    if text == "none":
        return None
    if isinstance(hint, type) and issubclass(hint, Enum):
        return hint(text)
    if hint is bool:
        return {"yes": True, "no": False}[text]
    if hint in (int, str):
        return hint(text)
    return tuple(float(part) for part in text.split(",")) if "tuple" in str(hint) else float(text)
