"""Tokens that may stop a row: one look-up for all tokens of a step."""

from collections.abc import Iterable

import numpy as np

from scheduler_svc.core.columns import Int32Array
from scheduler_svc.core.events import CallSpec


class StopWatch:
    """Counts, for each token of the vocabulary, the rows that it may stop."""

    def __init__(self, vocab_size: int) -> None:
        """
        Args:
            vocab_size: 0: unknown; then no token can be watched for.
        """
        self.vocab_size = vocab_size
        self._rows: dict[int, int] = {}
        self._table = np.zeros(vocab_size, np.bool_)
        """By token."""

    def add(self, spec: CallSpec) -> None:
        """A row of this call joins those that are watched."""
        for token in _stop_tokens(spec):
            rows = self._rows.get(token, 0)
            self._rows[token] = rows + 1
            if not rows:
                self._mark(token, watched=True)

    def remove(self, spec: CallSpec) -> None:
        """Undoes `add`."""
        for token in _stop_tokens(spec):
            left = self._rows[token] - 1
            if left:
                self._rows[token] = left
            else:
                del self._rows[token]
                self._mark(token, watched=False)

    def _mark(self, token: int, *, watched: bool) -> None:
        if 0 <= token < self.vocab_size:  # others cannot be sampled
            self._table[token] = watched

    def look(self, tokens: Int32Array) -> list[int] | None:
        """Indices of the tokens that may stop their rows; None when one of them is no token at all."""
        try:
            marks = self._table.take(tokens.view(np.uint32))  # what is negative is too large then
        except IndexError:
            return None
        packed = marks.tobytes()
        if packed.find(1) < 0:
            return _NONE
        return list(marks.nonzero()[0].tolist())


def _stop_tokens(spec: CallSpec) -> Iterable[int]:
    """Each once."""
    stop, eos = spec.stop_token_ids, spec.eos_token_id
    return stop if eos is None or eos in stop else (*stop, eos)


_NONE: list[int] = []
