"""Blanks the GPU code of other architectures in a CUDA library, in place of size, so that it compresses well.

A fat binary is a list of entries, each code for one architecture. Headers and offsets stay as they are; only
the payload of entries that the target will not run is zeroed. PTX is kept unless native code for the target
is there.

usage: slim_fatbin.py IN.so OUT.so [SM ...]      e.g. 90 for Hopper
"""

import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MAGIC = struct.pack("<IH", 0xBA55ED50, 1)
KINDS = (1, 2, 4, 8, 16, 64)
PTX, CUBIN = 1, 2


@dataclass(frozen=True, slots=True)
class Entry:
    """One architecture's code. `start` and `length` are bytes in the file."""

    kind: int
    sm: int
    start: int
    length: int


def containers(data: bytes | bytearray) -> Iterator[tuple[int, int]]:
    """Byte ranges of the entry lists of all fat binaries in `data`."""
    position = 0
    while (position := data.find(MAGIC, position)) >= 0:
        (header,) = struct.unpack_from("<H", data, position + 6)
        (length,) = struct.unpack_from("<Q", data, position + 8)
        end = position + header + length
        if header != 16 or end > len(data):
            position += 4
            continue
        yield position + header, end
        position = end


def entries(data: bytes | bytearray, start: int, end: int) -> Iterator[Entry]:
    """Entries of one list. Raises ValueError when the format is not the known one."""
    while start + 64 <= end:
        kind, _, header = struct.unpack_from("<HHI", data, start)
        (length,) = struct.unpack_from("<Q", data, start + 8)
        (sm,) = struct.unpack_from("<I", data, start + 28)
        if kind not in KINDS or not 64 <= header <= 4096 or start + header + length > end:
            if kind == 0 and not any(data[start:end]):
                return
            raise ValueError(f"unknown fat binary entry at {start:#x}: kind {kind}, header {header}")
        yield Entry(kind, sm, start + header, length)
        start += header + length


def slim(data: bytearray, keep: frozenset[int]) -> int:
    """Zeroes what `keep` does not need; returns the number of bytes zeroed."""
    zeroed = 0
    for start, end in list(containers(data)):
        found = list(entries(data, start, end))
        native = any(entry.kind == CUBIN and entry.sm in keep for entry in found)
        for entry in found:
            foreign = entry.kind == CUBIN and entry.sm not in keep
            if foreign or (entry.kind == PTX and native):
                data[entry.start : entry.start + entry.length] = bytes(entry.length)
                zeroed += entry.length
    return zeroed


def main() -> None:
    """Command line."""
    source, target, *architectures = sys.argv[1:]
    data = bytearray(Path(source).read_bytes())
    zeroed = slim(data, frozenset(map(int, architectures or ["90"])))
    Path(target).write_bytes(data)
    print(f"{Path(source).name}: {zeroed / 2**20:.1f} of {len(data) / 2**20:.1f} MiB blanked")


if __name__ == "__main__":
    main()
