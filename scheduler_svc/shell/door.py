"""The door: what a submitted call must be before the core sees it.

Each rule names the field, the limit and the value. Checked here is what one message and the registered
executors can tell: torn columns, empty prompts, token ids outside the vocabulary, numbers out of range,
texts that are too long, formats nobody understands, too many calls of one frontend. The core refuses what
its tables know: programs, models, lengths against KV, the total of live calls.

Of a prompt's block hashes their number is checked, since the core counts on it, and the first of the chain,
so that those of another tenant, salt or release do not come in by mistake. The others are taken as they are:
peers are trusted, and a frontend that says wrong hashes could say a wrong tenant just as well.
"""

import math
from array import array
from collections.abc import Callable
from dataclasses import dataclass

from protos.autellix.scheduler.v1 import scheduler_pb2 as pb
from scheduler_svc.core.errors import Refusal, Refused
from scheduler_svc.core.events import CallSpec
from scheduler_svc.core.ids import CallId, FrontendId, ProgramId, StreamHandle, TenantId, ThreadId
from scheduler_svc.shell.executor_registry import ModelFacts
from svc_runtime.block_hashes import DIGEST_BYTES, hash_prompt
from svc_runtime.columns import unpack_i32

_TEXTS = ("tenant", "program_id", "thread_id", "model", "params_format", "cache_salt")


@dataclass(frozen=True, slots=True, kw_only=True)
class DoorLimits:
    """What one frontend, and one call, may ask for."""

    frontend_calls_max: int = 8192
    """Calls of one frontend that are live, or ended and not acknowledged."""
    params_bytes_max: int = 1 << 20
    text_chars_max: int = 512
    """Length of each id, name and salt."""
    parent_calls_max: int = 1024
    stop_tokens_max: int = 1024
    retry_after_s: float = 1.0
    """Sent along when a queue is full."""


class Door:
    """Turns Submit messages into calls, or refuses them.

    Args:
        facts: what is known of a model by name; None for a model never seen.
    """

    def __init__(self, limits: DoorLimits, facts: Callable[[str], ModelFacts | None]) -> None:
        self._limits = limits
        self._facts = facts
        self._closed = False
        self.refused_calls = 0
        """Calls refused here since start."""

    def close(self) -> None:
        """From now on everything is refused with SHUTTING_DOWN."""
        self._closed = True

    def check_open(self) -> None:
        """Raises: Refused with SHUTTING_DOWN once closed."""
        if self._closed:
            raise Refused(
                Refusal(
                    reason="SHUTTING_DOWN",
                    message="this scheduler is shutting down: try again on its successor",
                    retry_after_s=self._limits.retry_after_s,
                )
            )

    def admit(self, submit: pb.Submit, frontend_id: FrontendId, frontend_calls: int) -> CallSpec:
        """Checks a call.

        Args:
            frontend_calls: calls that the frontend has already, not acknowledged ones included.

        Raises: Refused; nothing is kept of the call.
        """
        try:
            return self._checked(submit, frontend_id, frontend_calls)
        except Refused:
            self.refused_calls += 1
            raise

    def _checked(self, submit: pb.Submit, frontend_id: FrontendId, frontend_calls: int) -> CallSpec:
        self.check_open()
        self._check_room(frontend_calls)
        self._check_texts(submit)
        _check_numbers(submit)
        prompt = _token_ids(submit.prompt_token_ids, "prompt_token_ids")
        output = _token_ids(submit.output_token_ids, "output_token_ids")
        stop = _token_ids(submit.stop_token_ids, "stop_token_ids")
        self._check_tokens(submit, prompt, output, stop)
        _check_hashes(submit, prompt)
        return CallSpec(
            call_id=CallId(submit.call_id),
            frontend_id=frontend_id,
            stream_handle=StreamHandle(submit.handle),
            tenant=TenantId(submit.tenant),
            program_id=ProgramId(submit.program_id),
            thread_id=ThreadId(submit.thread_id),
            parent_call_ids=tuple(CallId(parent) for parent in submit.parent_call_ids),
            model=submit.model,
            prompt_token_ids=array("i", prompt),  # int32: many calls wait for long
            output_token_ids=array("i", output),
            max_tokens=submit.max_tokens,
            min_tokens=submit.min_tokens,
            stop_token_ids=frozenset(stop),
            eos_token_id=submit.eos_token_id if submit.HasField("eos_token_id") else None,
            params=submit.params,
            params_format=submit.params_format,
            needs_preparation=submit.needs_preparation,
            skip_reading_prefix_cache=submit.skip_reading_prefix_cache,
            cache_salt=submit.cache_salt,
            deadline_s=submit.deadline_s if submit.HasField("deadline_s") else None,
            prompt_block_hashes=submit.prompt_block_hashes,
            hash_block_size=submit.hash_block_size,
        )

    def _check_room(self, frontend_calls: int) -> None:
        limit = self._limits.frontend_calls_max
        if frontend_calls >= limit:
            raise Refused(
                Refusal(
                    reason="QUEUE_FULL",
                    message="this frontend has as many live or unacknowledged calls as it may have",
                    field="calls of one frontend",
                    limit=str(limit),
                    value=str(frontend_calls),
                    retry_after_s=self._limits.retry_after_s,
                )
            )

    def _check_texts(self, submit: pb.Submit) -> None:
        limits = self._limits
        _require(submit.call_id != "", "call_id", "not empty", "''")
        for field in ("call_id", *_TEXTS):
            _require_at_most(len(getattr(submit, field)), limits.text_chars_max, field, "characters")
        _require_at_most(len(submit.parent_call_ids), limits.parent_calls_max, "parent_call_ids", "calls")
        for parent in submit.parent_call_ids:
            _require_at_most(len(parent), limits.text_chars_max, "parent_call_ids", "characters")
        _require_at_most(len(submit.params), limits.params_bytes_max, "params", "bytes")

    def _check_tokens(self, submit: pb.Submit, prompt: list[int], output: list[int], stop: list[int]) -> None:
        if not prompt:
            raise _refused("PROMPT_EMPTY", "prompt_token_ids", ">= 1 tokens", "0")
        _require(
            len(output) < submit.max_tokens, "output_token_ids", "fewer than max_tokens", str(len(output))
        )
        _require_at_most(len(stop), self._limits.stop_tokens_max, "stop_token_ids", "tokens")
        facts = self._facts(submit.model)
        if facts is None:  # the core says what becomes of calls to a model that nobody serves
            return
        _check_vocabulary(prompt, facts.vocab_size, "prompt_token_ids")
        _check_vocabulary(output, facts.vocab_size, "output_token_ids")
        if submit.params_format not in facts.params_formats:
            known = ", ".join(sorted(facts.params_formats))
            raise _refused("PARAMS_FORMAT_UNKNOWN", "params_format", f"one of {known}", submit.params_format)


def _check_numbers(submit: pb.Submit) -> None:
    _require(submit.max_tokens > 0, "max_tokens", "> 0", str(submit.max_tokens))
    _require(
        submit.min_tokens <= submit.max_tokens,
        "min_tokens",
        f"<= max_tokens = {submit.max_tokens}",
        str(submit.min_tokens),
    )
    if submit.HasField("deadline_s"):
        _require(math.isfinite(submit.deadline_s), "deadline_s", "finite", str(submit.deadline_s))
        if submit.deadline_s <= 0:
            raise _refused("DEADLINE_EXCEEDED", "deadline_s", "> 0", str(submit.deadline_s))


def _check_hashes(submit: pb.Submit, prompt: list[int]) -> None:
    """None at all, or one a full block of the prompt."""
    hashes, size = submit.prompt_block_hashes, submit.hash_block_size
    if not hashes:
        return
    _require(size > 0, "hash_block_size", "> 0 with hashes", str(size))
    limit = f"{DIGEST_BYTES} bytes for each of {len(prompt) // size} full blocks"
    whole = len(hashes) == DIGEST_BYTES * (len(prompt) // size)
    _require(whole, "prompt_block_hashes", limit, f"{len(hashes)} bytes")
    first = hash_prompt(submit.tenant, submit.cache_salt, prompt[:size], size)
    ours = hashes.startswith(first)
    _require(
        ours, "prompt_block_hashes", "those of this tenant, salt and prompt", hashes[:DIGEST_BYTES].hex()
    )


def _token_ids(column: bytes, field: str) -> list[int]:
    try:
        return unpack_i32(column)
    except ValueError as error:
        raise _refused(
            "PARAMETER_OUT_OF_RANGE", field, "a whole int32 column", f"{len(column)} bytes"
        ) from error


def _check_vocabulary(token_ids: list[int], vocab_size: int, field: str) -> None:
    if not token_ids:
        return
    for extreme in (min(token_ids), max(token_ids)):
        if not 0 <= extreme < vocab_size:
            raise _refused("INVALID_TOKEN_ID", field, f"0 <= id < {vocab_size}", str(extreme))


def _require_at_most(count: int, limit: int, field: str, unit: str) -> None:
    _require(count <= limit, field, f"<= {limit} {unit}", f"{count} {unit}")


def _require(holds: bool, field: str, limit: str, value: str) -> None:
    if not holds:
        raise _refused("PARAMETER_OUT_OF_RANGE", field, limit, value)


def _refused(reason: str, field: str, limit: str, value: str) -> Refused:
    message = f"{field} must be {limit}, got {value}"
    return Refused(Refusal(reason=reason, message=message, field=field, limit=limit, value=value))
