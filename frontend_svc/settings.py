"""Settings of the frontend: flags over `AUTELLIX_FRONTEND_*` over defaults."""

import ipaddress
import os
import socket
from pathlib import Path
from typing import Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from frontend_svc.auth import ApiKeys, parse_api_keys
from svc_runtime.settings import ServiceSettings

MIB = 1024 * 1024


def _default_frontend_id() -> str:
    return f"{socket.gethostname()}-{os.getpid()}"


class FrontendSettings(ServiceSettings):
    """What a frontend can be told."""

    model_config = SettingsConfigDict(env_prefix="AUTELLIX_FRONTEND_")

    host: str = Field(default="127.0.0.1", description="address of the HTTP and the public gRPC port")
    port: int = Field(default=8000, ge=0, le=65535, description="HTTP port; 0 = any free one")
    grpc_port: int = Field(default=50050, ge=0, le=65535, description="public gRPC port; 0 = any free one")
    metrics_port: int = Field(default=9050, ge=0, le=65535, description="Prometheus port; 0 = off")
    frontend_id: str = Field(
        default_factory=_default_frontend_id,
        min_length=1,
        max_length=128,
        description="name of this process, unique among the scheduler's frontends",
    )

    scheduler: str = Field(default="127.0.0.1:50051", description="host:port of the scheduler")
    peer_token: SecretStr = Field(default=SecretStr(""), description="token shared by the services")
    connect_timeout_s: float = Field(
        default=60.0, gt=0, le=3600, description="seconds to wait for the scheduler at the start"
    )
    model_timeout_s: float = Field(
        default=1800.0,
        gt=0,
        le=86_400,
        description="seconds to wait at the start for an executor of the model",
    )
    max_live_calls: int = Field(default=4096, ge=1, le=1_000_000, description="further calls are refused")

    model: str = Field(description="model directory or Hugging Face id: tokenizer and configuration are read")
    served_model_name: str = Field(
        default="", description="name that executors register and clients send; empty: that of --model"
    )
    chat_template: str = Field(default="", description="file with a chat template; empty: the model's own")
    tool_call_parser: str = Field(
        default="", description="vLLM's tool parser, e.g. hermes; empty: no auto tools"
    )
    reasoning_parser: str = Field(
        default="", description="vLLM's reasoning parser; empty: the one that the executors use"
    )
    structured_output_backend: str = Field(
        default="", description="xgrammar, guidance, outlines, lm-format-enforcer; empty: the executors'"
    )

    api_keys: SecretStr = Field(default=SecretStr(""), description="tenant:key,tenant:key,...")
    api_keys_file: Path | None = Field(default=None, description="file with one tenant:key a line")
    max_body_bytes: int = Field(
        default=8 * MIB, ge=1024, le=64 * MIB, description="larger HTTP bodies are refused with 413"
    )
    max_message_bytes: int = Field(
        default=8 * MIB,
        ge=1024,
        le=64 * MIB,
        description="larger messages to the public gRPC port are refused with RESOURCE_EXHAUSTED",
    )

    @field_validator("api_keys")
    @classmethod
    def _keys_can_be_read(cls, value: SecretStr) -> SecretStr:
        parse_api_keys(value.get_secret_value())
        return value

    @model_validator(mode="after")
    def _open_only_on_loopback(self) -> Self:
        if not self.keys().required and not is_loopback(self.host):
            raise ValueError(
                f"--host {self.host} is reachable from outside and there are no API keys: "
                "set --api-keys or --api-keys-file, or listen on 127.0.0.1"
            )
        return self

    def keys(self) -> ApiKeys:
        """The API keys of both settings together.

        Raises:
            ValueError: the file is missing or an entry cannot be read.
        """
        text = self.api_keys.get_secret_value()
        if self.api_keys_file is not None:
            try:
                text = f"{text}\n{self.api_keys_file.read_text()}"
            except OSError as error:
                raise ValueError(f"--api-keys-file cannot be read: {error.strerror}") from None
        return parse_api_keys(text)

    @property
    def model_name(self) -> str:
        """Name under which the model is served."""
        return self.served_model_name or self.model

    def vllm_environment(self) -> dict[str, str]:
        """What vLLM must find in its environment before it is imported: no reports to its makers, our
        logging, no
        hub when the model is a directory."""
        environment = {
            "VLLM_CONFIGURE_LOGGING": "0",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
        }
        if Path(self.model).is_dir():
            environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        return environment


def is_loopback(host: str) -> bool:
    """True when only this machine can reach `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
