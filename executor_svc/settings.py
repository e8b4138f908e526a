"""Settings of an executor, from `AUTELLIX_EXECUTOR_*` and flags. None leaves a choice to the runner."""

import os
import secrets
import socket
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from executor_svc.cost_model import step_cost
from svc_runtime.settings import ServiceSettings


def _default_executor_id() -> str:
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"


class ExecutorSettings(ServiceSettings):
    """What an executor can be told."""

    model_config = SettingsConfigDict(env_prefix="AUTELLIX_EXECUTOR_")

    # ── peers ───────────────────────────────────────────────────────────────────────────────────────
    scheduler: str = Field(default="127.0.0.1:50051", min_length=3, description="scheduler, host:port")
    peer_token: SecretStr | None = Field(default=None, description="shared token that the scheduler asks for")
    executor_id: str = Field(
        default_factory=_default_executor_id,
        min_length=1,
        max_length=128,
        pattern=r"^[\w.:-]+$",
        description="name of this executor, unique at its scheduler; default: host-pid-random",
    )
    connect_timeout_s: float | None = Field(
        default=None,
        gt=0,
        description="give up when the scheduler was not reached for so long; default: never",
    )
    accept_timeout_s: float = Field(
        default=10.0, gt=0, le=600, description="seconds the scheduler has to answer a registration"
    )
    health_host: str = Field(default="127.0.0.1", description="address of the health service")
    health_port: int = Field(
        default=50052, ge=0, le=65535, description="port of grpc health and reflection; 0: a free one, logged"
    )

    # ── what runs ───────────────────────────────────────────────────────────────────────────────────
    runner: Literal["vllm", "simulated"] = Field(default="vllm", description="what executes plans")
    model: str = Field(default="", description="model directory or Hugging Face id; simulated: any name")
    served_model_name: str = Field(default="", description="name clients use; default: --model")
    max_model_len: int | None = Field(default=None, ge=2, description="longest prompt + output, tokens")
    max_num_seqs: int | None = Field(default=None, ge=1, le=65536, description="most rows in a step")
    max_num_batched_tokens: int | None = Field(default=None, ge=1, description="most tokens in a step")
    block_size: int | None = Field(default=None, ge=1, le=1024, description="tokens in a KV block")
    num_gpu_blocks_override: int | None = Field(
        default=None, ge=2, description="KV blocks on the device, whatever memory would allow"
    )
    host_blocks: int = Field(
        default=0,
        ge=0,
        description="KV blocks of the host tier, whatever --host-kv-gib would hold (0: not fixed); "
        "a simulated executor has no others",
    )
    max_plans_in_flight: int = Field(
        default=2, ge=1, le=2, description="1: lockstep, 2: the next plan arrives while a step runs"
    )
    structured_output_backend: Literal["xgrammar", "guidance", "outlines", "lm-format-enforcer"] = Field(
        default="xgrammar", description="grammar backend; frontends must use the same"
    )
    reasoning_parser: str = Field(default="", description="vLLM reasoning parser; empty: none")

    # ── vLLM ────────────────────────────────────────────────────────────────────────────────────────
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="data type of weights; vLLM's auto turns float32 models into bfloat16"
    )
    kv_cache_gib: float | None = Field(default=None, gt=0, description="GiB of KV cache; CPU default: 4")
    host_kv_gib: float | None = Field(
        default=None,
        ge=0,
        description="GiB of main memory for swapped KV; 0: none; default: 4, at most a quarter of what is "
        "free once the model is loaded",
    )
    gpu_memory_utilization: float | None = Field(
        default=None, gt=0, le=1, description="fraction of GPU memory to use; default: vLLM's, or --gpu-share"
    )
    tensor_parallel_size: int = Field(default=1, ge=1, le=64, description="GPUs of this executor")
    enforce_eager: bool = Field(default=False, description="no CUDA graphs, no compilation")
    load_format: str = Field(default="auto", description="vLLM load format, e.g. dummy for random weights")
    seed: int = Field(default=0, ge=0, description="seed of calls that bring none")
    gpu_share: float | None = Field(
        default=None, gt=0, lt=1, description="share a GPU: the fraction of its memory this executor may take"
    )
    device_lock_dir: Path = Field(
        default=Path("/tmp/autellix-devices"),  # noqa: S108 - locks only, see device_claim.py
        description="where executors of one host agree on GPUs; share it between containers",
    )

    # ── simulated ───────────────────────────────────────────────────────────────────────────────────
    simulated_cost: str = Field(
        default="h100-llama-3.1-8b",
        description="step cost: h100-llama-3.1-8b, a100-llama-3.1-8b, zero or fixed:10ms",
    )
    simulated_overhead_ms: float = Field(default=0, ge=0, le=1000, description="added to every step")
    simulated_vocab_size: int | None = Field(
        default=None, ge=2, description="tokens made up are below; default: the model directory's, or 32000"
    )
    simulated_first_token: int = Field(default=0, ge=0, description="tokens made up are not below")
    simulated_eos_token_id: int | None = Field(
        default=None, ge=0, description="end-of-sequence token; default: the model directory's"
    )
    simulated_eos_every: int = Field(
        default=0, ge=0, description="one token in so many ends a call; 0: none does"
    )

    @field_validator("simulated_cost")
    @classmethod
    def _known_cost(cls, value: str) -> str:
        step_cost(value)
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.model:
            raise ValueError("--model (AUTELLIX_EXECUTOR_MODEL): required")
        return self
