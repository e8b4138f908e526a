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
        for token in self._tokens_of(spec):
            self._rows[token] = self._rows.get(token, 0) + 1
            self._table[token] = True

    def remove(self, spec: CallSpec) -> None:
        """Undoes `add`."""
        for token in self._tokens_of(spec):
            left = self._rows[token] - 1
            if left:
                self._rows[token] = left
            else:
                del self._rows[token]
                self._table[token] = False

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

    def _tokens_of(self, spec: CallSpec) -> Iterable[int]:
        stop = spec.stop_token_ids
        eos = spec.eos_token_id
        tokens = stop if eos is None or eos in stop else (*stop, eos)
        return [token for token in tokens if 0 <= token < self.vocab_size] if tokens else ()


_NONE: list[int] = []
