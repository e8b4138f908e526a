"""What the commands of `python -m demo` do. Each takes the parsed flags and a console."""

import asyncio
import json
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path

from rich.console import Console

from demo.experiment import Experiment, Outcome, ProgramFailed
from demo.live_table import ProgramDisplay
from demo.models import TINY, LocalModel, ModelUnavailable, resolve_model
from demo.ports import PortsTaken, free_port, require_free
from demo.process_runner import ProcessRunner, RunnerFailed
from demo.report import Comparison, print_report, summary
from demo.stack import Say, Stack, StackFailed, StackOptions, StackPorts
from demo.workload import Arrival, WorkloadOptions, make_workload

DemoFailures = (StackFailed, RunnerFailed, PortsTaken, ModelUnavailable, ProgramFailed)
"""What may go wrong and is told in one message."""

BEFORE, AFTER = "fcfs", "plas"
UP, DEMO = "up", "demo"
DEMO_DRAIN_S = 5
DEMO_KV_CACHE_GIB = 1.0
DEMO_BLOCK_SIZE = 32
"""vLLM's default on the CPU, 128, is longer than most prompts here: no prefix would ever be found again."""


async def prepare_model(options: Namespace, console: Console) -> None:
    """Makes the model ready and prints its path."""
    print((await _model(options, console)).path)


async def up(options: Namespace, console: Console) -> None:
    """Starts the services and leaves them running."""
    home = options.home / UP
    if ProcessRunner(home).running:
        raise RunnerFailed("services are running already; `make down` stops them")
    ports = StackPorts(
        http=options.port,
        grpc=options.grpc_port,
        scheduler=options.scheduler_port,
        metrics=options.metrics_port,
    )
    require_free(ports.by_variable())
    model = await _model(options, console)
    stack = Stack(
        StackOptions(
            model=model,
            policy=options.policy,
            executors=options.executors,
            ports=ports,
            eager=options.model == TINY,  # too small for compiling to pay
        ),
        home,
        _teller(console),
    )
    try:
        await stack.start()
    except BaseException:
        stack.stop()
        raise
    console.print(_how_to_use(stack), markup=False, soft_wrap=True)


async def down(options: Namespace, console: Console) -> None:
    """Stops what `up` started, and a demo that was killed."""
    stopped = [name for name in (UP, DEMO) if await _stop_home(options.home / name, console)]
    console.print("stopped" if stopped else "nothing was running")


async def run(options: Namespace, console: Console) -> None:
    """The demo: the same programs under both policies, and the comparison."""
    say = _teller(console)
    await _stop_home(options.home / DEMO, console)
    model = await _model(options, console)
    stack = Stack(_small_engine(model, options.max_num_seqs), options.home / DEMO, say)
    arrivals = make_workload(WorkloadOptions(), options.seed)
    _introduce(console, stack, arrivals)
    with _stopping(stack, say):
        await stack.start()
        before = await _measure(stack, arrivals, console)
        await stack.change_policy(AFTER)
        after = await _measure(stack, arrivals, console)
    comparison = Comparison(before_policy=BEFORE, after_policy=AFTER, before=before, after=after)
    print_report(console, comparison)
    if options.json:
        _write_json(options.json, options, stack, comparison)


# ── parts of the demo ───────────────────────────────────────────────────────────────────────────────


def _small_engine(model: LocalModel, max_num_seqs: int) -> StackOptions:
    ports = StackPorts(http=free_port(), grpc=free_port(), scheduler=free_port(), metrics=None)
    return StackOptions(
        model=model,
        policy=BEFORE,
        ports=ports,
        max_num_seqs=max_num_seqs,
        block_size=DEMO_BLOCK_SIZE,
        kv_cache_gib=DEMO_KV_CACHE_GIB,
        eager=True,
        drain_s=DEMO_DRAIN_S,
    )


def _introduce(console: Console, stack: Stack, arrivals: Sequence[Arrival]) -> None:
    options = stack.options
    text = f"""
One tree search, which floods the engine with parallel calls, and {len(arrivals) - 1} short chats that
arrive while it runs. The same programs run twice: first under `{BEFORE}` (calls in order of
arrival), then under `{AFTER}` (calls of programs that received least service first).

Model {options.model.name} on the CPU. The engine is made small on purpose, so that programs
compete on a small machine: max_num_seqs = {options.max_num_seqs}, at most that many calls run at once.
"""
    console.print(text, markup=False, soft_wrap=True)


async def _measure(stack: Stack, arrivals: Sequence[Arrival], console: Console) -> list[Outcome]:
    policy = stack.options.policy
    prefix = f"{policy}/"
    async with Experiment(stack) as experiment:
        await experiment.warm_up()
        begun_s = time.monotonic()
        title = f"Programs under {policy} (GET /v1/programs)"
        async with ProgramDisplay(console, title, prefix, experiment.programs):
            outcomes = await experiment.run(arrivals, prefix=prefix)
    elapsed_s = time.monotonic() - begun_s
    seen = await stack.statistics()
    text = f"""\
all {len(outcomes)} programs done in {elapsed_s:.1f} s under {policy}: {seen.preemptions} preemptions, \
{seen.recomputed_tokens} tokens computed again, {seen.cached_tokens} prompt tokens found in the cache
"""
    console.print(text, markup=False, soft_wrap=True)
    return outcomes


@contextmanager
def _stopping(stack: Stack, say: Say) -> Iterator[None]:
    """Stops the stack at the end, however the end comes."""
    try:
        yield
    finally:
        say("stopping the services")
        stack.stop()


def _write_json(path: Path, options: Namespace, stack: Stack, comparison: Comparison) -> None:
    figures = {
        "model": stack.options.model.name,
        "max_num_seqs": stack.options.max_num_seqs,
        "seed": options.seed,
        "programs": {
            policy: [asdict(outcome) for outcome in outcomes]
            for policy, outcomes in zip((BEFORE, AFTER), comparison.runs, strict=True)
        },
        "summary_s": {
            what: {BEFORE: before_s, AFTER: after_s} for what, before_s, after_s in summary(comparison)
        },
    }
    path.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


# ── shared ──────────────────────────────────────────────────────────────────────────────────────────


def _teller(console: Console) -> Say:
    return partial(console.print, markup=False, soft_wrap=True)


async def _model(options: Namespace, console: Console) -> LocalModel:
    return await asyncio.to_thread(resolve_model, options.model, say=_teller(Console(stderr=True)))


async def _stop_home(home: Path, console: Console) -> bool:
    runner = ProcessRunner(home)
    if not runner.running:
        return False
    console.print(f"stopping the services of {home}", markup=False)
    return await asyncio.to_thread(runner.stop)


def _how_to_use(stack: Stack) -> str:
    model, ports = stack.options.model.name, stack.options.ports
    return f"""
HTTP {stack.url}   gRPC 127.0.0.1:{ports.grpc}   model {model}   policy {stack.options.policy}
logs in {stack.runner.home}/logs; stop with: make down

  curl {stack.url}/v1/chat/completions -H 'Content-Type: application/json' -H 'X-Session-ID: my-agent-1' \\
    -d '{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello"}}], "max_tokens": 32}}'

  from openai import OpenAI
  client = OpenAI(base_url="{stack.url}/v1", api_key="none")
  answer = client.chat.completions.create(
      model="{model}",
      messages=[{{"role": "user", "content": "Hello"}}],
      extra_headers={{"X-Session-ID": "my-agent-1"}},  # all calls with this id are one program
  )

  curl {stack.url}/v1/programs"""
