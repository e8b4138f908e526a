"""The typed errors of the core that carry no rule of their own, each written once."""

from scheduler_svc.core.call import Call
from scheduler_svc.core.config import BadOption
from scheduler_svc.core.errors import Refusal
from scheduler_svc.core.ids import CallId, ExecutorId, ProgramId


def program_unknown(program_id: ProgramId) -> Refusal:
    """No such program, or another tenant's: the two must look the same."""
    return Refusal(
        reason="PROGRAM_UNKNOWN",
        message="There is no such program; start one first.",
        field="program_id",
        value=program_id,
    )


def program_ended(program_id: ProgramId, how: str) -> Refusal:
    """The program takes no further calls."""
    return Refusal(
        reason="PROGRAM_ENDED",
        message=f"The program takes no further calls ({how}); start a new one.",
        field="program_id",
        value=program_id,
    )


def program_limit(limit: int) -> Refusal:
    """No room for another open program."""
    return Refusal(
        reason="PROGRAM_LIMIT",
        message="Too many open programs; end some or try again later.",
        field="program_id",
        limit=str(limit),
        value=str(limit + 1),
        retry_after_s=1.0,
    )


def call_duplicate(call_id: CallId) -> Refusal:
    """The id is taken."""
    message = "A call of this id is live, or has ended and is not acknowledged."
    return Refusal(reason="CALL_DUPLICATE", message=message, field="call_id", value=call_id)


def queue_full(limit: int) -> Refusal:
    """No room for another live call."""
    return Refusal(
        reason="QUEUE_FULL",
        message="Too many calls are waiting; try again later.",
        field="live_calls",
        limit=str(limit),
        value=str(limit + 1),
        retry_after_s=1.0,
    )


def bad_option(error: BadOption) -> Refusal:
    """A setting cannot have this value."""
    return Refusal(
        reason="PARAMETER_OUT_OF_RANGE",
        message=str(error),
        field=error.field,
        limit=error.limit,
        value=str(error.value),
    )


def no_executor(executor_id: ExecutorId) -> Refusal:
    """No executor of this id is attached."""
    message = "No executor of this id is attached."
    return Refusal(reason="NO_EXECUTOR", message=message, field="executor_id", value=executor_id)


def deadline_exceeded(call: Call) -> Refusal:
    """The call was not done in time; says so when it waited for an executor to join."""
    message = "The call did not end before its deadline."
    if call.executor is None:
        message = f"No executor of model {call.spec.model!r} was attached before the call's deadline."
    limit = "" if call.spec.deadline_s is None else str(call.spec.deadline_s)
    return Refusal(reason="DEADLINE_EXCEEDED", message=message, field="deadline_s", limit=limit)


def executor_failed(message: str) -> Refusal:
    """The executor could not go on with this call."""
    return Refusal(reason="EXECUTOR_FAILED", message=message)


def preparation_failed(message: str) -> Refusal:
    """The executor could not prepare this call, e.g. its grammar does not compile."""
    return Refusal(reason="PREPARATION_FAILED", message=message, field="params")
