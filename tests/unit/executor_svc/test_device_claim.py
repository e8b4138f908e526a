"""Executors of one host share GPUs without stepping on each other; claims die with their process."""

import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from executor_svc.device_claim import GUARD, Device, DeviceClaim, claim_devices, visible_devices
from svc_runtime.lifecycle import ExitCode, StartupError

Claim = Callable[..., DeviceClaim]
GPUS = [Device("0", "GPU-a"), Device("1", "GPU-b"), Device("2", "GPU-c")]
HOLDER = """
import sys
from pathlib import Path
from executor_svc.device_claim import Device, claim_devices
gpus = [Device("0", "GPU-a")]
claim = claim_devices(gpus, count=1, share=None, directory=Path(sys.argv[1]), holder="other")
print("holding", claim.visible_devices, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def claim(tmp_path: Path) -> Iterator[Claim]:
    """Claims among three GPUs; released at the end."""
    made: list[DeviceClaim] = []

    def take(
        holder: str, *, count: int = 1, share: float | None = None, devices: Sequence[Device] = GPUS
    ) -> DeviceClaim:
        directory = tmp_path / "locks"
        made.append(claim_devices(devices, count=count, share=share, directory=directory, holder=holder))
        return made[-1]

    yield take
    for each in made:
        each.release()


def test_each_takes_a_free_one(claim: Claim) -> None:
    claims = [claim(f"e{i}") for i in range(3)]
    assert [each.visible_devices for each in claims] == ["0", "1", "2"]


def test_tensor_parallel_takes_several(claim: Claim) -> None:
    first = claim("e0", count=2)
    assert first.visible_devices == "0,1"
    with pytest.raises(StartupError, match="2 of 3 GPUs wanted"):
        claim("e1", count=2)
    assert claim("e2").visible_devices == "2"


def test_when_none_is_free_the_holders_are_named(claim: Claim) -> None:
    held = claim("replica-7", devices=GPUS[:1])
    with pytest.raises(StartupError, match=r"GPU 0 is held by replica-7 \(100%\).*--gpu-share") as refused:
        claim("e1", devices=GPUS[:1])
    assert refused.value.exit_code == ExitCode.REFUSED
    assert held.share == 1.0


def test_two_share_a_gpu_only_by_explicit_fractions_that_fit(claim: Claim) -> None:
    one = GPUS[:1]
    first = claim("e0", share=0.6, devices=one)
    with pytest.raises(StartupError, match=r"e0 \(60%\); this executor asks for --gpu-share 0\.5"):
        claim("e1", share=0.5, devices=one)
    with pytest.raises(StartupError, match=r"e0 \(60%\)"):
        claim("e1", devices=one)
    second = claim("e1", share=0.4, devices=one)
    assert first.visible_devices == second.visible_devices == "0"


def test_a_released_gpu_is_free_again(claim: Claim) -> None:
    first = claim("e0", devices=GPUS[:1])
    first.release()
    first.release()
    assert claim("e1", devices=GPUS[:1]).visible_devices == "0"


def test_a_killed_process_holds_nothing(tmp_path: Path, claim: Claim) -> None:
    directory = tmp_path / "locks"
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        assert process.stdout.readline() == "holding 0\n"
        with pytest.raises(StartupError, match="GPU 0 is held by other"):
            claim("e1", devices=GPUS[:1])
        os.kill(process.pid, signal.SIGKILL)
        process.wait(10)
        mine = claim("e1", devices=GPUS[:1])
        assert mine.visible_devices == "0"
        assert [path.name.split(".")[1] for path in directory.glob("*.claim")] == ["e1"]


def test_executors_choose_one_after_the_other(tmp_path: Path, claim: Claim) -> None:
    claim("e0")
    chosen = threading.Event()
    with (tmp_path / "locks" / GUARD).open("a") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        chooser = threading.Thread(target=lambda: (claim("e1"), chosen.set()))
        chooser.start()
        assert not chosen.wait(0.1), "chose while another executor was choosing"
    assert chosen.wait(10)
    chooser.join()


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path, claim: Claim) -> None:
    (tmp_path / "locks").write_text("a file")
    with pytest.raises(StartupError, match="--device-lock-dir"):
        claim("e0")


LISTED = "0, GPU-a\n1, GPU-b\n2, GPU-c\n"


@pytest.mark.parametrize(
    ("environ", "indices"),
    [
        ({}, ["0", "1", "2"]),
        ({"CUDA_VISIBLE_DEVICES": "2,0"}, ["0", "2"]),
        ({"CUDA_VISIBLE_DEVICES": "GPU-b"}, ["1"]),
        ({"CUDA_VISIBLE_DEVICES": ""}, []),
    ],
)
def test_visible_devices_are_narrowed_by_the_environment(environ: dict[str, str], indices: list[str]) -> None:
    found = visible_devices(environ, lambda: LISTED)
    assert [device.index for device in found] == indices


def test_without_a_driver_there_are_no_devices() -> None:
    assert visible_devices({}, lambda: "") == []
    assert visible_devices({}, lambda: "No devices were found") == []
