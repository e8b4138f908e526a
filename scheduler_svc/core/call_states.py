"""The states of a call, as data.

    QUEUED ──START──> RUNNING ──PREEMPT, REQUEUE──> QUEUED
    QUEUED ──PREPARE──> PREPARING ──PREPARED, REQUEUE──> QUEUED
    any of them ──FINISH, FAIL, CANCEL──> a terminal state        (PREPARING cannot FINISH)

QUEUED -> FINISHED is real: a call may be preempted while the result with its last token is in flight, and
that result counts. There is no other way to change a state than `next_state`; what it refuses changes
nothing.
"""

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType


class CallState(Enum):
    """Where a call stands. A live call is in exactly one of the first three."""

    QUEUED = "queued"
    """Waiting for a seat, or for an executor of its model."""
    PREPARING = "preparing"
    """An executor compiles something for it; never planned."""
    RUNNING = "running"
    """Holds a seat in its executor's batch."""
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"

    __hash__ = object.__hash__
    """By identity: the enum's own is a call of a Python function, and states are looked up all the time."""


class Trigger(Enum):
    """Why a call changes its state."""

    PREPARE = "prepare"
    PREPARED = "prepared"
    START = "start"
    PREEMPT = "preempt"
    """Taken out of the batch by the planner."""
    REQUEUE = "requeue"
    """Its executor is gone."""
    FINISH = "finish"
    FAIL = "fail"
    CANCEL = "cancel"

    __hash__ = object.__hash__


LIVE = frozenset({CallState.QUEUED, CallState.PREPARING, CallState.RUNNING})
WAITING = LIVE - {CallState.RUNNING}
TERMINAL = frozenset({CallState.FINISHED, CallState.FAILED, CallState.CANCELLED})

_ENDS = {Trigger.FAIL: CallState.FAILED, Trigger.CANCEL: CallState.CANCELLED}

TRANSITIONS: Mapping[CallState, Mapping[Trigger, CallState]] = MappingProxyType(
    {
        CallState.QUEUED: {
            Trigger.PREPARE: CallState.PREPARING,
            Trigger.START: CallState.RUNNING,
            Trigger.FINISH: CallState.FINISHED,
            **_ENDS,
        },
        CallState.PREPARING: {
            Trigger.PREPARED: CallState.QUEUED,
            Trigger.REQUEUE: CallState.QUEUED,
            **_ENDS,
        },
        CallState.RUNNING: {
            Trigger.PREEMPT: CallState.QUEUED,
            Trigger.REQUEUE: CallState.QUEUED,
            Trigger.FINISH: CallState.FINISHED,
            **_ENDS,
        },
        CallState.FINISHED: {},
        CallState.FAILED: {},
        CallState.CANCELLED: {},
    }
)


class IllegalTransition(Exception):
    """A bug of ours: the call was left as it was."""


def next_state(state: CallState, trigger: Trigger) -> CallState:
    """The state after `trigger`.

    Raises: IllegalTransition when the table has no such way.
    """
    try:
        return TRANSITIONS[state][trigger]
    except KeyError:
        raise IllegalTransition(f"{trigger.value} is not possible in state {state.value}") from None
