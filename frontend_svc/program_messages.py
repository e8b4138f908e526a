"""Program API values to and from their two spellings: program/v1 messages and JSON rows.

The only module that knows both the public messages and the values of `program_calls`. Field by field, so
that a change of either side is seen here; `PROGRAM_FIELDS` is the one list of what a client sees of a
program.
"""

from typing import Any

from frontend_svc import program_calls as calls
from frontend_svc.program_limits import empty_prompt
from protos.autellix.program.v1 import program_pb2 as pb
from protos.autellix.scheduler.v1 import scheduler_pb2 as scheduler_pb

PROGRAM_FIELDS = {
    # of the scheduler's record: (name in program/v1, name in JSON)
    "program_id": ("program_id", "program_id"),
    "session_key": ("session", "session"),
    "class_name": ("class_name", "class"),
    "live_calls": ("live_calls", "live_calls"),
    "finished_calls": ("finished_calls", "finished_calls"),
    "tokens": ("tokens", "tokens"),
    "attained_service_s": ("attained_service_s", "attained_service_s"),
    "waiting_s": ("waiting_s", "waiting_s"),
    "level": ("level", "level"),
    "age_s": ("age_s", "age_s"),
}

_STATE_PREFIX = "PROGRAM_STATE_"
_FINISH = {
    calls.Finish.STOP: pb.FINISH_REASON_STOP,
    calls.Finish.LENGTH: pb.FINISH_REASON_LENGTH,
    calls.Finish.CANCELLED: pb.FINISH_REASON_CANCELLED,
}
_OPTIONAL_SAMPLING = (
    "temperature", "top_p", "top_k", "seed", "max_tokens", "min_tokens", "presence_penalty",
    "frequency_penalty", "repetition_penalty", "logprobs",
)  # fmt: skip


def program_message(record: scheduler_pb.ProgramRecord) -> pb.Program:
    """A program as gRPC clients see it."""
    message = pb.Program(state=scheduler_pb.ProgramState.Name(record.state))  # the same names on both sides
    for name, (public, _) in PROGRAM_FIELDS.items():
        setattr(message, public, getattr(record, name))
    return message


def program_row(record: scheduler_pb.ProgramRecord) -> dict[str, Any]:
    """A program as HTTP clients see it; `state` is e.g. "running"."""
    row = {public: getattr(record, name) for name, (_, public) in PROGRAM_FIELDS.items()}
    state = scheduler_pb.ProgramState.Name(record.state)
    return row | {"state": state.removeprefix(_STATE_PREFIX).lower()}


def call_request(message: pb.GenerateRequest, deadline_s: float | None) -> calls.CallRequest:
    """A Generate request as a value.

    Raises:
        Refused: PROMPT_EMPTY, no prompt is set.
    """
    return calls.CallRequest(
        prompt=_prompt(message),
        sampling=_sampling(message.sampling),
        program_id=message.program_id,
        thread_id=message.thread_id,
        parent_call_ids=tuple(message.parent_call_ids),
        model=message.model,
        deadline_s=deadline_s,
    )


def piece_message(piece: calls.Piece) -> pb.GenerateResponse:
    """A piece of a generation as gRPC clients see it."""
    message = pb.GenerateResponse(
        call_id=piece.call_id,
        program_id=piece.program_id,
        text=piece.text,
        token_ids=piece.token_ids,
        logprobs=[_logprob_message(logprobs) for logprobs in piece.logprobs],
    )
    if piece.finish is not None:
        message.finish_reason = _FINISH[piece.finish]
    if piece.usage is not None:
        message.usage.prompt_tokens = piece.usage.prompt_tokens
        message.usage.completion_tokens = piece.usage.completion_tokens
        message.usage.cached_tokens = piece.usage.cached_tokens
    return message


def _prompt(message: pb.GenerateRequest) -> calls.Prompt:
    match message.WhichOneof("prompt"):
        case "text":
            return calls.TextPrompt(message.text)
        case "chat":
            return calls.ChatPrompt(tuple((m.role, m.content) for m in message.chat.messages))
        case "token_ids":
            return calls.TokenPrompt(tuple(message.token_ids.ids))
    raise empty_prompt("prompt")


def _sampling(message: pb.SamplingOptions) -> calls.Sampling:
    given = {name: getattr(message, name) for name in _OPTIONAL_SAMPLING if message.HasField(name)}
    return calls.Sampling(
        **given,
        stop=tuple(message.stop),
        stop_token_ids=tuple(message.stop_token_ids),
        ignore_eos=message.ignore_eos,
        json_schema=message.json_schema,
    )


def _logprob_message(logprobs: calls.TokenLogprobs) -> pb.TokenLogprob:
    taken = logprobs.taken
    top = [pb.AlternativeToken(token_id=t.token_id, text=t.text, logprob=t.logprob) for t in logprobs.top]
    return pb.TokenLogprob(token_id=taken.token_id, text=taken.text, logprob=taken.logprob, top=top)
