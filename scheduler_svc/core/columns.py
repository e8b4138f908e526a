"""Columns: immutable int32 arrays that read like sequences and are packed to bytes once.

A batch that does not change is the same object from plan to plan: its bytes are made once and then sent, and
compared, as they are. Slots, handles and tokens of a step are columns; nothing is done row by row.
"""

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

import numpy as np
import numpy.typing as npt

Int32Array = npt.NDArray[np.int32]

_WIRE = np.dtype("<i4")


class Column(Sequence[int]):
    """An int32 column. Shape: (rows,). Equal to any sequence of the same values."""

    __slots__ = ("_packed", "array")

    def __init__(self, array: Int32Array) -> None:
        """
        Args:
            array: Taken over: nobody may write to it any more.
        """
        self.array = array
        self._packed: bytes | None = None

    @classmethod
    def of(cls, values: Iterable[int]) -> "Column":
        """A column of these values; a column is returned as it is.

        Raises: OverflowError when a value does not fit into 32 bits.
        """
        if isinstance(values, Column):
            return values
        return cls(np.array(values if isinstance(values, list | tuple) else list(values), dtype=np.int32))

    @classmethod
    def unpack(cls, packed: bytes) -> "Column":
        """Reads a little-endian int32 array; keeps `packed`.

        Raises: ValueError when the length is not a multiple of four bytes.
        """
        if len(packed) % 4:
            raise ValueError(f"an int32 column has a multiple of 4 bytes, this one has {len(packed)}")
        array = np.frombuffer(packed, dtype=_WIRE)
        column = cls(array if sys.byteorder == "little" else array.astype(np.int32))
        column._packed = packed
        return column

    @property
    def packed(self) -> bytes:
        """The values as a little-endian int32 array; made once."""
        if self._packed is None:
            array = self.array if sys.byteorder == "little" else self.array.astype(_WIRE)
            self._packed = array.tobytes()
        return self._packed

    def __len__(self) -> int:
        return len(self.array)

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> "Column": ...
    def __getitem__(self, index: int | slice) -> "int | Column":
        if isinstance(index, slice):
            return Column(self.array[index])
        return int(self.array[index])

    def __iter__(self) -> Iterator[int]:
        return iter(self.array.tolist())

    def __contains__(self, value: object) -> bool:
        return bool((self.array == value).any())

    def __eq__(self, other: Any) -> bool:
        if isinstance(other, Column):
            return self.packed == other.packed
        if isinstance(other, Sequence):
            return self.array.tolist() == list(other)
        return NotImplemented

    def __hash__(self) -> int:
        return hash(self.packed)

    def __repr__(self) -> str:
        return f"Column({self.array.tolist()})"


EMPTY = Column(np.empty(0, dtype=np.int32))
