"""A real frontend process, without weights, before a fake scheduler: what it sends, answers and survives."""

import asyncio
import json
import signal
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from bench.cluster import free_port
from protos.autellix.executor.v1 import executor_pb2
from protos.autellix.scheduler.v1 import scheduler_pb2 as pb
from svc_runtime.block_hashes import hash_prompt
from svc_runtime.columns import pack_i32, unpack_i32
from svc_runtime.lifecycle import ExitCode
from tests.fake_scheduler import TOKEN, Connection, FakeScheduler, answer, server
from tests.integration.frontend_process import FrontendProcess, running, served, start, without_weights

pytestmark = [pytest.mark.timeout(240), pytest.mark.asyncio(loop_scope="module")]

CHAT = "/v1/chat/completions"
HELLO = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 3}
KEYS = ("--api-keys", "ann:key-of-ann,bob:key-of-bob")
ANN, BOB = {"Authorization": "Bearer key-of-ann"}, {"x-api-key": "key-of-bob"}


@pytest.fixture(scope="module")
def bare_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return without_weights(tiny_model, tmp_path_factory.mktemp("bare"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def process(
    bare_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[FrontendProcess]:
    async with running(bare_model, tmp_path_factory.mktemp("frontend"), *KEYS) as frontend:
        frontend.client.headers.update(ANN)
        yield frontend


@pytest.fixture
def frontend(process: FrontendProcess) -> FrontendProcess:
    """The process with an empty memory and the default script."""
    process.fake.submits.clear()
    process.fake.cancels.clear()
    process.fake.acknowledged.clear()
    process.fake.script = answer
    return process


def table(token_ids: list[int], logprobs: list[float]) -> executor_pb2.LogprobTable:
    """Rows of the token itself and one alternative, token 9."""
    return executor_pb2.LogprobTable(
        width=2,
        token_ids=pack_i32(column for token_id in token_ids for column in (token_id, 9)),
        logprobs=struct.pack(
            f"<{2 * len(logprobs)}f", *(column for value in logprobs for column in (value, -9.0))
        ),
        ranks=pack_i32([1] * len(token_ids)),
    )


async def with_logprobs(connection: Connection, call: pb.Submit) -> None:
    """Two tokens of logprob -0.5; the first brings those of the prompt [5, 6, 7]."""
    for prompt in (table([6, 7], [-3.0, -4.0]), None):
        logprobs = executor_pb2.Logprobs(sampled=table([TOKEN], [-0.5]), prompt=prompt)
        payload = pb.TokenPayload(index=0, payload=logprobs.SerializeToString())
        connection.outputs([call.handle], [TOKEN], payloads=[payload])
    connection.finish(call.handle)


async def endless(connection: Connection, call: pb.Submit) -> None:
    while True:
        connection.outputs([call.handle], [TOKEN])
        await asyncio.sleep(0.005)


# ── what the scheduler hears ────────────────────────────────────────────────────────────────────────


async def test_a_call_carries_its_program_and_what_the_scheduler_needs(frontend: FrontendProcess) -> None:
    headers = {
        "X-Session-ID": "mine",
        "X-Autellix-Thread-Id": "t1",
        "X-Autellix-Parent-Call-Ids": "c1,c2",
        "X-Autellix-Program-Class": "coding",
        "X-Autellix-Deadline-S": "60",
    }
    response = await frontend.post(CHAT, HELLO | {"min_tokens": 2, "stop_token_ids": [7]}, headers=headers)
    assert response.status_code == 200
    (call,) = frontend.fake.submits
    program = frontend.fake.programs[call.program_id]
    assert (program.tenant, program.session_key, program.class_name) == ("ann", "mine", "coding")
    assert (call.tenant, call.thread_id, list(call.parent_call_ids)) == ("ann", "t1", ["c1", "c2"])
    assert (call.max_tokens, call.min_tokens, unpack_i32(call.stop_token_ids)) == (3, 2, [7])
    assert call.HasField("eos_token_id")
    assert 0 < call.deadline_s <= 60
    assert call.params_format == "vllm-0.32.0/msgpack"
    assert not call.needs_preparation
    assert response.headers["X-Autellix-Call-Id"] == call.call_id
    assert response.headers["X-Autellix-Program-Id"] == call.program_id
    usage = response.json()["usage"]
    assert usage["prompt_tokens"] == len(unpack_i32(call.prompt_token_ids))
    assert usage["prompt_tokens_details"]["cached_tokens"] == 1


async def test_a_prompt_comes_with_the_hashes_of_its_blocks(frontend: FrontendProcess) -> None:
    prompt = [3 + number % 90 for number in range(70)]
    body = {"model": "tiny", "prompt": prompt, "max_tokens": 1, "cache_salt": "grain"}
    await frontend.post("/v1/completions", body)
    (call,) = frontend.fake.submits
    block_size = frontend.fake.model.block_size
    assert (call.hash_block_size, call.cache_salt) == (block_size, "grain")
    assert call.prompt_block_hashes == hash_prompt("ann", "grain", prompt, block_size)
    assert len(call.prompt_block_hashes) == 16 * (len(prompt) // block_size) > 0


async def test_a_grammar_is_announced(frontend: FrontendProcess) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}}}
    await frontend.post(CHAT, HELLO | {"response_format": schema})
    assert frontend.fake.submits[0].needs_preparation


async def test_logprobs_come_back_as_the_executor_sent_them(frontend: FrontendProcess) -> None:
    frontend.fake.script = with_logprobs
    body = {"model": "tiny", "prompt": [5, 6, 7], "max_tokens": 2, "echo": True, "logprobs": 1}
    response = await frontend.post("/v1/completions", body)
    logprobs = response.json()["choices"][0]["logprobs"]["token_logprobs"]
    assert logprobs == [None, -3.0, -4.0, -0.5, -0.5]
    await frontend.post("/v1/completions", {"model": "tiny", "prompt": "a b"})
    assert [call.skip_reading_prefix_cache for call in frontend.fake.submits] == [True, False]


async def test_samples_and_prompts_are_parallel_calls_of_one_program_that_ends(
    frontend: FrontendProcess,
) -> None:
    body = {"model": "tiny", "prompt": ["a", "b"], "n": 2, "max_tokens": 2}
    response = await frontend.post("/v1/completions", body)
    assert len(response.json()["choices"]) == 4
    assert len({call.call_id for call in frontend.fake.submits}) == 4
    (program_id,) = {call.program_id for call in frontend.fake.submits}
    program = frontend.fake.programs[program_id]
    await frontend.fake.until(lambda: program.state == pb.PROGRAM_STATE_ENDED)


async def test_a_closed_connection_cancels_the_call_as_the_clients(frontend: FrontendProcess) -> None:
    frontend.fake.script = endless
    async with frontend.client.stream(
        "POST", CHAT, json=HELLO | {"max_tokens": 400, "stream": True}
    ) as response:
        async for line in response.aiter_lines():
            if "content" in line:
                break
    await frontend.fake.until(lambda: frontend.fake.cancels)
    handle = frontend.fake.submits[0].handle
    assert frontend.fake.cancels == [([handle], pb.CANCEL_REASON_CLIENT)]
    await frontend.fake.until(lambda: frontend.fake.acknowledged == [handle])


async def test_a_stop_string_is_a_completion_not_a_cancel(frontend: FrontendProcess) -> None:
    frontend.fake.script = endless
    first = await frontend.post("/detokenize", {"model": "tiny", "tokens": [TOKEN] * 3})
    body = {"model": "tiny", "prompt": "a", "max_tokens": 400, "stop": [first.json()["prompt"]]}
    response = await frontend.post("/v1/completions", body)
    assert response.json()["choices"][0]["finish_reason"] == "stop"
    await frontend.fake.until(lambda: frontend.fake.cancels)
    assert [reason for _, reason in frontend.fake.cancels] == [pb.CANCEL_REASON_STOP_STRING]


# ── what the client hears ───────────────────────────────────────────────────────────────────────────


BODIES = {
    CHAT: HELLO,
    "/v1/messages": HELLO,
    "/v1/completions": {"prompt": "a", "max_tokens": 3},
    "/v1/responses": {"input": "a", "max_output_tokens": 3},
}


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("stream", [False, True])
async def test_an_unknown_program_is_a_typed_404_on_every_route(
    frontend: FrontendProcess, path: str, stream: bool
) -> None:
    body = BODIES[path] | {"model": "tiny", "stream": stream}
    response = await frontend.post(path, body, headers={"X-Autellix-Program-Id": "nobody's"})
    assert response.status_code == 404
    assert response.json()["error"]["reason"] == "PROGRAM_UNKNOWN"
    assert response.headers["content-type"] == "application/json"


async def test_a_foreign_program_does_not_exist(frontend: FrontendProcess) -> None:
    mine = (await frontend.post("/v1/programs", {"session": "private"})).json()["program_id"]
    theirs = await frontend.post(CHAT, HELLO | {"program_id": mine}, headers={"Authorization": "", **BOB})
    assert theirs.status_code == 404
    assert (await frontend.post(CHAT, HELLO | {"program_id": mine})).status_code == 200
    await frontend.client.delete(f"/v1/programs/{mine}")
    ended = await frontend.post(CHAT, HELLO | {"program_id": mine})
    assert (ended.status_code, ended.json()["error"]["reason"]) == (409, "PROGRAM_ENDED")


async def test_a_key_is_needed_everywhere_but_for_health(frontend: FrontendProcess) -> None:
    async with httpx.AsyncClient(base_url=frontend.client.base_url) as stranger:
        assert (await stranger.get("/health")).status_code == 200
        for path in ("/v1/models", "/v1/programs", "/version", "/nowhere"):
            assert (await stranger.get(path)).status_code == 401
        assert (await stranger.post("/tokenize", json={})).status_code == 401
    assert "key-of-ann" not in frontend.log.read_text()


async def test_only_our_routes_are_open(frontend: FrontendProcess) -> None:
    for method, path in [
        ("GET", "/metrics"), ("GET", "/docs"), ("GET", "/openapi.json"), ("GET", "/load"), ("GET", "/ping"),
        ("POST", "/invocations"), ("POST", "/scale_elastic_ep"), ("POST", "/inference/v1/generate"),
        ("POST", "/v1/load_lora_adapter"), ("POST", "/start_profile"), ("POST", "/generative_scoring"),
        ("GET", "/v1/responses/r1"), ("POST", "/v1/chat/completions/batch"), ("GET", "/server_info"),
    ]:  # fmt: skip
        assert (await frontend.client.request(method, path)).status_code == 404, path
    models = await frontend.client.get("/v1/models")
    assert models.json()["data"][0]["id"] == "tiny"
    assert "/" not in models.json()["data"][0]["root"]


# ── its life ────────────────────────────────────────────────────────────────────────────────────────


async def test_while_the_scheduler_is_away_clients_get_503_and_live_calls_end(
    bare_model: Path, tmp_path: Path
) -> None:
    """The last event of a running stream is a typed error; afterwards the frontend is there again."""
    fake = FakeScheduler(served(bare_model), script=endless)
    scheduler = server(fake)
    scheduler_port, port = await scheduler.start(), free_port()
    process = await start(flags_for(bare_model, scheduler_port, port), tmp_path / "log")
    client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30)
    frontend = FrontendProcess(fake, process, port, 0, client, tmp_path / "log")
    try:
        await frontend.until_health(200)
        async with client.stream("POST", CHAT, json=HELLO | {"max_tokens": 400, "stream": True}) as response:
            lines = response.aiter_lines()
            await anext(lines)
            await scheduler.stop(0)
            rest = [line async for line in lines if line.startswith("data: {")]
        assert json.loads(rest[-1][6:])["error"]["reason"] == "SCHEDULER_UNAVAILABLE"
        await frontend.until_health(503)
        refused = await frontend.post(CHAT, HELLO)
        assert (refused.status_code, refused.json()["error"]["reason"]) == (503, "SCHEDULER_UNAVAILABLE")
        assert int(refused.headers["Retry-After"]) >= 1
        scheduler = server(FakeScheduler(served(bare_model)), scheduler_port)
        await scheduler.start()
        await frontend.until_health(200)
        assert (await frontend.post(CHAT, HELLO)).status_code == 200
    finally:
        await client.aclose()
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 20) == ExitCode.OK
        await scheduler.stop(0)


async def test_sigterm_lets_running_calls_finish_and_takes_no_new_ones(
    bare_model: Path, tmp_path: Path
) -> None:
    release = asyncio.Event()

    async def held(connection: Connection, call: pb.Submit) -> None:
        connection.outputs([call.handle], [TOKEN])
        await release.wait()
        await answer(connection, call)

    async with running(bare_model, tmp_path) as frontend:
        frontend.fake.script = held
        async with frontend.client.stream("POST", CHAT, json=HELLO | {"stream": True}) as response:
            lines = response.aiter_lines()
            await anext(lines)
            frontend.process.send_signal(signal.SIGTERM)
            await until_closed(frontend.port)
            release.set()
            assert [line async for line in lines if line][-1] == "data: [DONE]"
        assert await asyncio.wait_for(frontend.process.wait(), 20) == ExitCode.OK


async def until_closed(port: int) -> None:
    """Wait until nobody listens there any more."""
    async with asyncio.timeout(20):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionRefusedError:
                return
            writer.close()
            await asyncio.sleep(0.02)


def flags_for(model: Path, scheduler_port: int, port: int) -> list[str]:
    return [
        *("--scheduler", f"127.0.0.1:{scheduler_port}", "--model", str(model), "--served-model-name", "tiny"),
        *("--port", str(port), "--grpc-port", "0", "--metrics-port", "0", "--log-format", "json"),
    ]


async def ends_with(flags: list[str], log: Path) -> tuple[int, str]:
    """Exit code and last problem of a frontend that cannot start."""
    process = await start(flags, log)
    code = await asyncio.wait_for(process.wait(), 90)
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    return code, next((line["problem"] for line in reversed(lines) if "problem" in line), log.read_text())


async def test_what_cannot_start_says_why_in_one_line(bare_model: Path, tmp_path: Path) -> None:
    nobody = [*flags_for(bare_model, 1, 0), "--connect-timeout-s", "0.5"]
    code, problem = await ends_with(nobody, tmp_path / "unreachable")
    assert (code, "no scheduler at 127.0.0.1:1" in problem) == (ExitCode.PEER_UNREACHABLE, True)

    fake = FakeScheduler(served(bare_model))
    scheduler = server(fake)
    scheduler_port = await scheduler.start()
    try:
        other = [
            *flags_for(bare_model, scheduler_port, 0),
            "--served-model-name",
            "other",
            "--model-timeout-s",
            "0.2",
        ]
        code, problem = await ends_with(other, tmp_path / "model")
        assert (code, "no executor serves 'other'" in problem) == (ExitCode.MODEL_MISSING, True)

        taken = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
        port = taken.sockets[0].getsockname()[1]
        code, problem = await ends_with(flags_for(bare_model, scheduler_port, port), tmp_path / "port")
        assert (code, f"127.0.0.1:{port}" in problem) == (ExitCode.PORT_TAKEN, True)
        taken.close()

        fake.model.tokenizer_fingerprint = "sha256:of-another-model"
        code, problem = await ends_with(flags_for(bare_model, scheduler_port, 0), tmp_path / "fingerprint")
        assert (code, "tokenizer_fingerprint differs" in problem) == (ExitCode.REFUSED, True)
    finally:
        await scheduler.stop(0)
