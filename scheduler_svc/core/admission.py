"""The door: what is wrong with a submitted call, if anything. Nothing here changes anything.

Each check names the field, the limit and the value. A call that passes can be run to its end by at least
one known executor of its model, alone on it if need be: that is what keeps the planner live.
"""

from collections.abc import Sequence

from scheduler_svc.core.errors import Refusal, Refused
from scheduler_svc.core.events import CallSpec, ExecutorSpec
from scheduler_svc.core.executor import understands
from scheduler_svc.core.process_table import Program
from scheduler_svc.core.refusals import program_ended


def check_call(spec: CallSpec, program: Program, executors: Sequence[ExecutorSpec]) -> None:
    """Checks a call against its program and the known executors of its model.

    Raises: Refused(PROGRAM_ENDED, MODEL_UNKNOWN, PARAMS_FORMAT_UNKNOWN, PROMPT_EMPTY, PROMPT_TOO_LONG,
        PARAMETER_OUT_OF_RANGE, INVALID_TOKEN_ID).
    """
    if program.ended is not None:
        raise Refused(program_ended(program.program_id, program.ended.value))
    if not executors:
        raise _refused("MODEL_UNKNOWN", "No executor serves this model.", "model", value=spec.model)
    able = [executor for executor in executors if understands(executor, spec.params_format)]
    if not able:
        raise _params_format_unknown(spec, executors)
    _check_parameters(spec)
    _check_length(spec, max(executor.max_call_tokens for executor in able))
    _check_tokens(spec, min(executor.vocab_size for executor in able))


def _check_parameters(spec: CallSpec) -> None:
    if not spec.prompt_token_ids:
        raise _refused("PROMPT_EMPTY", "The prompt has no tokens.", "prompt_token_ids", limit=1, value=0)
    done = len(spec.output_token_ids)
    if spec.max_tokens <= done:
        raise _out_of_range("max_tokens", f"> {done}", spec.max_tokens)
    if not 0 <= spec.min_tokens <= spec.max_tokens:
        raise _out_of_range("min_tokens", f"0..{spec.max_tokens}", spec.min_tokens)
    if spec.deadline_s is not None and not spec.deadline_s > 0:
        raise _out_of_range("deadline_s", "> 0", spec.deadline_s)


def _check_length(spec: CallSpec, most: int) -> None:
    prompt_len = len(spec.prompt_token_ids)
    if prompt_len >= most:
        message = f"The prompt has {prompt_len} tokens; with at least one to generate it may have {most - 1}."
        raise _refused("PROMPT_TOO_LONG", message, "prompt_token_ids", limit=most - 1, value=prompt_len)
    if prompt_len + spec.max_tokens > most:
        raise _out_of_range("max_tokens", f"<= {most - prompt_len}", spec.max_tokens)


def _check_tokens(spec: CallSpec, vocab_size: int) -> None:
    for field in ("prompt_token_ids", "output_token_ids"):
        tokens = getattr(spec, field)
        if not tokens:
            continue
        worst = min(tokens) if min(tokens) < 0 else max(tokens)
        if worst < 0 or (vocab_size and worst >= vocab_size):
            message = "A token id is outside the vocabulary of the model."
            limit = f"0..{vocab_size - 1}" if vocab_size else ">= 0"
            raise _refused("INVALID_TOKEN_ID", message, field, limit=limit, value=worst)


def _params_format_unknown(spec: CallSpec, executors: Sequence[ExecutorSpec]) -> Refused:
    formats = sorted({name for executor in executors for name in executor.params_formats})
    message = "No executor of the model reads parameters of this format; frontend and executor differ."
    return _refused("PARAMS_FORMAT_UNKNOWN", message, "params_format", ", ".join(formats), spec.params_format)


def _out_of_range(field: str, limit: str, value: int | float) -> Refused:
    return _refused("PARAMETER_OUT_OF_RANGE", f"{field} must be {limit}, got {value}.", field, limit, value)


def _refused(reason: str, message: str, field: str, limit: object = "", value: object = "") -> Refused:
    return Refused(Refusal(reason=reason, message=message, field=field, limit=str(limit), value=str(value)))
