"""Everything that random stories about the core choose from, as data: the state machine draws it with
Hypothesis, the long runs with a seeded generator, so both know every option that there is.

Executors are small, quanta and beta as well: seats, blocks, tokens and levels all run out within a few steps.
"""

from collections.abc import Mapping
from typing import Any

from scheduler_svc.core.config import Admission, Fit, KvPreempted, PlannerKind, ServiceUnit, Tie
from scheduler_svc.core.ids import FrontendId, TenantId
from scheduler_svc.core.policies import POLICIES
from tests.unit.scheduler_core.obedient_executor import VOCAB_SIZE

MAX_MODEL_LEN = 64
TENANTS = (TenantId("acme"), TenantId("globex"))
FRONTENDS = (FrontendId("frontend-1"), FrontendId("frontend-2"))
EXECUTORS = ("executor-1", "executor-2")
PROGRAMS = 5
"""Numbers of programs that calls are submitted to, for each tenant."""
SYSTEM_PROMPT = [(13 * i) % VOCAB_SIZE for i in range(40)]
"""Calls of all tenants that start with the same tokens."""

Options = Mapping[str, tuple[Any, ...]]
"""name -> the values to choose from; what is likelier is there twice."""

POLICY_CHANGES: Options = {
    "policy": tuple(POLICIES),
    "service_unit": tuple(ServiceUnit),
    "tie": tuple(Tie),
    "running_first": (True, False),
    "levels": (1, 2, 4, 8),
    "first_quantum_s": (0.02, 0.3, 1.0, 3.0, 1000.0),
    "quantum_ratio": (1.0, 2.0),
    "starvation_beta": (None, 0.2, 1.5, 10.0),
    "fit": tuple(Fit),
    "preemption_grace_s": (0.0, 0.0, 0.05, 5.0),
}
CORE: Options = {
    **POLICY_CHANGES,
    "kv_preempted": tuple(KvPreempted),
    "admission": tuple(Admission),
    "planner": (PlannerKind.COLUMNAR, PlannerKind.COLUMNAR, PlannerKind.PLAIN),
    "idle_kv_s": (0.0, 5.0, 30.0),
    "idle_timeout_s": (20.0, 600.0, 600.0),
    "short_prompt_tokens": (0, 10, 2048),
    "recent_programs_max": (0, 0, 5),
    "executor_losses_max": (2, 10**6),
    "unacknowledged_calls_max": (2, 1000),
}
EXECUTOR: Options = {
    "block_size": (4, 4, 8),
    "num_blocks": (17, 24, 60),
    "host_blocks": (0, 1, 6, 500),
    "block_bytes": (0, 1024, 1 << 40),
    "max_num_seqs": (1, 2, 4),
    "max_num_batched_tokens": (4, 9, 64),
    "max_plans_in_flight": (1, 2, 3),
    "prefix_caching": (True, True, False),
}
CALL: Options = {
    "tenant": TENANTS,
    "max_tokens": (1, 5, 9, 24, 24),
    "eos_token_id": (None, 5, 250),
    "stop_token_ids": (frozenset(), frozenset(), frozenset(range(0, VOCAB_SIZE, 9))),
    "min_tokens": (0, 0, 1, 4),
    "needs_preparation": (False, False, False, True),
    "skip_reading_prefix_cache": (False, False, True),
    "cache_salt": ("", "", "salt"),
    "deadline_s": (None, None, None, 20.0),
    "frontend_id": FRONTENDS,
    "hash_block_size": (0, 4, 8),
}
