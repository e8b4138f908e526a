"""Settings of the scheduler: flags and AUTELLIX_SCHEDULER_* variables, with bounds."""

import ipaddress
from math import inf
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from scheduler_svc.core.config import (
    FIRST_QUANTUM_S_MAX,
    FIRST_QUANTUM_S_MIN,
    LEVELS_MAX,
    PRESETS,
    QUANTUM_RATIO_MAX,
    Admission,
    CoreConfig,
    Fit,
    KvPreempted,
    ServiceUnit,
    Tie,
)
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
    policy: Literal["fcfs", "program_fcfs", "mlfq", "plas", "atlas", "gittins"] = Field(
        default="plas",
        description="fcfs, program_fcfs: calls or programs in order of arrival; least service first: of the "
        "call (mlfq), of its program (plas), of the longest path that led to it (atlas); gittins: least "
        "expected service until done, learned by class of program",
    )
    preset: Literal["default", "paper"] = Field(
        default="default",
        description="paper: Algorithm 1 to the letter (service_unit seconds, tie queue, no running_first, "
        "fit strict, preemption_grace_s 0) where these are not set themselves",
    )
    service_unit: Literal["cost", "seconds"] = Field(
        default="cost",
        description="service is the modelled cost of the tokens that advanced a call, or wall seconds of its "
        "steps",
    )
    levels: int = Field(default=8, ge=1, le=LEVELS_MAX, description="queue levels")
    first_quantum_s: float = Field(
        default=1.0,
        ge=FIRST_QUANTUM_S_MIN,
        le=FIRST_QUANTUM_S_MAX,
        description="seconds of service in the first level before a call is demoted",
    )
    quantum_ratio: float = Field(
        default=2.0, ge=1, le=QUANTUM_RATIO_MAX, description="quantum of a level over that of the one before"
    )
    level_boundaries_s: Annotated[tuple[float, ...], NoDecode] = Field(
        default=(),
        description="service at which the second and later levels begin, ascending, separated by commas, "
        "levels - 1 of them; none: where the quanta before are used up",
    )
    starvation_beta: float = Field(
        default=10.0,
        ge=0,
        lt=inf,
        description="waiting over service from which a call is promoted to the first level; 0 = never",
    )
    tie: Literal["program", "call", "queue"] = Field(
        default="program",
        description="what goes first within a level: the earlier program (single anonymous calls after all "
        "others), the earlier call, or whoever entered the level first, taking turns",
    )
    running_first: bool = Field(
        default=True, description="running calls keep their seats against waiting ones of their own level"
    )
    fit: Literal["strict", "backfill"] = Field(
        default="strict", description="backfill: later calls may pass a waiting one that does not fit"
    )
    preemption_grace_s: float = Field(
        default=0.05,
        ge=0,
        le=3600,
        description="modelled service a call gets before another may take its seat",
    )
    kv_preempted: Literal["auto", "pause", "swap", "drop"] = Field(
        default="auto",
        description="KV of a preempted call: kept on the device while there is room, swapped to the host, "
        "dropped; auto: by estimated cost",
    )
    admission: Literal["none", "working_set"] = Field(
        default="none",
        description="working_set: new programs wait while the KV of the live ones exceeds memory",
    )
    idle_kv_s: float = Field(
        default=30.0,
        ge=0,
        le=7 * 86400,
        description="KV of a program without live calls for so long is evicted next after that of ended ones",
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

    @field_validator("level_boundaries_s", mode="before")
    @classmethod
    def _separated_by_commas(cls, value: object) -> object:
        return [part for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _options_fit_together(self) -> Self:
        self.core_config()
        return self

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
            **self._policy_options(),
            kv_preempted=KvPreempted(self.kv_preempted),
            admission=Admission(self.admission),
            idle_kv_s=self.idle_kv_s,
            short_prompt_tokens=self.short_prompt_tokens,
            idle_timeout_s=self.program_idle_s,
            open_programs_max=self.open_programs_max,
            recent_programs_max=self.recent_programs_max,
            live_calls_max=self.live_calls_max,
            unacknowledged_calls_max=self.frontend_calls_max,
        )

    def _policy_options(self) -> dict[str, Any]:
        options: dict[str, Any] = {
            "policy": self.policy,
            "service_unit": ServiceUnit(self.service_unit),
            "tie": Tie(self.tie),
            "running_first": self.running_first,
            "levels": self.levels,
            "first_quantum_s": self.first_quantum_s,
            "quantum_ratio": self.quantum_ratio,
            "level_boundaries_s": self.level_boundaries_s or None,
            "starvation_beta": self.starvation_beta or None,
            "fit": Fit(self.fit),
            "preemption_grace_s": self.preemption_grace_s,
        }
        preset = PRESETS[self.preset].items()
        return options | {name: value for name, value in preset if name not in self.model_fields_set}


def is_loopback(host: str) -> bool:
    """True when only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
