"""A client in another language: Node knows nothing of the server but the .proto file."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.cluster import ROOT, Cluster
from demo.models import make_tiny

pytestmark = pytest.mark.timeout(300)

CLIENT = Path(__file__).parent / "node_client"
PROTO = ROOT / "protos/autellix/program/v1/program.proto"
KEY = "key-of-acme"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    directory = tmp_path_factory.mktemp("node")
    make_tiny(directory / "model")
    executor = {"dtype": "float32", "block_size": 32, "max_model_len": 512, "kv_cache_gib": 1}
    frontend = {"api_keys": f"acme:{KEY}"}
    with Cluster(
        directory, model=directory / "model", executor=executor | {"enforce_eager": True}, frontend=frontend
    ) as it:
        yield it


@pytest.fixture(scope="module")
def node_modules() -> None:
    if shutil.which("npm") is None:
        pytest.skip("needs Node.js (node and npm)")
    done = subprocess.run(["npm", "ci"], cwd=CLIENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def run_client(cluster: Cluster, *key: str) -> subprocess.CompletedProcess[str]:
    command = ["node", str(CLIENT / "client.js"), cluster.grpc_target, str(PROTO), *key]
    return subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)


@pytest.mark.usefixtures("node_modules")
def test_node_starts_a_program_streams_a_generation_and_ends_it(cluster: Cluster) -> None:
    done = run_client(cluster, KEY)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    generation = seen["generation"]
    assert seen["created"] is True
    assert len(generation["token_ids"]) == 8 == generation["usage"]["completion_tokens"]
    assert generation["text"]
    assert generation["messages"] > 2, "it was streamed"
    assert generation["finish_reason"] == "FINISH_REASON_LENGTH"
    assert seen["ended"]["state"] == "PROGRAM_STATE_ENDED"
    assert (seen["ended"]["program_id"], seen["ended"]["tokens"]) == (seen["program_id"], 8)
    assert seen["ended"]["finished_calls"] == 1
    assert seen["refused"]["code"] == "FAILED_PRECONDITION", "an ended program takes no calls"


@pytest.mark.usefixtures("node_modules")
def test_node_without_a_key_is_refused(cluster: Cluster) -> None:
    done = run_client(cluster)
    assert done.returncode == 1
    assert done.stderr.startswith("UNAUTHENTICATED: ")
