"""How many host blocks an executor opens, and what it says when the memory is not there."""

from collections.abc import Callable
from typing import Any

import pytest

from executor_svc.vllm_runner import UnsupportedModel, VllmRunnerConfig
from svc_runtime.lifecycle import StartupError

MIB = 1 << 20
BLOCK_BYTES = 2 * MIB


class Workers:
    """vLLM's Executor, as far as the host tier knows it."""

    def __init__(self, error: Exception | None = None) -> None:
        self.asked: list[tuple[str, tuple[int, ...]]] = []
        self._error = error

    def collective_rpc(self, method: str, args: tuple[int, ...]) -> list[int]:
        self.asked.append((method, args))
        if self._error:
            raise self._error
        return [BLOCK_BYTES]


OpensTier = Callable[..., int]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> OpensTier:
    """Opens the tier of these workers, while 64 MiB are free."""
    from executor_svc.vllm_runner import startup

    monkeypatch.setattr(startup, "free_bytes", lambda: 64 * MIB)

    def opened(workers: Workers, **config: Any) -> int:
        open_host_tier: OpensTier = startup._open_host_tier
        return open_host_tier(workers, VllmRunnerConfig(model="m", **config), BLOCK_BYTES)

    return opened


@pytest.mark.parametrize(
    ("config", "blocks"),
    [
        ({"host_kv_gib": None}, 8),
        ({"host_kv_gib": 33 / 1024}, 16),
        ({"host_kv_gib": None, "host_blocks": 3}, 3),
        ({"host_kv_gib": 0}, 0),
        ({}, 0),
    ],
    ids=["a_quarter_of_what_is_left", "set", "blocks_set", "none", "benchmarks"],
)
def test_blocks_by_the_memory_that_is_left(opened: OpensTier, config: dict[str, Any], blocks: int) -> None:
    workers = Workers()
    assert opened(workers, **config) == blocks
    assert workers.asked == ([("autellix_open_host_pool", (blocks,))] if blocks else [])


def test_memory_that_the_model_has_taken_meanwhile(opened: OpensTier) -> None:
    with pytest.raises(StartupError, match=r"is 0\.5, 0\.1 GiB are free"):
        opened(Workers(), host_kv_gib=0.5)


@pytest.mark.parametrize("error", [MemoryError("none"), RuntimeError("cannot pin"), ValueError("odd layout")])
def test_a_pool_that_cannot_be_opened_names_the_way_out(opened: OpensTier, error: Exception) -> None:
    with pytest.raises(UnsupportedModel, match=rf"0\.01 GiB \({error}\); --host-kv-gib 0 serves without"):
        opened(Workers(error), host_blocks=5)
