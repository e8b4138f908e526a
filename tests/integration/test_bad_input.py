"""Bad input on every port of the three services: each refusal is typed, nothing leaks, everybody goes on."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import httpx
import pytest

from bench.cluster import Cluster
from svc_runtime.grpc_aio import open_channel
from svc_runtime.rpc_errors import parse_error

pytestmark = pytest.mark.timeout(240)

EXECUTOR = {
    "runner": "simulated",
    "simulated_cost": "zero",
    "simulated_vocab_size": 2048,
    "block_size": 32,
    "num_gpu_blocks_override": 100,
    "max_model_len": 512,
    "max_num_batched_tokens": 512,
}
TIMEOUT_S = 60.0
CHAT = "/v1/chat/completions"
HELLO = {"model": "test", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 3}


@pytest.fixture(scope="module")
def cluster(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    frontend = {"api_keys": "ann:key-of-ann"}
    directory = tmp_path_factory.mktemp("bad_input")
    with Cluster(directory, model=tiny_model, executor=EXECUTOR, frontend=frontend) as running:
        yield running


@pytest.fixture
async def client(cluster: Cluster) -> AsyncIterator[httpx.AsyncClient]:
    base_url, headers = cluster.base_url.removesuffix("/v1"), {"Authorization": "Bearer key-of-ann"}
    async with httpx.AsyncClient(base_url=base_url, headers=headers, timeout=TIMEOUT_S) as opened:
        yield opened


async def programs(client: httpx.AsyncClient) -> int:
    """Programs that there are or were."""
    return len((await client.get("/v1/programs")).json()["programs"])


async def is_served(client: httpx.AsyncClient) -> bool:
    """Whether a sound request is answered."""
    answer = await client.post(CHAT, json=HELLO)
    return answer.status_code == 200 and answer.json()["usage"]["completion_tokens"] > 0


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
LONG = "word " * 3000
LOOP = {"max_pattern_size": 4, "min_count": 3}
DANGLING = {"type": "object", "properties": {"a": {"$ref": "#/nowhere"}}}
BAD = [
    ("unknown model", HELLO | {"model": "other"}, 404, "MODEL_UNKNOWN"),
    ("prompt too long", HELLO | {"messages": [{"role": "user", "content": LONG}]}, 400, "PROMPT_TOO_LONG"),
    ("negative max_tokens", HELLO | {"max_tokens": -1}, 400, "PARAMETER_OUT_OF_RANGE"),
    ("max_tokens beyond all", HELLO | {"max_tokens": 10**30}, 400, "PARAMETER_OUT_OF_RANGE"),
    ("n too large", HELLO | {"n": 1_000_000}, 400, "PARAMETER_OUT_OF_RANGE"),
    ("no samples", HELLO | {"n": 0}, 400, "PARAMETER_OUT_OF_RANGE"),
    ("negative temperature", HELLO | {"temperature": -1}, 400, "PARAMETER_OUT_OF_RANGE"),
    ("temperature is text", HELLO | {"temperature": "hot"}, 400, "PARAMETER_INVALID"),
    ("no messages", {"model": "test"}, 400, "PARAMETER_INVALID"),
    ("empty messages", HELLO | {"messages": []}, 400, "PROMPT_EMPTY"),
    ("no object", ["model", "test"], 400, "PARAMETER_INVALID"),
    ("bad schema", HELLO | {"structured_outputs": {"json": {"type": "nosuch"}}}, 400, "PARAMETER_INVALID"),
    ("dangling schema", HELLO | {"structured_outputs": {"json": DANGLING}}, 400, "PARAMETER_INVALID"),
    ("foreign token", HELLO | {"logit_bias": {"99999999": 1}}, 400, "INVALID_TOKEN_ID"),
    ("image", HELLO | {"messages": [{"role": "user", "content": [IMAGE]}]}, 400, "PARAMETER_INVALID"),
    ("repetition detection", HELLO | {"repetition_detection": LOOP}, 400, "PARAMETER_INVALID"),
    ("kv transfer", HELLO | {"kv_transfer_params": {"do_remote_prefill": True}}, 400, "PARAMETER_INVALID"),
    ("program id is a number", HELLO | {"program_id": 1}, 400, "PARAMETER_OUT_OF_RANGE"),
]  # fmt: skip


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("body", "status", "reason"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
async def test_bad_input_is_a_typed_error_and_leaves_no_program(
    client: httpx.AsyncClient, body: dict[str, object], status: int, reason: str, stream: bool
) -> None:
    before = await programs(client)
    response = await client.post(CHAT, json=body | {"stream": stream} if isinstance(body, dict) else body)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["reason"]) == (status, status, reason)
    assert error["message"]
    assert not LEAKS.search(response.text)
    opened = await programs(client) - before
    assert opened <= ("repetition" in str(body)) + ("kv_transfer" in str(body))


LEAKS = re.compile(r"Traceback|\.py\b|site-packages|0x[0-9a-f]{6}|" + re.escape(str(Path.home())))
ELSEWHERE = [
    ("GET", "/nowhere", None, 404, "ROUTE_UNKNOWN"),
    ("GET", CHAT, None, 405, "ROUTE_UNKNOWN"),
    ("POST", "/v1/messages", HELLO | {"model": "other"}, 404, "MODEL_UNKNOWN"),
    ("POST", "/v1/messages", HELLO | {"max_tokens": -1}, 400, "PARAMETER_OUT_OF_RANGE"),
    ("POST", "/v1/messages/count_tokens", {"model": "test"}, 400, "PARAMETER_INVALID"),
    ("POST", "/v1/completions", {"model": "test", "prompt": [99_999_999]}, 400, "INVALID_TOKEN_ID"),
    ("POST", "/v1/completions", {"model": "test", "prompt": ""}, 400, "PROMPT_EMPTY"),
    ("POST", "/v1/completions", {"model": "test", "prompt": [5] * 600}, 400, "PROMPT_TOO_LONG"),
    ("POST", "/v1/responses", {"model": "test", "input": LONG}, 400, "PROMPT_TOO_LONG"),
    ("POST", "/v1/responses", {"input": "a", "max_output_tokens": -1}, 400, "PARAMETER_OUT_OF_RANGE"),
    ("POST", "/tokenize", {"model": "other", "prompt": "a"}, 404, "MODEL_UNKNOWN"),
    ("POST", "/detokenize", {"model": "test", "tokens": "a"}, 400, "PARAMETER_INVALID"),
    ("POST", "/v1/programs", {"session": 1}, 400, "PARAMETER_INVALID"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path", "body", "status", "reason"), ELSEWHERE)
async def test_errors_of_all_routes_have_a_reason(
    client: httpx.AsyncClient, method: str, path: str, body: object, status: int, reason: str
) -> None:
    response = await client.request(method, path, json=body)
    answer = response.json()
    assert (response.status_code, answer["error"]["reason"]) == (status, reason)
    assert (answer.get("type") == "error") is path.startswith("/v1/messages"), (
        "Anthropic's shape, or OpenAI's"
    )
    assert not LEAKS.search(response.text)


async def test_a_megabyte_of_garbage_is_refused_and_nine_are_not_read(client: httpx.AsyncClient) -> None:
    json_type = {"Content-Type": "application/json"}
    garbage = await client.post(CHAT, content=b"\x00\xff" * 500_000, headers=json_type)
    assert (garbage.status_code, garbage.json()["error"]["reason"]) == (400, "PARAMETER_INVALID")
    too_much = await client.post(CHAT, content=b"x" * 9_000_000, headers=json_type)
    assert (too_much.status_code, too_much.json()["error"]["reason"]) == (413, "MESSAGE_TOO_LARGE")


async def test_a_stranger_cannot_make_the_grpc_port_buffer_much(cluster: Cluster) -> None:
    async with open_channel(cluster.grpc_target) as channel:
        send = channel.unary_unary("/autellix.program.v1.ProgramService/StartProgram")
        with pytest.raises(grpc.RpcError) as large:
            await send(bytes(9_000_000), timeout=30)
        with pytest.raises(grpc.RpcError) as small:
            await send(b"", timeout=30)
    assert large.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert parse_error(small.value).reason == "UNAUTHENTICATED"


@pytest.mark.parametrize(
    "garbage", [b"\x00\xff" * 500_000, bytes(range(256)) * 4096], ids=["flat", "all bytes"]
)
async def test_a_megabyte_of_garbage_on_any_port_harms_nobody(
    cluster: Cluster, client: httpx.AsyncClient, garbage: bytes
) -> None:
    """As raw bytes, and after the preface of HTTP/2; every service goes on."""
    for port in cluster.ports:
        for preface in (b"", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(preface + garbage)
            with suppress(ConnectionError):  # either may hang up in the middle
                await asyncio.wait_for(writer.drain(), TIMEOUT_S)
                await asyncio.wait_for(reader.read(), TIMEOUT_S)
            writer.close()
    cluster.wait_ready()
    assert await is_served(client)
