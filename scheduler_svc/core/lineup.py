"""Calls in the order of their keys, however many.

Theory of operation. The keys lie in sorted chunks, each of which comes before the next; a call is found by
its key in a dict. A chunk holds a thousand keys at most, so to add or to remove one is two binary searches
and a short move of memory, and who is first is known at once. A chunk that grows too long is split; one that
is empty is dropped; chunks are not joined again, since few keys in many chunks do no harm.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator

from scheduler_svc.core.call import Call

QueueKey = tuple[int, ...]
"""(level, *tie-break of the policy)"""

CHUNK_MAX = 1024
"""Most keys in a chunk."""


class Lineup:
    """An ordered map of keys to calls. No two keys are equal."""

    def __init__(self, *, chunk_max: int = CHUNK_MAX) -> None:
        """
        Args:
            chunk_max: Most keys in a chunk. > 1.
        """
        self._chunk_max = chunk_max
        self._calls: dict[QueueKey, Call] = {}
        self._chunks: list[list[QueueKey]] = []
        """Ascending, and none is empty."""
        self._lasts: list[QueueKey] = []
        """The last key of each chunk. Shape: (chunks,)."""

    def __len__(self) -> int:
        return len(self._calls)

    def get(self, key: QueueKey) -> Call | None:
        """The call of a key that is here."""
        return self._calls.get(key)

    def first(self) -> Call | None:
        """The call with the smallest key. O(1)."""
        return self._calls[self._chunks[0][0]] if self._chunks else None

    def last_key(self) -> QueueKey | None:
        """The largest key. O(1)."""
        return self._lasts[-1] if self._lasts else None

    def count_before(self, key: QueueKey) -> int:
        """How many keys are smaller than `key`, which need not be here. O(chunks + log n)."""
        at = bisect_left(self._lasts, key)
        before = sum([len(chunk) for chunk in self._chunks[:at]])
        return before + bisect_left(self._chunks[at], key) if at < len(self._chunks) else before

    def add(self, key: QueueKey, call: Call) -> None:
        """Takes a call in. Its key is not here yet."""
        self._calls[key] = call
        if not self._chunks:
            self._chunks.append([key])
            self._lasts.append(key)
            return
        at = min(bisect_left(self._lasts, key), len(self._lasts) - 1)
        chunk = self._chunks[at]
        insort(chunk, key)
        if len(chunk) > self._chunk_max:
            middle = len(chunk) // 2
            self._chunks[at : at + 1] = [chunk[:middle], chunk[middle:]]
            self._lasts.insert(at, chunk[middle - 1])
            at += 1
        self._lasts[at] = self._chunks[at][-1]

    def remove(self, key: QueueKey) -> None:
        """Takes the call of a key out; it is here."""
        del self._calls[key]
        at = bisect_left(self._lasts, key)
        chunk = self._chunks[at]
        del chunk[bisect_left(chunk, key)]
        if chunk:
            self._lasts[at] = chunk[-1]
        else:
            del self._chunks[at]
            del self._lasts[at]

    def clear(self) -> None:
        """Takes all out."""
        self._calls.clear()
        self._chunks.clear()
        self._lasts.clear()

    # ── walks: lazy; do not change the lineup meanwhile ─────────────────────────────────────────────

    def items(self) -> Iterator[tuple[QueueKey, Call]]:
        """Keys and calls in order."""
        for chunk in self._chunks:
            for key in chunk:
                yield key, self._calls[key]

    def calls(self) -> Iterator[Call]:
        """Calls in order."""
        for chunk in self._chunks:
            for key in chunk:
                yield self._calls[key]

    def backwards(self) -> Iterator[tuple[QueueKey, Call]]:
        """Keys and calls, the last one first."""
        for chunk in reversed(self._chunks):
            for key in reversed(chunk):
                yield key, self._calls[key]
