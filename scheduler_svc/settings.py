"""Settings of the scheduler: flags and AUTELLIX_SCHEDULER_* variables, with bounds."""

import ipaddress
from typing import Literal, Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import SettingsConfigDict

from scheduler_svc.core.config import CoreConfig, Tie
from svc_runtime.settings import ServiceSettings


class SchedulerSettings(ServiceSettings):
    """Schedules the LLM calls of agent programs over executors."""

    model_config = SettingsConfigDict(env_prefix="AUTELLIX_SCHEDULER_")

    # ── network ─────────────────────────────────────────────────────────────────────────────────────
    host: str = Field(
        default="127.0.0.1", description="address to listen on; other than loopback needs a peer token"
    )
    port: int = Field(
        default=50051, ge=0, le=65535, description="port of both gRPC services; 0 = any free one"
    )
    peer_token: SecretStr = Field(
        default=SecretStr(""),
        description="shared secret of frontends and executors; better set by environment",
    )
    scheduler_id: str = Field(
        default="",
        max_length=256,
        description="name of this process, for its peers; empty: host name and process id",
    )
    metrics_port: int = Field(
        default=9051, ge=0, le=65535, description="port of the Prometheus endpoint; 0 = off"
    )

    # ── policy ──────────────────────────────────────────────────────────────────────────────────────
    policy: Literal["fcfs", "plas"] = Field(
        default="plas",
        description="fcfs: calls in order of arrival; plas: least attained service of the program first",
    )
    levels: int = Field(default=8, ge=1, le=64, description="queue levels")
    first_quantum_s: float = Field(
        default=1.0,
        gt=0,
        le=3600,
        description="seconds of service in the first level before a call is demoted",
    )
    quantum_ratio: float = Field(
        default=2.0, ge=1, le=100, description="quantum of a level over that of the one before"
    )
    starvation_beta: float = Field(
        default=10.0,
        ge=0,
        description="waiting over service from which a call is promoted to the first level; 0 = never",
    )
    tie: Literal["program", "call"] = Field(
        default="program",
        description="what goes first within a level: the earlier program or the earlier call",
    )
    short_prompt_tokens: int = Field(
        default=2048,
        ge=0,
        description="prompts up to this length go to the least used executor, longer ones to their program's",
    )
    max_plans_in_flight: int = Field(
        default=2, ge=1, le=2, description="plans an executor may hold: 1 = lockstep, 2 = one plan ahead"
    )

    # ── limits ──────────────────────────────────────────────────────────────────────────────────────
    program_idle_s: float = Field(
        default=600.0,
        gt=0,
        le=7 * 86400,
        description="a program without live calls ends after this many seconds",
    )
    open_programs_max: int = Field(default=100_000, ge=1, description="programs open at a time")
    recent_programs_max: int = Field(default=1000, ge=0, description="ended programs that are still listed")
    live_calls_max: int = Field(default=32_768, ge=1, description="live calls in total")
    frontend_calls_max: int = Field(
        default=8192, ge=1, description="calls of one frontend, those not acknowledged included"
    )
    params_bytes_max: int = Field(
        default=1 << 20, ge=1024, description="sampling parameters of one call, in bytes"
    )
    frontend_backlog_mib: float = Field(
        default=16.0,
        gt=0,
        le=48,
        description="outputs kept for a frontend that does not read, before it is cut off",
    )
    frontend_grace_s: float = Field(
        default=10.0, ge=0, le=3600, description="seconds that calls outlive the stream of their frontend"
    )
    hello_timeout_s: float = Field(
        default=10.0, gt=0, le=600, description="seconds in which a peer must introduce itself"
    )

    @model_validator(mode="after")
    def _token_off_loopback(self) -> Self:
        if not self.peer_token.get_secret_value() and not is_loopback(self.host):
            raise ValueError(
                f"host = {self.host} is reachable from elsewhere and peer_token is empty: set a peer token, "
                "or listen on 127.0.0.1"
            )
        return self

    def core_config(self) -> CoreConfig:
        """The core's part."""
        return CoreConfig(
            policy=self.policy,
            tie=Tie(self.tie),
            levels=self.levels,
            first_quantum_s=self.first_quantum_s,
            quantum_ratio=self.quantum_ratio,
            starvation_beta=self.starvation_beta or None,
            short_prompt_tokens=self.short_prompt_tokens,
            idle_timeout_s=self.program_idle_s,
            open_programs_max=self.open_programs_max,
            recent_programs_max=self.recent_programs_max,
            live_calls_max=self.live_calls_max,
            unacknowledged_calls_max=self.frontend_calls_max,
        )


def is_loopback(host: str) -> bool:
    """True when only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
