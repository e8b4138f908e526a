"""What the program API accepts: one table of limits, checked before anything is rendered or sent.

A broken limit is a `Refused` that names the field, the limit and the value. Long or unprintable values are
never echoed: their length stands for them.
"""

import json
import math
from collections.abc import Sequence

from frontend_svc.errors import Refused, refusal
from frontend_svc.program_calls import CallRequest, ChatPrompt, Prompt, Sampling, TextPrompt

SESSION_CHARS_MAX = 256
CLASS_CHARS_MAX = 64
ID_CHARS_MAX = 128
MODEL_CHARS_MAX = 256
PARENTS_MAX = 64
MESSAGES_MAX = 4096
STOPS_MAX = 16
STOP_CHARS_MAX = 256
STOP_TOKEN_IDS_MAX = 256
JSON_SCHEMA_CHARS_MAX = 131_072
INTERVAL_S_MIN, INTERVAL_S_MAX = 0.1, 3600.0
ROLES = ("system", "user", "assistant", "tool")

_INT32_MAX = 2**31 - 1
_INT64 = 2**63

SAMPLING_RANGES: dict[str, tuple[float, float, str]] = {
    # field: (least, most, the range as people write it)
    "temperature": (0.0, 2.0, "0..2"),
    "top_p": (math.nextafter(0.0, 1.0), 1.0, "> 0 and <= 1"),
    "top_k": (0, _INT32_MAX, f"0..{_INT32_MAX}"),
    "seed": (-_INT64, _INT64 - 1, "a signed 64-bit integer"),
    "max_tokens": (1, _INT32_MAX, f"1..{_INT32_MAX}"),
    "min_tokens": (0, _INT32_MAX, f"0..{_INT32_MAX}"),
    "presence_penalty": (-2.0, 2.0, "-2..2"),
    "frequency_penalty": (-2.0, 2.0, "-2..2"),
    "repetition_penalty": (math.nextafter(0.0, 1.0), math.inf, "a finite number > 0"),
    "logprobs": (0, 20, "0..20"),
}

_VALUE_CHARS_MAX = 64


def check_session(session: str) -> None:
    """Refuses a session key that is too long or not printable. Empty is fine: no key."""
    _check_name("session", session, SESSION_CHARS_MAX)


def check_class_name(class_name: str) -> None:
    """Refuses a class name that is too long or not printable. Empty is fine: no class."""
    _check_name("class", class_name, CLASS_CHARS_MAX)


def check_program_id(program_id: str) -> None:
    """Refuses an id that cannot be one; one that merely names nothing is PROGRAM_UNKNOWN later."""
    if not program_id:
        raise invalid("program_id", "a program id", "empty")
    _check_name("program_id", program_id, ID_CHARS_MAX)


def check_call_id(call_id: str) -> None:
    """Refuses an id that cannot be one."""
    if not call_id:
        raise invalid("call_id", "a call id", "empty")
    _check_name("call_id", call_id, ID_CHARS_MAX)


def check_interval_s(interval_s: float) -> None:
    """Refuses a watch interval that the scheduler would refuse; 0 asks for the default."""
    if interval_s != 0.0 and not INTERVAL_S_MIN <= interval_s <= INTERVAL_S_MAX:
        limit = f"0, or {INTERVAL_S_MIN:g}..{INTERVAL_S_MAX:g}"
        raise out_of_range("interval_s", limit, f"{interval_s:g}")


def check_call(request: CallRequest) -> None:
    """Refuses a call that breaks any limit which can be judged without the model's tokenizer."""
    if request.program_id:
        check_program_id(request.program_id)
    _check_name("thread_id", request.thread_id, ID_CHARS_MAX)
    _check_count("parent_call_ids", request.parent_call_ids, PARENTS_MAX)
    for parent in request.parent_call_ids:
        _check_name("parent_call_ids", parent, ID_CHARS_MAX)
    _check_name("model", request.model, MODEL_CHARS_MAX)
    _check_prompt(request.prompt)
    check_sampling(request.sampling)


def check_sampling(sampling: Sampling) -> None:
    """Refuses sampling options outside their ranges."""
    for field, (least, most, limit) in SAMPLING_RANGES.items():
        value = getattr(sampling, field)
        if value is not None and not (least <= value <= most and math.isfinite(value)):
            raise out_of_range(f"sampling.{field}", limit, f"{value:.9g}")
    if sampling.max_tokens is not None and (sampling.min_tokens or 0) > sampling.max_tokens:
        limit = f"max_tokens = {sampling.max_tokens}"
        raise out_of_range("sampling.min_tokens", limit, str(sampling.min_tokens))
    _check_stops(sampling)
    _check_json_schema(sampling.json_schema)


def _check_stops(sampling: Sampling) -> None:
    _check_count("sampling.stop", sampling.stop, STOPS_MAX)
    for stop in sampling.stop:
        if not 1 <= len(stop) <= STOP_CHARS_MAX:
            raise out_of_range("sampling.stop", f"1..{STOP_CHARS_MAX} characters", f"{len(stop)} characters")
    _check_count("sampling.stop_token_ids", sampling.stop_token_ids, STOP_TOKEN_IDS_MAX)
    for token_id in sampling.stop_token_ids:
        _check_token_id("sampling.stop_token_ids", token_id)


def _check_json_schema(schema: str) -> None:
    field = "sampling.json_schema"
    if len(schema) > JSON_SCHEMA_CHARS_MAX:
        raise out_of_range(field, f"{JSON_SCHEMA_CHARS_MAX} characters", f"{len(schema)} characters")
    if not schema:
        return
    try:
        document = json.loads(schema)
    except (ValueError, RecursionError) as error:
        raise invalid(field, "JSON text of a schema", f"{len(schema)} characters") from error
    if not isinstance(document, dict):
        raise invalid(field, "a JSON object", type(document).__name__)


def _check_prompt(prompt: Prompt) -> None:
    if isinstance(prompt, ChatPrompt):
        _check_messages(prompt)
    elif isinstance(prompt, TextPrompt):
        if not prompt.text:
            raise empty_prompt("text")
    elif not prompt.token_ids:
        raise empty_prompt("token_ids")
    else:
        for token_id in prompt.token_ids:
            _check_token_id("token_ids", token_id)


def _check_messages(prompt: ChatPrompt) -> None:
    if not prompt.messages:
        raise empty_prompt("chat.messages")
    _check_count("chat.messages", prompt.messages, MESSAGES_MAX)
    for role, _ in prompt.messages:
        if role not in ROLES:
            raise invalid("chat.messages.role", ", ".join(ROLES), shown(role))


def _check_token_id(field: str, token_id: int) -> None:
    if token_id > _INT32_MAX:
        message = f"{field} holds a token id that no vocabulary has"
        limit = f"0..{_INT32_MAX}"
        raise Refused(refusal("INVALID_TOKEN_ID", message, field=field, limit=limit, value=token_id))


def _check_name(field: str, name: str, chars_max: int) -> None:
    if len(name) > chars_max:
        raise out_of_range(field, f"{chars_max} characters", f"{len(name)} characters")
    if not name.isprintable():
        raise invalid(field, "printable characters", f"{len(name)} characters")


def _check_count(field: str, items: Sequence[object], count_max: int) -> None:
    if len(items) > count_max:
        raise out_of_range(field, f"{count_max} items", f"{len(items)} items")


def shown(value: str) -> str:
    """`value` as an error may show it: itself when short and printable, else its length."""
    if len(value) <= _VALUE_CHARS_MAX and value.isprintable():
        return value
    return f"{len(value)} characters"


def out_of_range(field: str, limit: str, value: str) -> Refused:
    """The error for a number, a length or a count outside of its limit."""
    message = f"{field} is out of range: {value} where the limit is {limit}"
    return Refused(refusal("PARAMETER_OUT_OF_RANGE", message, field=field, limit=limit, value=value))


def invalid(field: str, limit: str, value: str) -> Refused:
    """The error for what is no number out of range but simply not `limit`, e.g. "a JSON object"."""
    message = f"{field} is not what it must be: {value} where {limit} is expected"
    return Refused(refusal("PARAMETER_INVALID", message, field=field, limit=limit, value=value))


def empty_prompt(field: str) -> Refused:
    """The error for a prompt without a token."""
    message = f"{field} is empty: a call needs a prompt of at least one token"
    return Refused(refusal("PROMPT_EMPTY", message, field=field, limit="at least 1 token", value="0 tokens"))
