"""What agent clients really call: the openai and anthropic SDKs against the three services.

The model is random, so nothing is asked of its words; what is asserted is what the protocol promises: shapes,
counts, grammars obeyed, the same answer streamed and whole, and that the process table saw every call.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI
from tokenizers import Tokenizer

from bench.cluster import Cluster
from protos.autellix.program.v1 import program_pb2 as pb
from protos.autellix.program.v1 import program_pb2_grpc as rpc
from svc_runtime.grpc_aio import open_channel

pytestmark = pytest.mark.timeout(240)

EXECUTOR = {
    "dtype": "float32",
    "block_size": 32,
    "max_model_len": 2048,
    "max_num_seqs": 16,
    "enforce_eager": True,
    "kv_cache_gib": 1,
}
FRONTEND = {"api_keys": "acme:key-of-acme,rival:key-of-rival", "tool_call_parser": "hermes"}
TIMEOUT_S = 60.0
USER = [{"role": "user", "content": "Where does the river go?"}]
GREEDY: dict[str, Any] = {"model": "test", "messages": USER, "temperature": 0, "max_tokens": 24}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "strict": True,
        "description": "Weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Oslo", "Rome"]}, "days": {"enum": [1, 2, 3]}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
CLOCK = {
    "type": "function",
    "function": {
        "name": "get_time",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"zone": {"enum": ["UTC", "CET"]}},
            "required": ["zone"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture(scope="module")
def cluster(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    directory = tmp_path_factory.mktemp("openai_surface")
    with Cluster(directory, model=tiny_model, executor=EXECUTOR, frontend=FRONTEND) as running:
        yield running


@pytest.fixture
async def client(cluster: Cluster) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(
        base_url=cluster.base_url, api_key="key-of-acme", timeout=TIMEOUT_S, max_retries=0
    ) as opened:
        yield opened


@pytest.fixture
async def anthropic(cluster: Cluster) -> AsyncIterator[AsyncAnthropic]:
    base_url = cluster.base_url.removesuffix("/v1")
    async with AsyncAnthropic(
        base_url=base_url, api_key="key-of-acme", timeout=TIMEOUT_S, max_retries=0
    ) as opened:
        yield opened


async def programs_of(client: AsyncOpenAI) -> dict[str, dict[str, Any]]:
    answer = await client.get("/programs", cast_to=httpx.Response)
    return {row["program_id"]: row for row in answer.json()["programs"]}


async def started(client: AsyncOpenAI, **body: str) -> str:
    answer = await client.post("/programs", body=body, cast_to=httpx.Response)
    return str(answer.json()["program_id"])


def named(program_id: str) -> dict[str, str]:
    return {"X-Autellix-Program-Id": program_id}


def follows_weather(arguments: str) -> bool:
    call = json.loads(arguments)
    return call.keys() == {"city", "days"} and call["city"] in ("Oslo", "Rome") and call["days"] in (1, 2, 3)


# ── chat ────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_chat_is_the_same_whole_and_streamed(client: AsyncOpenAI) -> None:
    whole = await client.chat.completions.create(**GREEDY)
    stream = await client.chat.completions.create(
        **GREEDY, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == whole.choices[0].message.content
    assert text
    assert chunks[-1].usage == whole.usage.model_copy(
        update={"prompt_tokens_details": chunks[-1].usage.prompt_tokens_details}
    )
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    assert len(chunks) > 4


async def test_headers_name_program_session_and_call(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.with_raw_response.create(
        **GREEDY, extra_headers={"X-Session-ID": "run-1"}
    )
    program_id = answer.headers["x-autellix-program-id"]
    again = await client.chat.completions.with_raw_response.create(
        **GREEDY, extra_body={"session_id": "run-1"}
    )
    assert again.headers["x-autellix-program-id"] == program_id
    assert answer.headers["x-autellix-session"] == "run-1"
    assert answer.headers["x-autellix-call-id"] != again.headers["x-autellix-call-id"]
    row = (await programs_of(client))[program_id]
    tokens = [each.parse().usage.completion_tokens for each in (answer, again)]
    assert (row["session"], row["finished_calls"], row["tokens"]) == ("run-1", 2, sum(tokens))


async def test_logprobs_have_the_taken_token_and_the_likeliest(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(**GREEDY, logprobs=True, top_logprobs=3)
    rows = answer.choices[0].logprobs.content
    assert len(rows) == answer.usage.completion_tokens
    for row in rows:
        assert len(row.top_logprobs) == 3
        assert row.logprob == max(top.logprob for top in row.top_logprobs), "greedy takes the likeliest"


async def test_three_samples_are_three_calls_of_one_program(client: AsyncOpenAI) -> None:
    program_id = await started(client)
    answer = await client.chat.completions.create(
        **GREEDY | {"temperature": 1.0}, n=3, seed=5, extra_body={"program_id": program_id}
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in answer.choices}) == 3
    row = (await programs_of(client))[program_id]
    assert (row["finished_calls"], row["tokens"]) == (3, answer.usage.completion_tokens)


async def test_a_stop_string_ends_the_answer_before_itself(client: AsyncOpenAI) -> None:
    options = GREEDY | {"max_tokens": 40, "extra_body": {"ignore_eos": True}}
    free = (await client.chat.completions.create(**options)).choices[0].message.content
    stop = free[len(free) // 2 :][:3]
    cut = (await client.chat.completions.create(**options, stop=[stop])).choices[0]
    assert (cut.finish_reason, cut.message.content) == ("stop", free[: free.index(stop)])


async def test_a_json_schema_is_followed(client: AsyncOpenAI) -> None:
    schema = {"name": "weather", "schema": WEATHER["function"]["parameters"]}
    answer = await client.chat.completions.create(
        **GREEDY | {"max_tokens": 200, "temperature": 1.0},
        seed=3,
        response_format={"type": "json_schema", "json_schema": schema},
    )
    assert answer.choices[0].finish_reason == "stop"
    assert follows_weather(answer.choices[0].message.content)


async def test_a_choice_is_made(client: AsyncOpenAI) -> None:
    choices = ["left", "right", "straight on"]
    answer = await client.chat.completions.create(
        **GREEDY, extra_body={"structured_outputs": {"choice": choices}}
    )
    assert answer.choices[0].message.content in choices


# ── tools ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def sampled(tiny_model: Path) -> dict[str, Any]:
    """Options under which a random model ends a JSON document soon: it must not wander off into blanks."""
    tokenizer = Tokenizer.from_file(str(tiny_model / "tokenizer.json"))
    blank = [i for i in range(tokenizer.get_vocab_size()) if not tokenizer.decode([i]).strip()]
    return GREEDY | {
        "temperature": 1.0,
        "seed": 11,
        "max_tokens": 300,
        "logit_bias": {str(token_id): -100 for token_id in blank},
    }


async def test_a_required_tool_is_called_with_arguments_that_fit(
    client: AsyncOpenAI, sampled: dict[str, Any]
) -> None:
    answer = await client.chat.completions.create(
        **sampled, tools=[WEATHER, CLOCK], tool_choice="required", parallel_tool_calls=False
    )
    (call,) = answer.choices[0].message.tool_calls
    if call.function.name == "get_weather":
        assert follows_weather(call.function.arguments)
    else:
        assert call.function.name == "get_time"
        assert json.loads(call.function.arguments)["zone"] in ("UTC", "CET")


async def test_a_named_tool_is_the_one_called(client: AsyncOpenAI, sampled: dict[str, Any]) -> None:
    choice = {"type": "function", "function": {"name": "get_weather"}}
    answer = await client.chat.completions.create(**sampled, tools=[WEATHER, CLOCK], tool_choice=choice)
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "get_weather"
    assert follows_weather(call.function.arguments)


async def test_a_named_tool_streams(client: AsyncOpenAI, sampled: dict[str, Any]) -> None:
    choice = {"type": "function", "function": {"name": "get_weather"}}
    stream = await client.chat.completions.create(**sampled, tools=[WEATHER], tool_choice=choice, stream=True)
    deltas = [
        call async for chunk in stream for each in chunk.choices for call in each.delta.tool_calls or ()
    ]
    assert [call.function.name for call in deltas if call.function.name] == ["get_weather"]
    assert follows_weather("".join(call.function.arguments or "" for call in deltas))


async def test_auto_tools_answer_in_words_when_the_model_does(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(**GREEDY, tools=[WEATHER], tool_choice="auto")
    message = answer.choices[0].message
    assert message.content or message.tool_calls


async def test_a_tools_answer_goes_back_to_the_model(client: AsyncOpenAI) -> None:
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "get_time", "arguments": '{"zone": "UTC"}'},
    }
    messages = [
        *USER,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "12:00"},
    ]
    answer = await client.chat.completions.create(**GREEDY | {"messages": messages}, tools=[CLOCK])
    assert answer.usage.completion_tokens > 0


# ── completions, Responses, Messages ────────────────────────────────────────────────────────────────


async def test_a_list_of_prompts_is_answered_one_by_one(client: AsyncOpenAI) -> None:
    options: dict[str, Any] = {"model": "test", "max_tokens": 8, "temperature": 0}
    prompts = ["The first", "The second", "The third"]
    listed = await client.completions.create(prompt=prompts, **options)
    alone = [
        (await client.completions.create(prompt=prompt, **options)).choices[0].text for prompt in prompts
    ]
    assert [choice.text for choice in listed.choices] == alone
    assert [choice.index for choice in listed.choices] == [0, 1, 2]


async def test_prompts_of_token_ids(client: AsyncOpenAI) -> None:
    answer = await client.completions.create(
        model="test", prompt=[[300, 301, 302], [400, 401]], max_tokens=4, temperature=0, logprobs=2,
        extra_body={"ignore_eos": True},
    )  # fmt: skip
    assert answer.usage.prompt_tokens == 5
    assert [len(choice.logprobs.token_logprobs) for choice in answer.choices] == [4, 4]


async def test_responses_whole_and_streamed(client: AsyncOpenAI) -> None:
    options: dict[str, Any] = {
        "model": "test", "input": "Tell of the sea.", "temperature": 0, "max_output_tokens": 16,
    }  # fmt: skip
    whole = await client.responses.create(**options)
    events = [event async for event in await client.responses.create(**options, stream=True)]
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == whole.output_text
    assert text
    assert events[-1].type in ("response.completed", "response.incomplete")
    assert whole.usage.output_tokens <= 16


async def test_anthropic_messages_whole_and_streamed(anthropic: AsyncAnthropic) -> None:
    options: dict[str, Any] = {"model": "test", "messages": USER, "max_tokens": 16}
    options["extra_body"] = {"temperature": 0}  # gone from the SDK, still in the protocol
    whole = await anthropic.messages.create(**options, system="Be brief.")
    async with anthropic.messages.stream(**options, system="Be brief.") as stream:
        text = "".join([piece async for piece in stream.text_stream])
        final = await stream.get_final_message()
    assert text == whole.content[0].text
    assert text
    assert whole.stop_reason in ("end_turn", "max_tokens")
    assert final.usage.output_tokens == whole.usage.output_tokens <= 16


# ── ends and refusals ───────────────────────────────────────────────────────────────────────────────

LONG = GREEDY | {"max_tokens": 1900, "stream": True, "extra_body": {"ignore_eos": True}}


async def until_idle(client: AsyncOpenAI, program_id: str) -> dict[str, Any]:
    async with asyncio.timeout(20):
        while (row := (await programs_of(client))[program_id])["live_calls"]:  # noqa: ASYNC110 (asks a server)
            await asyncio.sleep(0.02)
    return row


async def test_a_closed_connection_frees_its_call(client: AsyncOpenAI) -> None:
    program_id = await started(client)
    stream = await client.chat.completions.create(**LONG, extra_headers=named(program_id))
    await anext(aiter(stream))
    await stream.close()
    row = await until_idle(client, program_id)
    assert row["finished_calls"] == 1
    assert row["tokens"] < LONG["max_tokens"]


async def test_a_call_over_http_can_be_cancelled_over_grpc(cluster: Cluster, client: AsyncOpenAI) -> None:
    program_id = await started(client)
    answer = await client.chat.completions.with_raw_response.create(**LONG, extra_headers=named(program_id))
    chunks = aiter(answer.parse())
    await anext(chunks)
    request = pb.CancelCallRequest(call_id=answer.headers["x-autellix-call-id"])
    async with open_channel(cluster.grpc_target) as channel:
        stub = rpc.ProgramServiceStub(channel)
        foreign = await stub.CancelCall(
            request, metadata=(("authorization", "Bearer key-of-rival"),), timeout=TIMEOUT_S
        )
        mine = await stub.CancelCall(
            request, metadata=(("authorization", "Bearer key-of-acme"),), timeout=TIMEOUT_S
        )
    assert (foreign.cancelled, mine.cancelled) == (False, True)
    finish = [choice.finish_reason async for chunk in chunks for choice in chunk.choices][-1]
    assert finish == "abort"
    row = await until_idle(client, program_id)
    assert row["tokens"] < LONG["max_tokens"]


@pytest.mark.parametrize(
    ("changed", "status", "reason"),
    [
        ({"model": "gpt-9"}, 404, "MODEL_UNKNOWN"),
        ({"messages": [{"role": "user", "content": "word " * 3000}]}, 400, "PROMPT_TOO_LONG"),
        ({"max_tokens": -1}, 400, "PARAMETER_OUT_OF_RANGE"),
        ({"temperature": -1}, 400, "PARAMETER_OUT_OF_RANGE"),
        ({"n": 1_000_000}, 400, "PARAMETER_OUT_OF_RANGE"),
        ({"extra_body": {"logprobs": "many"}}, 400, "PARAMETER_INVALID"),
        ({"extra_body": {"program_id": "018f0000-0000-7000-8000-000000000000"}}, 404, "PROGRAM_UNKNOWN"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_bad_request_is_an_error_with_a_status(
    client: AsyncOpenAI, changed: dict[str, Any], status: int, reason: str, stream: bool
) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        await client.chat.completions.create(**GREEDY | changed, stream=stream)
    assert caught.value.status_code == status
    assert "Traceback" not in str(caught.value)
    assert caught.value.response.json()["error"]["reason"] == reason


async def test_a_bad_schema_is_refused_whole_and_streamed(client: AsyncOpenAI) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "no"}}}
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.create(**GREEDY, response_format=schema, stream=stream)
        assert caught.value.body["reason"] == "PARAMETER_INVALID"


async def test_an_ended_or_foreign_program_is_refused(cluster: Cluster, client: AsyncOpenAI) -> None:
    program_id = await started(client)
    async with AsyncOpenAI(base_url=cluster.base_url, api_key="key-of-rival", max_retries=0) as rival:
        with pytest.raises(openai.NotFoundError) as foreign:
            await rival.chat.completions.create(**GREEDY, extra_headers=named(program_id))
    await client.delete(f"/programs/{program_id}", cast_to=httpx.Response)
    with pytest.raises(openai.ConflictError) as caught:
        await client.chat.completions.create(**GREEDY, extra_headers=named(program_id))
    assert foreign.value.body["reason"] == "PROGRAM_UNKNOWN"
    assert caught.value.body["reason"] == "PROGRAM_ENDED"
