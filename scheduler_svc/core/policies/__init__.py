"""Scheduling policies: each a file, each a total order. `make_policy` is the list of them."""

from collections.abc import Callable

from scheduler_svc.core.config import BadOption, CoreConfig
from scheduler_svc.core.policies.atlas import Atlas
from scheduler_svc.core.policies.base import FOREVER_PS, LevelTable, Policy
from scheduler_svc.core.policies.fcfs import Fcfs
from scheduler_svc.core.policies.gittins import Gittins
from scheduler_svc.core.policies.mlfq import Mlfq
from scheduler_svc.core.policies.plas import Plas
from scheduler_svc.core.policies.program_fcfs import ProgramFcfs
from scheduler_svc.core.service_history import ServiceHistory

POLICIES: dict[str, Callable[[CoreConfig, ServiceHistory], Policy]] = {
    Fcfs.name: lambda config, _: Fcfs(config),
    ProgramFcfs.name: lambda config, _: ProgramFcfs(config),
    Mlfq.name: lambda config, _: Mlfq(config),
    Plas.name: lambda config, _: Plas(config),
    Atlas.name: lambda config, _: Atlas(config),
    Gittins.name: Gittins,
}

__all__ = ["FOREVER_PS", "POLICIES", "LevelTable", "Policy", "make_policy"]


def make_policy(config: CoreConfig, history: ServiceHistory | None = None) -> Policy:
    """The policy that `config` names.

    Args:
        history: Sizes of ended programs; None: nothing is known.

    Raises: BadOption when there is none of that name.
    """
    if config.policy not in POLICIES:
        raise BadOption("policy", f"one of {', '.join(POLICIES)}", config.policy)
    return POLICIES[config.policy](config, ServiceHistory() if history is None else history)
