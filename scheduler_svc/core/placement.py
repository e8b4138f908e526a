"""Which executor a call goes to. Source: Autellix Alg. 2.

A short prompt is mostly shared system prompt, which every executor has cached: it goes to the least used
executor and leaves no trace. A long prompt goes where its program's earlier calls left their KV: to the
executor that the program is pinned to, and if there is none, or it is gone or leaving, to the least used one,
which becomes the pin.
"""

from collections.abc import Iterable

from scheduler_svc.core.call import Call
from scheduler_svc.core.executor import Executor


def place(call: Call, executors: Iterable[Executor], *, short_prompt_tokens: int) -> Executor | None:
    """Chooses among the executors of the call's model. Pins the call's program when the prompt is long.

    Args:
        call: Not placed yet.
        executors: Of the call's model; those that are draining or too small for the call are passed over.
        short_prompt_tokens: Longest prompt that counts as short.

    Returns: the executor, or None when none can take the call now.
    """
    able = {
        executor.executor_id: executor
        for executor in executors
        if not executor.draining and executor.fits(call)
    }
    if not able:
        return None
    if call.prompt_len <= short_prompt_tokens:
        return least_used(able.values())
    pins = call.program.pins
    pinned = able.get(pins[call.spec.model]) if call.spec.model in pins else None
    chosen = pinned or least_used(able.values())
    pins[call.spec.model] = chosen.executor_id
    return chosen


def least_used(executors: Iterable[Executor]) -> Executor:
    """The executor with the fewest live calls, waiting ones included; of equals the one with the smallest
    id."""
    return min(executors, key=lambda executor: (len(executor.calls), executor.executor_id))
