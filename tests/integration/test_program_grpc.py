"""The public gRPC API on a real stack: what it generates and refuses, and what the process table says."""

import asyncio
import json
import math
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from bench.cluster import Cluster
from protos.autellix.program.v1 import program_pb2 as pb
from protos.autellix.program.v1 import program_pb2_grpc as rpc
from svc_runtime.grpc_aio import open_channel
from svc_runtime.rpc_errors import RpcFailure, parse_error

pytestmark = pytest.mark.timeout(240)

MAX_MODEL_LEN = 4096
EXECUTOR = {
    "dtype": "float32",
    "block_size": 32,
    "max_model_len": MAX_MODEL_LEN,
    "max_num_seqs": 16,
    "enforce_eager": True,
    "kv_cache_gib": 1,
}
ACME, RIVAL = "key-of-acme", "key-of-rival"
TIMEOUT_S = 60.0
PROMPT = list(range(300, 364))
LONG = {"temperature": 0.0, "max_tokens": 3900, "ignore_eos": True}
SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}, "n": {"enum": [1, 2]}},
    "required": ["ok", "n"],
    "additionalProperties": False,
}
ENDED = (pb.PROGRAM_STATE_ENDED, pb.PROGRAM_STATE_CANCELLED, pb.PROGRAM_STATE_TIMED_OUT)


@pytest.fixture(scope="module")
def cluster(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    frontend = {"api_keys": f"acme:{ACME},rival:{RIVAL}"}
    directory = tmp_path_factory.mktemp("program_grpc")
    with Cluster(directory, model=tiny_model, executor=EXECUTOR, frontend=frontend) as running:
        yield running


class Client:
    """One tenant's client."""

    def __init__(self, channel: grpc.aio.Channel, key: str) -> None:
        self.stub = rpc.ProgramServiceStub(channel)
        self.metadata = (("authorization", f"Bearer {key}"),)

    async def start(self, **request: str) -> pb.Program:
        request_ = pb.StartProgramRequest(**request)
        return (await self.stub.StartProgram(request_, metadata=self.metadata, timeout=TIMEOUT_S)).program

    async def get(self, program_id: str) -> pb.Program:
        request = pb.GetProgramRequest(program_id=program_id)
        return (await self.stub.GetProgram(request, metadata=self.metadata, timeout=TIMEOUT_S)).program

    async def until(self, program_id: str, condition: Callable[[pb.Program], bool]) -> pb.Program:
        """The program as soon as the condition holds of it."""
        async with asyncio.timeout(20):
            while not condition(program := await self.get(program_id)):  # noqa: ASYNC110 (asks a server)
                await asyncio.sleep(0.02)
        return program

    def stream(self, sampling: dict[str, Any], *, timeout_s: float = TIMEOUT_S, **request: Any) -> Any:
        if not {"text", "chat", "token_ids"} & request.keys():
            request["token_ids"] = pb.TokenIds(ids=PROMPT)
        message = pb.GenerateRequest(sampling=pb.SamplingOptions(**sampling), **request)
        return self.stub.Generate(message, metadata=self.metadata, timeout=timeout_s)

    async def generate(self, sampling: dict[str, Any], **request: Any) -> "Answer":
        return Answer([piece async for piece in self.stream(sampling, **request)])


class Answer:
    """A whole generation, put together from its pieces."""

    def __init__(self, pieces: Sequence[pb.GenerateResponse]) -> None:
        self.call_id, self.program_id = pieces[0].call_id, pieces[0].program_id
        self.pieces = len(pieces)
        self.text = "".join(piece.text for piece in pieces)
        self.token_ids = [token for piece in pieces for token in piece.token_ids]
        self.logprobs = [row for piece in pieces for row in piece.logprobs]
        self.finish, self.usage = pieces[-1].finish_reason, pieces[-1].usage


@pytest.fixture
async def channel(cluster: Cluster) -> AsyncIterator[grpc.aio.Channel]:
    async with open_channel(cluster.grpc_target) as opened:
        yield opened


@pytest.fixture
def acme(channel: grpc.aio.Channel) -> Client:
    return Client(channel, ACME)


@pytest.fixture
def rival(channel: grpc.aio.Channel) -> Client:
    return Client(channel, RIVAL)


async def refused(awaitable: Any) -> RpcFailure:
    with pytest.raises(grpc.RpcError) as caught:
        await awaitable
    return parse_error(caught.value)


# ── what it generates ───────────────────────────────────────────────────────────────────────────────


async def test_a_chat_gives_the_text_of_the_openai_route(cluster: Cluster, acme: Client) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "The river?"}]
    options = {"temperature": 0.0, "max_tokens": 24}
    async with httpx.AsyncClient(timeout=TIMEOUT_S) as http:
        answer = await http.post(
            f"{cluster.base_url}/chat/completions",
            json={"model": "test", "messages": messages, **options},
            headers={"Authorization": f"Bearer {ACME}"},
        )
    over_http = answer.json()
    chat = pb.Chat(messages=[pb.ChatMessage(**message) for message in messages])
    over_grpc = await acme.generate(options, chat=chat, model="test")
    assert over_grpc.text == over_http["choices"][0]["message"]["content"]
    assert over_grpc.usage.prompt_tokens == over_http["usage"]["prompt_tokens"]
    assert over_grpc.usage.completion_tokens == over_http["usage"]["completion_tokens"]
    assert over_grpc.pieces > 3, "it was streamed"


async def test_text_and_its_token_ids_are_the_same_prompt(cluster: Cluster, acme: Client) -> None:
    text = "the quick brown fox"
    async with httpx.AsyncClient(timeout=TIMEOUT_S) as http:
        tokenized = await http.post(
            cluster.base_url.removesuffix("/v1") + "/tokenize",
            json={"model": "test", "prompt": text},
            headers={"x-api-key": ACME},
        )
    ids = tokenized.json()["tokens"]
    options = {"temperature": 0.0, "max_tokens": 16, "ignore_eos": True}
    from_text = await acme.generate(options, text=text)
    from_ids = await acme.generate(options, token_ids=pb.TokenIds(ids=ids))
    assert from_text.usage.prompt_tokens == len(ids)
    assert from_text.token_ids == from_ids.token_ids
    assert len(from_ids.token_ids) == 16


async def test_a_seed_repeats_and_another_one_differs(acme: Client) -> None:
    options = {"temperature": 1.0, "max_tokens": 24, "ignore_eos": True}
    first, again, other = [await acme.generate(options | {"seed": seed}) for seed in (7, 7, 8)]
    assert first.token_ids == again.token_ids != other.token_ids


async def test_logprobs_come_with_every_token(acme: Client) -> None:
    answer = await acme.generate({"temperature": 0.0, "max_tokens": 12, "ignore_eos": True, "logprobs": 3})
    assert [row.token_id for row in answer.logprobs] == answer.token_ids
    for row in answer.logprobs:
        logprobs = [token.logprob for token in row.top]
        assert len(logprobs) == 3
        assert logprobs == sorted(logprobs, reverse=True)
        assert row.top[0].token_id == row.token_id, "greedy takes the likeliest"
        assert row.logprob == row.top[0].logprob < 0.0
    bare = await acme.generate({"temperature": 1.0, "max_tokens": 3, "ignore_eos": True, "logprobs": 0})
    assert [len(row.top) for row in bare.logprobs] == [0, 0, 0]
    assert all(math.isfinite(row.logprob) for row in bare.logprobs)


async def test_a_schema_is_followed(acme: Client) -> None:
    answer = await acme.generate({"seed": 1, "max_tokens": 200, "json_schema": json.dumps(SCHEMA)})
    assert answer.finish == pb.FINISH_REASON_STOP
    document = json.loads(answer.text)
    assert document["ok"] in (True, False)
    assert document["n"] in (1, 2)


async def test_a_stop_string_ends_the_text_before_itself(acme: Client) -> None:
    options = {"temperature": 0.0, "max_tokens": 40, "ignore_eos": True}
    free = await acme.generate(options)
    middle = len(free.text) // 2
    stop = free.text[middle : middle + 3]
    program = await acme.start()
    cut = await acme.generate(options | {"stop": [stop]}, program_id=program.program_id)
    assert cut.finish == pb.FINISH_REASON_STOP
    assert cut.text == free.text[: free.text.index(stop)]
    after = await acme.until(program.program_id, lambda now: now.live_calls == 0)
    assert after.finished_calls == 1


async def test_a_repeated_prompt_is_served_from_the_cache(acme: Client) -> None:
    options = {"temperature": 0.0, "max_tokens": 2, "ignore_eos": True}
    prompt = pb.TokenIds(ids=range(1000, 1100))
    first = await acme.generate(options, token_ids=prompt)
    again = await acme.generate(options, token_ids=prompt)
    assert (first.usage.cached_tokens, again.usage.cached_tokens) == (0, 96)
    assert first.token_ids == again.token_ids


# ── programs ────────────────────────────────────────────────────────────────────────────────────────


async def test_the_process_table_counts_what_the_clients_counted(acme: Client) -> None:
    program = await acme.start(class_name="counting")
    options = [{"max_tokens": 4 + i, "ignore_eos": True} for i in range(8)]
    answers = await asyncio.gather(
        *(
            acme.generate(option, program_id=program.program_id, thread_id=f"t{i}")
            for i, option in enumerate(options)
        )
    )
    after = await acme.until(program.program_id, lambda now: now.live_calls == 0)
    assert (after.state, after.class_name) == (pb.PROGRAM_STATE_IDLE, "counting")
    assert after.finished_calls == 8
    assert after.tokens == sum(len(answer.token_ids) for answer in answers) == sum(range(4, 12))
    assert after.attained_service_s > 0.0
    assert len({answer.call_id for answer in answers}) == 8


async def test_a_call_without_a_program_ends_its_own(acme: Client) -> None:
    answer = await acme.generate({"max_tokens": 2, "ignore_eos": True})
    after = await acme.until(answer.program_id, lambda now: now.state in ENDED)
    assert (after.state, after.finished_calls, after.tokens) == (pb.PROGRAM_STATE_ENDED, 1, 2)


async def test_a_call_can_name_its_parents(acme: Client) -> None:
    program = await acme.start()
    options = {"max_tokens": 2, "ignore_eos": True}
    parent = await acme.generate(options, program_id=program.program_id)
    child = await acme.generate(options, program_id=program.program_id, parent_call_ids=[parent.call_id])
    assert child.finish == pb.FINISH_REASON_LENGTH


async def test_a_watch_sees_a_program_run_and_end(acme: Client) -> None:
    program = await acme.start()
    watch = acme.stub.WatchPrograms(
        pb.WatchProgramsRequest(interval_s=0.1), metadata=acme.metadata, timeout=TIMEOUT_S
    )
    call = asyncio.create_task(acme.generate(LONG | {"max_tokens": 400}, program_id=program.program_id))
    states: list[int] = []
    async for look in watch:
        states.extend(row.state for row in look.programs if row.program_id == program.program_id)
        if states[-1] == pb.PROGRAM_STATE_RUNNING and not call.done():
            await call
            request = pb.EndProgramRequest(program_id=program.program_id)
            await acme.stub.EndProgram(request, metadata=acme.metadata, timeout=TIMEOUT_S)
        if states[-1] == pb.PROGRAM_STATE_ENDED:
            break
    watch.cancel()
    assert pb.PROGRAM_STATE_RUNNING in states


# ── ends that are not the model's ───────────────────────────────────────────────────────────────────


async def test_the_deadline_ends_a_call_in_the_scheduler_too(acme: Client) -> None:
    program = await acme.start()
    stream = acme.stream(LONG, timeout_s=0.7, program_id=program.program_id)
    with pytest.raises(grpc.RpcError) as caught:
        async for _ in stream:
            pass
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    after = await acme.until(program.program_id, lambda now: now.live_calls == 0)
    assert (after.finished_calls, after.state) == (1, pb.PROGRAM_STATE_IDLE)
    assert after.tokens < LONG["max_tokens"]


async def test_a_client_that_hangs_up_frees_its_call(acme: Client) -> None:
    program = await acme.start()
    stream = acme.stream(LONG, program_id=program.program_id)
    while not (await stream.read()).token_ids:
        pass
    stream.cancel()
    after = await acme.until(program.program_id, lambda now: now.live_calls == 0)
    assert after.tokens < LONG["max_tokens"]


async def test_cancel_call_ends_the_stream_properly(acme: Client, rival: Client) -> None:
    stream = acme.stream(LONG)
    first = piece = await stream.read()
    while not piece.token_ids:
        piece = await stream.read()
    request = pb.CancelCallRequest(call_id=first.call_id)
    foreign = await rival.stub.CancelCall(request, metadata=rival.metadata, timeout=TIMEOUT_S)
    mine = await acme.stub.CancelCall(request, metadata=acme.metadata, timeout=TIMEOUT_S)
    assert (foreign.cancelled, mine.cancelled) == (False, True)
    while not piece.finish_reason:
        piece = await stream.read()
    assert piece.finish_reason == pb.FINISH_REASON_CANCELLED
    assert 0 < piece.usage.completion_tokens < LONG["max_tokens"]
    assert await stream.read() is grpc.aio.EOF
    assert await stream.code() == grpc.StatusCode.OK


async def test_cancel_program_ends_all_of_its_calls(acme: Client) -> None:
    program = await acme.start()
    calls = [asyncio.create_task(acme.generate(LONG, program_id=program.program_id)) for _ in range(3)]
    await acme.until(program.program_id, lambda now: now.live_calls == 3)
    request = pb.CancelProgramRequest(program_id=program.program_id)
    await acme.stub.CancelProgram(request, metadata=acme.metadata, timeout=TIMEOUT_S)
    answers = await asyncio.wait_for(asyncio.gather(*calls), 20)
    assert [answer.finish for answer in answers] == [pb.FINISH_REASON_CANCELLED] * 3
    after = await acme.get(program.program_id)
    assert (after.state, after.live_calls) == (pb.PROGRAM_STATE_CANCELLED, 0)


# ── what it refuses ─────────────────────────────────────────────────────────────────────────────────

UNKNOWN = "018f0000-0000-7000-8000-000000000000"
INVALID = grpc.StatusCode.INVALID_ARGUMENT
ONE = {"max_tokens": 1}


@pytest.mark.parametrize(
    ("sampling", "request_", "code", "reason", "field"),
    [
        (ONE, {"token_ids": pb.TokenIds(ids=[5] * MAX_MODEL_LEN)}, INVALID, "PROMPT_TOO_LONG", "prompt"),
        (ONE, {"text": "word " * 200_000}, INVALID, "PROMPT_TOO_LONG", "prompt"),
        (ONE, {"token_ids": pb.TokenIds(ids=[5, 2_000_000])}, INVALID, "INVALID_TOKEN_ID", "token_ids"),
        (ONE, {"model": "gpt-9"}, grpc.StatusCode.NOT_FOUND, "MODEL_UNKNOWN", "model"),
        (ONE, {"program_id": UNKNOWN}, grpc.StatusCode.NOT_FOUND, "PROGRAM_UNKNOWN", "program_id"),
        ({"min_tokens": MAX_MODEL_LEN}, {}, INVALID, "PARAMETER_OUT_OF_RANGE", "sampling.min_tokens"),
        ({"stop_token_ids": [2_000_000]}, {}, INVALID, "PARAMETER_INVALID", "sampling.stop_token_ids"),
        ({"json_schema": '{"type": "nonsense"}'}, {}, INVALID, "PARAMETER_INVALID", "sampling.json_schema"),
        ({"json_schema": "[" * 90_000}, {}, INVALID, "PARAMETER_INVALID", "sampling.json_schema"),
    ],
)
async def test_bad_input_is_a_typed_error_and_leaves_no_program(
    acme: Client, sampling: dict[str, Any], request_: dict[str, Any], code: Any, reason: str, field: str
) -> None:
    listed = await acme.stub.ListPrograms(pb.ListProgramsRequest(), metadata=acme.metadata, timeout=TIMEOUT_S)
    failed = await refused(acme.generate(sampling, **request_))
    after = await acme.stub.ListPrograms(pb.ListProgramsRequest(), metadata=acme.metadata, timeout=TIMEOUT_S)
    assert (failed.code, failed.reason, failed.field) == (code, reason, field)
    assert len(failed.message) < 500
    assert "Traceback" not in failed.message
    assert {row.program_id for row in after.programs} == {row.program_id for row in listed.programs}


async def test_an_ended_program_takes_no_calls(acme: Client) -> None:
    program = await acme.start()
    request = pb.EndProgramRequest(program_id=program.program_id)
    await acme.stub.EndProgram(request, metadata=acme.metadata, timeout=TIMEOUT_S)
    failed = await refused(acme.generate(ONE, program_id=program.program_id))
    assert (failed.code, failed.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "PROGRAM_ENDED")


async def test_a_foreign_program_is_exactly_like_an_unknown_one(acme: Client, rival: Client) -> None:
    program = await acme.start(session="mine")
    generate_foreign = await refused(rival.generate(ONE, program_id=program.program_id))
    generate_unknown = await refused(rival.generate(ONE, program_id=UNKNOWN))
    get_foreign, get_unknown = [await refused(rival.get(each)) for each in (program.program_id, UNKNOWN)]
    for foreign, unknown in ((generate_foreign, generate_unknown), (get_foreign, get_unknown)):
        assert foreign.message.replace(program.program_id, UNKNOWN) == unknown.message
        assert (foreign.code, foreign.reason) == (unknown.code, unknown.reason)
        assert foreign.reason == "PROGRAM_UNKNOWN"
    assert (await rival.start(session="mine")).program_id != program.program_id
    assert (await acme.start(session="mine")).program_id == program.program_id
