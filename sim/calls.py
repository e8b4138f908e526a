"""Draws calls: prompts that share prefixes, limits, stop tokens, deadlines; and what must be refused."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from random import Random
from typing import Any

from scheduler_svc.core.events import CallSpec
from scheduler_svc.core.ids import CallId, FrontendId, ProgramId, StreamHandle, TenantId, ThreadId
from sim.draws import PARAMS_FORMAT, Model
from sim.ledger import CallRecord
from sim.model import VOCAB_SIZE, expected_output
from svc_runtime.block_hashes import hash_prompt

SYSTEM_PROMPT_TOKENS = 40

BAD_CALLS: dict[str, dict[str, Any]] = {
    "PROMPT_EMPTY": {"prompt_token_ids": ()},
    "PROMPT_TOO_LONG": {"prompt_token_ids": (1,) * 10_000},
    "PARAMETER_OUT_OF_RANGE": {"max_tokens": 0},
    "INVALID_TOKEN_ID": {"prompt_token_ids": (-1,)},
    "MODEL_UNKNOWN": {"model": "no such model"},
    "PROGRAM_UNKNOWN": {"program_id": ProgramId("no such program")},
    "PARAMS_FORMAT_UNKNOWN": {"params_format": "sim/2"},
}
"""Reason of the refusal -> what is wrong with the call."""


class CallDrawer:
    """Makes the calls of an episode. Ids and handles are numbers that are never used twice."""

    def __init__(self, random: Random, output_max: int) -> None:
        self._random = random
        self._output_max = output_max
        self._made = 0
        self._system_prompts: dict[str, list[int]] = {}

    def draw(
        self,
        *,
        frontend_id: FrontendId,
        tenant: TenantId,
        program_id: ProgramId,
        class_name: str,
        model: Model,
        parents: Sequence[CallRecord],
    ) -> CallSpec:
        """A call of a program, after the calls it names as its parents."""
        chance, pick = self._random.random, self._random.choice
        prompt = self._draw_prompt(class_name, model, parents)
        max_tokens = self._random.randint(1, min(self._output_max, model.longest - len(prompt)))
        done = self._tokens(self._random.randrange(max_tokens)) if chance() < 0.05 else []
        self._made += 1
        return CallSpec(
            call_id=CallId(f"call-{self._made}"),
            frontend_id=frontend_id,
            stream_handle=StreamHandle(self._made),
            tenant=tenant,
            program_id=program_id,
            thread_id=ThreadId(pick(("", "", "a", "b"))),
            parent_call_ids=tuple(parent.spec.call_id for parent in parents) if chance() < 0.7 else (),
            model=model.name,
            prompt_token_ids=prompt,
            output_token_ids=done,
            max_tokens=max_tokens,
            min_tokens=self._random.randint(0, max_tokens) if chance() < 0.2 else 0,
            stop_token_ids=self._stop_tokens() if chance() < 0.25 else frozenset(),
            params=b"temperature: 0" if chance() < 0.5 else b"",
            params_format=PARAMS_FORMAT if chance() < 0.5 else "",
            needs_preparation=chance() < 0.08,
            skip_reading_prefix_cache=chance() < 0.05,
            cache_salt="salt" if chance() < 0.1 else "",
            deadline_s=pick((0.1, 2.0, 30.0)) if chance() < 0.05 else None,
        )

    def record(self, spec: CallSpec, model: Model, script: Any) -> CallRecord:
        """The frontend's side of a call. Half of them come with the hashes of their prompt's blocks, some
        generate an end-of-sequence token of theirs."""
        if self._random.random() < 0.5:
            spec = _with_hashes(spec, self._random.choice((4, 8)))
        expected = expected_output(spec, model.fingerprint)
        if self._random.random() < 0.15:
            spec = replace(spec, eos_token_id=self._random.choice(expected.tokens))
            expected = expected_output(spec, model.fingerprint)
        return CallRecord(
            spec=spec,
            expected=expected,
            fingerprint=model.fingerprint,
            output=list(spec.output_token_ids),
            script=script,
            preparation_error="no such grammar" if self._random.random() < 0.15 else "",
        )

    def again(self, record: CallRecord) -> CallSpec:
        """What a client sends whose call was cut off: the same call, with the tokens it has, under new
        names."""
        self._made += 1
        return replace(
            record.spec,
            call_id=CallId(f"call-{self._made}"),
            stream_handle=StreamHandle(self._made),
            output_token_ids=tuple(record.output),
        )

    def changed(self, spec: CallSpec, **changes: Any) -> CallSpec:
        """A call under a new stream handle, with something else about it."""
        self._made += 1
        return replace(spec, stream_handle=StreamHandle(self._made), **changes)

    def refused_record(self, spec: CallSpec, reasons: Iterable[str]) -> CallRecord:
        """The frontend's side of a call that must be refused."""
        expected = expected_output(replace(spec, output_token_ids=(), max_tokens=0), "")
        return CallRecord(
            spec=spec,
            expected=expected,
            fingerprint="",
            output=[],
            refusals=frozenset(reasons),
        )

    def _draw_prompt(self, class_name: str, model: Model, parents: Sequence[CallRecord]) -> list[int]:
        """An earlier call's prompt and output and something new, as agents do; else, or when that is too
        long, a part of the system prompt of the class and something new."""
        room = model.longest - 1
        new = self._tokens(self._random.randint(1, 12))
        if parents and self._random.random() < 0.85:
            parent = self._random.choice(parents)
            prompt = [*parent.spec.prompt_token_ids, *parent.output, *new]
            if len(prompt) <= room:
                return prompt
        shared = self._system_prompts.setdefault(class_name, [])
        if not shared:
            shared += self._tokens(SYSTEM_PROMPT_TOKENS)
        most = max(0, min(len(shared), room - len(new)))
        return [*shared[: self._random.choice((0, most // 2, most, most))], *new][:room]

    def _tokens(self, count: int) -> list[int]:
        return [self._random.randrange(VOCAB_SIZE) for _ in range(count)]

    def _stop_tokens(self) -> frozenset[int]:
        first = self._random.randrange(VOCAB_SIZE)
        return frozenset(range(first, min(first + 40, VOCAB_SIZE)))


def _with_hashes(spec: CallSpec, block_size: int) -> CallSpec:
    """A call whose frontend expects blocks of this size and has hashed the prompt."""
    hashes = hash_prompt(spec.tenant, spec.cache_salt, spec.prompt_token_ids, block_size)
    return replace(spec, prompt_block_hashes=hashes, hash_block_size=block_size)
