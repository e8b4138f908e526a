"""The same seed tells the same story, byte for byte, in whatever process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def trace_of(path: Path, *arguments: str, hash_seed: str = "0") -> bytes:
    command = [sys.executable, "-m", "sim", "--steps", "12000", "--faults", "--trace", str(path), *arguments]
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return path.read_bytes()


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return trace_of(tmp_path_factory.mktemp("trace") / "trace", "--seed", "8", "--check-every", "0")


def test_the_hashes_of_strings_do_not_matter(trace: bytes, tmp_path: Path) -> None:
    other = trace_of(tmp_path / "trace", "--seed", "8", "--check-every", "0", hash_seed="4711")
    assert other == trace


def test_looking_changes_nothing(trace: bytes, tmp_path: Path) -> None:
    assert trace_of(tmp_path / "trace", "--seed", "8", "--check-every", "40") == trace


def test_another_seed_tells_another_story(trace: bytes, tmp_path: Path) -> None:
    assert trace_of(tmp_path / "trace", "--seed", "4", "--check-every", "0") != trace


def test_an_episode_is_the_same_by_itself(trace: bytes, tmp_path: Path) -> None:
    alone = trace_of(tmp_path / "trace", "--seed", "8", "--check-every", "0", "--episode", "1")
    assert alone.startswith(b"# episode 1\n")
    assert alone in trace


def test_the_trace_shows_events_and_effects(trace: bytes) -> None:
    for name in (
        b" > StepCompleted ",
        b" > PlanDue\n",
        b" < SendPlan ",
        b" < EmitTokens ",
        b" < FinishCall ",
    ):
        assert trace.count(name) > 100, name
