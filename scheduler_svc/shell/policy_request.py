"""What a SetPolicy request asks for, as options of the core. Values are the core's to check; words are
checked here, for the core has none."""

from collections.abc import Mapping
from enum import Enum
from typing import Any

from protos.autellix.scheduler.v1 import scheduler_pb2 as pb
from scheduler_svc.core.config import PRESETS, BadOption, Fit, ServiceUnit, Tie
from scheduler_svc.core.errors import Refused
from scheduler_svc.core.refusals import bad_option

_WORDS: Mapping[str, type[Enum]] = {"service_unit": ServiceUnit, "tie": Tie, "fit": Fit}
_NUMBERS = ("levels", "first_quantum_s", "quantum_ratio")


def policy_changes(request: pb.SetPolicyRequest) -> dict[str, Any]:
    """The options that the request sets, over those of its preset.

    Raises: Refused(PARAMETER_OUT_OF_RANGE) on a word that means nothing.
    """
    changes = _preset(request.preset)
    if request.policy:
        changes["policy"] = request.policy
    for field, words in _WORDS.items():
        if getattr(request, field):
            changes[field] = _word(field, getattr(request, field), words)
    numbers = {name: getattr(request, name) for name in _NUMBERS if request.HasField(name)}
    if numbers or request.level_boundaries_s:
        changes |= numbers | {"level_boundaries_s": tuple(request.level_boundaries_s) or None}
    if request.HasField("starvation_beta"):
        changes["starvation_beta"] = request.starvation_beta or None
    return changes


def _preset(name: str) -> dict[str, Any]:
    if name and name not in PRESETS:
        raise _refused("preset", list(PRESETS), name)
    return dict(PRESETS[name]) if name else {}


def _word(field: str, word: str, words: type[Enum]) -> Enum:
    known = [item.value for item in words]
    if word not in known:
        raise _refused(field, known, word)
    return words(word)


def _refused(field: str, known: list[str], value: str) -> Refused:
    return Refused(bad_option(BadOption(field, f"one of {', '.join(known)}", value)))
