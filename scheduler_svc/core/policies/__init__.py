"""Scheduling policies: each a file, each a total order. `make_policy` is the list of them."""

from collections.abc import Callable

from scheduler_svc.core.config import CoreConfig
from scheduler_svc.core.policies.base import LevelTable, Policy
from scheduler_svc.core.policies.fcfs import Fcfs
from scheduler_svc.core.policies.plas import Plas

POLICIES: dict[str, Callable[[CoreConfig], Policy]] = {Fcfs.name: Fcfs, Plas.name: Plas}

__all__ = ["POLICIES", "LevelTable", "Policy", "make_policy"]


def make_policy(config: CoreConfig) -> Policy:
    """The policy that `config` names.

    Raises: ValueError when there is none of that name.
    """
    if config.policy not in POLICIES:
        raise ValueError(f"policy must be one of {', '.join(sorted(POLICIES))}, got {config.policy!r}")
    return POLICIES[config.policy](config)
