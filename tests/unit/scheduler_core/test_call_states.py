"""The state machine of a call is data; the data must make sense."""

from itertools import product

import pytest

from scheduler_svc.core.call_states import (
    LIVE,
    TERMINAL,
    TRANSITIONS,
    CallState,
    IllegalTransition,
    Trigger,
    next_state,
)


def test_named_sets_cover_all_states_once() -> None:
    assert LIVE | TERMINAL == set(CallState) == set(TRANSITIONS)
    assert not LIVE & TERMINAL


@pytest.mark.parametrize(("state", "trigger"), [*product(CallState, Trigger)])
def test_a_transition_is_in_the_table_or_illegal(state: CallState, trigger: Trigger) -> None:
    if trigger in TRANSITIONS[state]:
        assert next_state(state, trigger) is TRANSITIONS[state][trigger]
    else:
        with pytest.raises(IllegalTransition, match=f"{trigger.value}.*{state.value}"):
            next_state(state, trigger)


@pytest.mark.parametrize("state", sorted(TERMINAL, key=lambda state: state.value))
def test_ends_are_final(state: CallState) -> None:
    assert not TRANSITIONS[state]


@pytest.mark.parametrize("state", sorted(LIVE, key=lambda state: state.value))
def test_every_live_call_can_fail_and_be_cancelled(state: CallState) -> None:
    assert next_state(state, Trigger.FAIL) is CallState.FAILED
    assert next_state(state, Trigger.CANCEL) is CallState.CANCELLED


def test_a_call_being_prepared_cannot_run() -> None:
    assert Trigger.START not in TRANSITIONS[CallState.PREPARING]
