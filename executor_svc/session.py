"""Keeps an executor registered: attaches, and when the stream ends resets the runner and attaches anew.

Theory of operation: every attachment has an epoch higher than all before, also across restarts of the
process (epochs start from the wall clock). Between two attachments the stepper is reset, so that a new
epoch begins with empty state, as the protocol says; outcomes of an older epoch that come late are dropped
here.

How an attachment ends decides what follows:

    EXECUTOR_DRAINED                            an operator drained it: the executor leaves
    refusal that no retry can change            StartupError(REFUSED)
    the runner failed                           its error is raised: the process ends and is restarted
    anything else (lost, ended, violation)      attach again after a growing pause with jitter
    stop was asked for                          drain, leave when the stream ends or after `drain_s`
"""

import asyncio
import contextlib
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import grpc
import structlog

from executor_svc.attachment import Attachment, Identity
from executor_svc.backoff import Backoff
from executor_svc.metrics import ExecutorMetrics
from executor_svc.runner import PlanViolation, RunnerInfo
from executor_svc.stepper import Outcome, RunnerFailed, Steps
from svc_runtime.lifecycle import ExitCode, StartupError
from svc_runtime.rpc_errors import RpcFailure, parse_error

log = structlog.get_logger("autellix.session")

PERMANENT_REASONS = frozenset(
    {"PROTOCOL_MISMATCH", "MODEL_MISMATCH", "UNSUPPORTED_EXECUTOR", "UNAUTHENTICATED", "STREAM_SUPERSEDED"}
)
"""Refusals that trying again with the same executor cannot change. STREAM_SUPERSEDED: another process
registered under the same executor id (we never keep two streams); fighting over it would harm both."""
DRAINED_REASON = "EXECUTOR_DRAINED"
"""With it the scheduler ends the stream of an executor that an operator drained."""
STABLE_AFTER_S = 5.0
"""An attachment that lasted as long makes the next pause small again."""


class Ended(Enum):
    """How an attachment ended, where that is no error."""

    LOST = "lost"
    """Attach again."""
    LEFT = "left"
    """Drained: leave."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionConfig:
    """What a session needs to know."""

    executor_id: str
    scheduler: str
    """host:port, for logs; the channel is opened by `open_channel`."""
    drain_s: float = 30.0
    accept_timeout_s: float = 10.0
    connect_timeout_s: float | None = None
    """Seconds after which a scheduler that was never reached is given up. None: never."""


class Session:
    """Registers an executor again and again until it is told to stop.

    Args:
        open_channel: opens a new channel to the scheduler; each attempt takes its own.
        on_registered: called with True when registered, with False when no more.
        wall_ms: milliseconds since 1970.
    """

    def __init__(
        self,
        config: SessionConfig,
        stepper: Steps,
        metrics: ExecutorMetrics,
        *,
        open_channel: Callable[[], grpc.aio.Channel],
        on_registered: Callable[[bool], object],
        backoff: Backoff | None = None,
        wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._config = config
        self._stepper = stepper
        self._metrics = metrics
        self._open_channel = open_channel
        self._on_registered = on_registered
        self._backoff = backoff or Backoff(random.Random())
        self._wall_ms = wall_ms
        self._epoch = 0
        self._registered = False
        self._ever_registered = False
        self._attachment: Attachment | None = None
        self._failure: Exception | None = None
        stepper.deliver_to(self.take)

    def take(self, outcome: Outcome) -> None:
        """Takes an outcome from the stepper; those of an older epoch are dropped."""
        if isinstance(outcome, RunnerFailed):
            self._failure = outcome.error
        if self._attachment is not None and outcome.epoch == self._attachment.epoch:
            self._attachment.take(outcome)
        else:
            log.debug("late_outcome_dropped", epoch=outcome.epoch, kind=type(outcome).__name__)

    async def run(self, info: RunnerInfo, stop: asyncio.Event) -> None:
        """Keeps attaching until stopped or drained.

        Raises: StartupError when refused for good or the scheduler stays unreachable; the runner's own error.
        """
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        while not stop.is_set():
            attached_s = loop.time()
            ended = await self._attach(info, stop)
            if ended is not Ended.LOST or stop.is_set():
                return
            self._check_connect_timeout(loop.time() - started_s)
            if loop.time() - attached_s > STABLE_AFTER_S:
                self._backoff.reset()
            await self._reset_and_pause(stop)

    async def _attach(self, info: RunnerInfo, stop: asyncio.Event) -> Ended:
        """One attachment, from a new channel to its end."""
        self._epoch = max(self._epoch + 1, self._wall_ms())
        attachment = Attachment(
            Identity(executor_id=self._config.executor_id, epoch=self._epoch, info=info),
            self._stepper,
            self._metrics,
            accept_timeout_s=self._config.accept_timeout_s,
            on_accepted=self._accepted,
        )
        self._attachment = attachment
        channel = self._open_channel()
        try:
            return await self._attend(attachment, channel, stop)
        finally:
            self._attachment = None
            self._registered = False
            self._metrics.detached()
            self._on_registered(False)
            await channel.close()

    async def _attend(self, attachment: Attachment, channel: grpc.aio.Channel, stop: asyncio.Event) -> Ended:
        """Runs an attachment and drains it when stop comes."""
        running = asyncio.create_task(attachment.run(channel))
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not running.done():
                return await self._drain(attachment, running)
            return await self._end_of(running)
        finally:
            for task in (running, stopping):
                task.cancel()
            await asyncio.gather(running, stopping, return_exceptions=True)

    async def _drain(self, attachment: Attachment, running: asyncio.Task[None]) -> Ended:
        if not self._registered:
            return Ended.LEFT
        log.info("draining", drain_s=self._config.drain_s)
        self._on_registered(False)
        attachment.request_drain("the executor was told to stop")
        done, _ = await asyncio.wait({running}, timeout=self._config.drain_s)
        if not done:
            log.warning("drain_timed_out", drain_s=self._config.drain_s)
            return Ended.LEFT
        await self._end_of(running)
        return Ended.LEFT

    async def _end_of(self, running: asyncio.Task[None]) -> Ended:
        """Tells what the end of an attachment means.

        Raises: StartupError for a permanent refusal; the runner's error.
        """
        try:
            await running
        except grpc.aio.AioRpcError as error:
            return self._rpc_failed(parse_error(error))
        except TimeoutError:
            log.warning("registration_unanswered", scheduler=self._config.scheduler)
        except PlanViolation as violation:
            self._metrics.violated()
            log.error("plan_violated", epoch=self._epoch, violation=str(violation))
        else:
            log.info("stream_ended_by_scheduler", epoch=self._epoch)
        return Ended.LOST

    def _rpc_failed(self, failure: RpcFailure) -> Ended:
        if failure.reason == DRAINED_REASON:
            log.info("drained_by_operator", epoch=self._epoch)
            return Ended.LEFT
        log.warning(
            "stream_lost" if self._registered else "registration_failed",
            scheduler=self._config.scheduler,
            code=failure.code.name,
            reason=failure.reason,
            detail=failure.message,
        )
        refused = failure.reason in PERMANENT_REASONS or failure.code is grpc.StatusCode.UNAUTHENTICATED
        if refused:
            raise StartupError(
                f"the scheduler at {self._config.scheduler} refused this executor:"
                f" {failure.reason or failure.code.name}: {failure.message}",
                ExitCode.REFUSED,
            )
        return Ended.LOST

    def _accepted(self) -> None:
        self._registered = self._ever_registered = True
        self._metrics.registered()
        self._on_registered(True)

    def _check_connect_timeout(self, waited_s: float) -> None:
        limit_s = self._config.connect_timeout_s
        if self._ever_registered or limit_s is None or waited_s < limit_s:
            return
        raise StartupError(
            f"no scheduler at {self._config.scheduler} within connect_timeout_s = {limit_s:g} s:"
            " start it or correct --scheduler",
            ExitCode.PEER_UNREACHABLE,
        )

    async def _reset_and_pause(self, stop: asyncio.Event) -> None:
        """Empties the runner, then waits a while, less when stop comes.

        Raises: the runner's own error when it failed.
        """
        if not await self._reset(stop):
            return
        if self._failure is not None:
            raise self._failure
        pause_s = self._backoff.next_s()
        log.info("registering_again", in_s=round(pause_s, 3), failures=self._backoff.failures)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), pause_s)

    async def _reset(self, stop: asyncio.Event) -> bool:
        """Empties the runner once its running step has ended; False when stop came before that."""
        resetting = asyncio.create_task(self._stepper.reset())
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({resetting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not resetting.done():
                return False
            await resetting
            return True
        finally:
            resetting.cancel()
            stopping.cancel()
