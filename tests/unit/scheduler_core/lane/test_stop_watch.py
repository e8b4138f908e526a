"""One look at all tokens of a step finds those that may stop a row, and those that are no tokens."""

from typing import Any

import numpy as np
import pytest

from scheduler_svc.core.events import CallSpec
from scheduler_svc.core.ids import CallId, FrontendId, ProgramId, StreamHandle, TenantId
from scheduler_svc.core.lane.watch import StopWatch


def spec(**changes: Any) -> CallSpec:
    values: dict[str, Any] = {
        "call_id": CallId("call"),
        "frontend_id": FrontendId("frontend"),
        "stream_handle": StreamHandle(1),
        "tenant": TenantId("acme"),
        "program_id": ProgramId("program"),
        "model": "tiny",
        "prompt_token_ids": [1],
        "max_tokens": 4,
    }
    return CallSpec(**(values | changes))


def tokens(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def test_eos_and_stop_tokens_are_found_where_they_are() -> None:
    watch = StopWatch(100)
    watch.add(spec(eos_token_id=7, stop_token_ids=frozenset({9, 7})))
    assert watch.look(tokens(1, 7, 2, 9, 8)) == [1, 3]
    assert watch.look(tokens(1, 2, 3)) == []


def test_a_token_is_watched_for_as_long_as_one_row_wants_it() -> None:
    watch = StopWatch(100)
    one, other = spec(eos_token_id=7), spec(stop_token_ids=frozenset({7}))
    watch.add(one)
    watch.add(other)
    watch.remove(one)
    assert watch.look(tokens(7)) == [0]
    watch.remove(other)
    assert watch.look(tokens(7)) == []


def test_stop_tokens_outside_the_vocabulary_are_never_sampled() -> None:
    watch = StopWatch(100)
    odd = spec(eos_token_id=100, stop_token_ids=frozenset({-1, 10**6}))
    watch.add(odd)
    assert watch.look(tokens(0, 99)) == []
    watch.remove(odd)


@pytest.mark.parametrize("bad", [-1, -100, -101, -(2**31), 100, 199, 200, 2**31 - 1])
def test_what_is_no_token_is_seen(bad: int) -> None:
    assert StopWatch(100).look(tokens(5, bad)) is None


def test_no_tokens_are_fine() -> None:
    assert StopWatch(100).look(tokens()) == []
