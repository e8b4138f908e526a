"""Unpacks the GPU kit on the host: joins kit.part.*, checks the sha256, extracts. Standard library only.

usage: install_kit.py PARTS_DIR SITE_DIR
"""

import hashlib
import io
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


class JoinedParts(io.RawIOBase):
    """The parts read one after the other, hashed on the way."""

    def __init__(self, parts: list[Path]) -> None:
        self._parts: Iterator[Path] = iter(parts)
        self._open: BinaryIO | None = next(self._parts).open("rb")
        self.digest = hashlib.sha256()

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer) -> int:  # type: ignore[no-untyped-def]
        """Fills `buffer` from the current part, or the next one."""
        while self._open is not None:
            chunk = self._open.read(len(buffer))
            if chunk:
                self.digest.update(chunk)
                buffer[: len(chunk)] = chunk
                return len(chunk)
            self._open.close()
            following = next(self._parts, None)
            self._open = following.open("rb") if following else None
        return 0


def main() -> None:
    """Command line."""
    source, site = Path(sys.argv[1]), Path(sys.argv[2])
    parts = sorted(source.glob("kit.part.*"))
    if not parts:
        sys.exit(f"no kit.part.* in {source}: build the kit first (bench/gpu/build_kit.sh)")
    expected = (source / "kit.sha256").read_text().split()[0]
    joined = JoinedParts(parts)
    site.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BufferedReader(joined, 1 << 20), mode="r|xz") as archive:
        archive.extractall(site, filter="tar")
    while joined.readinto(bytearray(1 << 20)):
        pass
    if joined.digest.hexdigest() != expected:
        sys.exit("the kit is damaged: its sha256 differs from kit.sha256")
    print(f"kit unpacked: {len(parts)} parts -> {site}")


if __name__ == "__main__":
    main()
