"""Which GPUs this executor takes, agreed with other executors of the host by lock files.

Theory of operation: every executor sees all GPUs and shares a directory with the others (compose: a
volume). Each claim is a file there, named after its GPU and holding who took which share, and kept locked
(`flock`) for as long as its process lives: a claim that can be locked by somebody else is dead and is
removed. Claiming happens under one more lock, so that two executors never choose at once. A GPU is free for
a share when the shares add up to 1 at most; without an explicit share an executor takes the whole.

Must run before torch or vllm is imported: they read CUDA_VISIBLE_DEVICES once.
"""

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from svc_runtime.lifecycle import ExitCode, StartupError

GUARD = "claims.lock"
_TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU of this host."""

    index: str
    """What CUDA_VISIBLE_DEVICES calls it."""
    uuid: str
    """The same GPU has the same one in every container."""


@dataclass(slots=True)
class DeviceClaim:
    """GPUs held by this process until `release` or its end."""

    devices: tuple[Device, ...]
    share: float
    _files: list[IO[str]]
    _paths: list[Path]

    @property
    def visible_devices(self) -> str:
        """The value for CUDA_VISIBLE_DEVICES."""
        return ",".join(device.index for device in self.devices)

    def release(self) -> None:
        """Gives the GPUs back; a second call does nothing."""
        for path, file in zip(self._paths, self._files, strict=True):
            path.unlink(missing_ok=True)
            file.close()
        self._files, self._paths = [], []


def visible_devices(
    environ: Mapping[str, str] = os.environ, query: Callable[[], str] | None = None
) -> list[Device]:
    """The GPUs that this process may use; none where there is no NVIDIA driver.

    Args:
        environ: CUDA_VISIBLE_DEVICES in it narrows the choice, by index or UUID.
        query: prints `index, uuid` lines, as nvidia-smi does.
    """
    devices = []
    for line in (query or _ask_nvidia_smi)().splitlines():
        index, _, uuid = line.partition(",")
        if uuid:
            devices.append(Device(index.strip(), uuid.strip()))
    allowed = environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is None:
        return devices
    names = [name.strip() for name in allowed.split(",")]
    return [device for device in devices if device.index in names or device.uuid in names]


def _ask_nvidia_smi() -> str:
    if shutil.which("nvidia-smi") is None:
        return ""
    command = ["nvidia-smi", "--query-gpu=index,uuid", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return done.stdout if done.returncode == 0 else ""


def claim_devices(
    devices: Sequence[Device], *, count: int, share: float | None, directory: Path, holder: str
) -> DeviceClaim:
    """Takes `count` GPUs of `devices`, the first free ones.

    Args:
        share: fraction of each GPU's memory, (0, 1]; None: the whole.
        directory: where claims are kept; made when missing.
        holder: this executor's name, shown to whom it is in the way.

    Raises: StartupError naming the holders when too few are free.
    """
    wanted = 1.0 if share is None else share
    with _guarded(directory):
        held = {device: _live_claims(directory, device) for device in devices}
        free = [device for device in devices if _taken(held[device]) + wanted <= 1 + _TOLERANCE]
        if len(free) < count:
            raise _none_free(held, count=count, share=share)
        chosen = tuple(free[:count])
        paths = [_claim_path(directory, device, holder) for device in chosen]
        files = [_write_claim(path, holder, wanted) for path in paths]
    return DeviceClaim(chosen, wanted, files, paths)


@contextlib.contextmanager
def _guarded(directory: Path) -> Iterator[None]:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        guard = (directory / GUARD).open("a")
    except OSError as error:
        raise StartupError(
            f"cannot keep GPU claims in {directory}: {error.strerror}; set --device-lock-dir", ExitCode.USAGE
        ) from error
    with guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        yield


def _claim_path(directory: Path, device: Device, holder: str) -> Path:
    return directory / f"{device.uuid}.{holder.replace('/', '_')}.{os.getpid()}.claim"


def _taken(claims: Sequence[tuple[str, float]]) -> float:
    return sum(share for _, share in claims)


def _live_claims(directory: Path, device: Device) -> list[tuple[str, float]]:
    """(holder, share) of the live claims on a device; removes dead ones."""
    claims: list[tuple[str, float]] = []
    for path in sorted(directory.glob(f"{device.uuid}.*.claim")):
        with path.open("r+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                claim = json.load(file)
                claims.append((claim["holder"], claim["share"]))
            else:
                path.unlink(missing_ok=True)
    return claims


def _write_claim(path: Path, holder: str, share: float) -> IO[str]:
    file = path.open("w")
    fcntl.flock(file, fcntl.LOCK_EX)
    json.dump({"holder": holder, "share": share}, file)
    file.flush()
    return file


def _none_free(
    held: Mapping[Device, Sequence[tuple[str, float]]], *, count: int, share: float | None
) -> StartupError:
    taken = "; ".join(
        f"GPU {device.index} is held by " + ", ".join(f"{name} ({part:.0%})" for name, part in claims)
        for device, claims in held.items()
        if claims
    )
    advice = (
        "to put two executors on one GPU give each a memory fraction, --gpu-share 0.45"
        if share is None
        else f"this executor asks for --gpu-share {share:g} of each"
    )
    return StartupError(
        f"{count} of {len(held)} GPUs wanted, too few are free: {taken or 'no GPU is visible'}; {advice}",
        ExitCode.REFUSED,
    )
