"""Which program does a request belong to? Pure rules over headers and a few body fields.

Theory of operation. Agent clients already send something that names their run; the first of these that is
present decides (`SOURCES`, in this order):

    body program_id, X-Autellix-Program-Id     a program made by StartProgram: it must exist
    everything else in SOURCES                 the client's own session key: opens or reopens (tenant, key)
    nothing                                    a program of this one request

A thread is the agent or thread id that travels beside the session key. People are never programs: `user` and
`safety_identifier` are not read; neither is `prompt_cache_key`, which may merge a whole application into one.
The table with its clients is docs/identity.md.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from frontend_svc.errors import Refused, refusal

KEY_CHARS_MAX = 256
CLASS_CHARS_MAX = 64
PARENTS_MAX = 64
_TRACEPARENT = re.compile(r"^[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}$")
_NO_TRACE = "0" * 32
DYNAMO_PARENT = "x-dynamo-parent-session-id"

Headers = Mapping[str, str]


class BodyKeys(msgspec.Struct):
    """The few body fields that matter here; the rest of the body is skipped, not decoded."""

    program_id: Any = None
    session_id: Any = None
    metadata: Any = None
    vllm_xargs: Any = None
    n: Any = None
    best_of: Any = None
    prompt: msgspec.Raw = msgspec.Raw()
    use_beam_search: Any = None

    def nested(self, container: str, key: str) -> Any:
        """`body[container][key]`, None when there is no such thing."""
        values = getattr(self, container)
        return values.get(key) if isinstance(values, dict) else None

    @property
    def single(self) -> bool:
        """True when the request surely makes one call: one sample of one prompt."""
        return (
            self.n in (None, 1)
            and self.best_of in (None, 1)
            and not self.use_beam_search
            and not bytes(self.prompt).lstrip().startswith(b"[")
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What a request says about its program. At most one of `program_id` and `session_key` is set."""

    source: str = "none"
    """Which entry of SOURCES decided, for logs and tests."""
    program_id: str = ""
    session_key: str = ""
    class_name: str = ""
    thread_id: str = ""
    parent_call_ids: tuple[str, ...] = ()
    final: bool = False
    """The program ends with this request."""
    single: bool = field(default=False)
    """The request makes exactly one call."""
    deadline_s: float | None = None
    """Seconds from now after which the answer is worthless."""

    @property
    def anonymous(self) -> bool:
        """True when nothing names a program."""
        return not self.program_id and not self.session_key


Read = Callable[[Headers, BodyKeys], Any]


@dataclass(frozen=True, slots=True)
class Source:
    """One place where clients put the name of their run."""

    name: str
    read: Read
    is_program_id: bool = False
    thread_header: str = ""
    """Header of the same client with its agent or thread id."""


def _header(name: str) -> Read:
    return lambda headers, body: headers.get(name)


def _trace_id(headers: Headers, body: BodyKeys) -> str | None:
    match = _TRACEPARENT.match(headers.get("traceparent", ""))
    return match[1] if match and match[1] != _NO_TRACE else None


def _rooted(name: str, parent: str) -> Read:
    """A session that may name its parent: the program is the parent's, the session one of its threads."""
    return lambda headers, body: headers.get(name) and (headers.get(parent) or headers[name])


SOURCES: tuple[Source, ...] = (
    Source("body.program_id", lambda headers, body: body.program_id, is_program_id=True),
    Source("body.session_id", lambda headers, body: body.session_id),
    Source("x-autellix-program-id", _header("x-autellix-program-id"), is_program_id=True),
    Source("x-session-id", _rooted("x-session-id", "x-parent-session-id"), thread_header="x-session-id"),
    Source(
        "x-dynamo-session-id",
        _rooted("x-dynamo-session-id", DYNAMO_PARENT),
        thread_header="x-dynamo-session-id",
    ),
    Source(
        "x-claude-code-session-id",
        _header("x-claude-code-session-id"),
        thread_header="x-claude-code-agent-id",
    ),
    Source("session-id", _header("session-id"), thread_header="thread-id"),
    Source("session_id", _header("session_id"), thread_header="thread_id"),
    Source("x-session-affinity", _header("x-session-affinity")),
    Source("x-litellm-session-id", _header("x-litellm-session-id")),
    Source("metadata.program_id", lambda headers, body: body.nested("metadata", "program_id")),
    Source("metadata.session_id", lambda headers, body: body.nested("metadata", "session_id")),
    Source("vllm_xargs.session_id", lambda headers, body: body.nested("vllm_xargs", "session_id")),
    Source("x-llm-d-inference-fairness-id", _header("x-llm-d-inference-fairness-id")),
    Source("traceparent", _trace_id),
)


def body_keys(body: bytes) -> BodyKeys:
    """Read the keys; a body that is not a JSON object has none (its own handler refuses it)."""
    try:
        return msgspec.json.decode(body, type=BodyKeys)
    except (msgspec.DecodeError, RecursionError):
        return BodyKeys()


def resolve(headers: Headers, body: BodyKeys) -> Identity:
    """Apply the rules.

    Args:
        headers: values by lower-case name.

    Raises:
        Refused: a key that is present but cannot be one (PARAMETER_OUT_OF_RANGE, naming it).
    """
    source, key = _first_key(headers, body)
    named = source is not None and source.is_program_id
    thread_header = "x-autellix-thread-id"
    if source is not None and thread_header not in headers:
        thread_header = source.thread_header
    return Identity(
        source=source.name if source else "none",
        program_id=key if named else "",
        session_key="" if named else key,
        class_name=_text(headers, "x-autellix-program-class", CLASS_CHARS_MAX),
        thread_id=_text(headers, thread_header, KEY_CHARS_MAX),
        parent_call_ids=_parents(headers),
        final=_is_final(headers),
        single=body.single,
        deadline_s=_deadline(headers),
    )


def _first_key(headers: Headers, body: BodyKeys) -> tuple[Source | None, str]:
    for source in SOURCES:
        key = source.read(headers, body)
        if key is not None and key != "":
            return source, _checked(source.name, key, KEY_CHARS_MAX)
    return None, ""


def _text(headers: Headers, name: str, chars_max: int) -> str:
    value = headers.get(name, "") if name else ""
    return _checked(name, value, chars_max) if value else ""


def _parents(headers: Headers) -> tuple[str, ...]:
    name = "x-autellix-parent-call-ids"
    parents = tuple(part.strip() for part in headers.get(name, "").split(",") if part.strip())
    if len(parents) > PARENTS_MAX:
        raise _bad(name, f"{PARENTS_MAX} ids", f"{len(parents)} ids")
    return tuple(_checked(name, parent, KEY_CHARS_MAX) for parent in parents)


def _deadline(headers: Headers) -> float | None:
    name = "x-autellix-deadline-s"
    text = headers.get(name)
    if not text:
        return None
    try:
        deadline_s = float(text)
    except ValueError:
        deadline_s = 0.0
    if not 0 < deadline_s <= 86_400:
        raise _bad(name, "seconds, > 0 and <= 86400", text[:32])
    return deadline_s


def _is_final(headers: Headers) -> bool:
    """True when the client says that its program is over; a child session's end is not its program's."""
    child = DYNAMO_PARENT in headers
    return _truthy(headers, "x-autellix-program-final") or (
        not child and _truthy(headers, "x-dynamo-session-final")
    )


def _truthy(headers: Headers, name: str) -> bool:
    return headers.get(name, "").strip().lower() in ("true", "1", "yes")


def _checked(name: str, value: Any, chars_max: int) -> str:
    if not isinstance(value, str):
        raise _bad(name, "a string", type(value).__name__)
    if len(value) > chars_max or not value.isprintable():
        raise _bad(name, f"{chars_max} printable characters", f"{len(value)} characters")
    return value


def _bad(name: str, limit: str, value: str) -> Refused:
    message = f"{name} cannot be used: {value} where the limit is {limit}"
    return Refused(refusal("PARAMETER_OUT_OF_RANGE", message, field=name, limit=limit, value=value))
