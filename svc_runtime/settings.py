"""Settings of a service: flags over environment over defaults, all with bounds, nothing unknown accepted.

A subclass names its prefix, `model_config = SettingsConfigDict(env_prefix="AUTELLIX_SCHEDULER_")`, and its
fields with `Field(description=..., ge=..., le=...)`; field `idle_timeout_s` is then `--idle-timeout-s` and
`AUTELLIX_SCHEDULER_IDLE_TIMEOUT_S`. A variable with the prefix that names no field is refused like a flag.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from svc_runtime.lifecycle import ExitCode
from svc_runtime.log import LogFormat, LogLevel


class ServiceSettings(BaseSettings):
    """What every service can be told."""

    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        env_ignore_empty=True,  # compose passes `${UNSET:-}` as empty
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
    )

    log_level: LogLevel = Field(default="info", description="least severe level that is logged")
    log_format: LogFormat = Field(default="auto", description="auto: console on a terminal, JSON otherwise")
    metrics_host: str = Field(default="127.0.0.1", description="address of the Prometheus endpoint")
    metrics_port: int = Field(default=0, ge=0, le=65535, description="port of the endpoint; 0 = off")
    drain_s: float = Field(
        default=30.0, ge=0, le=3600, description="seconds that running calls get to finish on SIGTERM"
    )


S = TypeVar("S", bound=ServiceSettings)


def load_settings(cls: type[S], argv: Sequence[str] | None = None) -> S:
    """Reads the settings of a service; prints help or what is wrong and exits instead of raising.

    Args:
        argv: the flags; None means those of the process.
    """
    program = f"python -m {cls.__module__.split('.')[0]}"
    arguments = list(sys.argv[1:] if argv is None else argv)
    unknown = _unknown_variables(cls, os.environ)
    if unknown:
        _exit_usage(program, [f"environment variable {name} names no setting" for name in unknown])
    try:
        return cls(_cli_parse_args=arguments, _cli_prog_name=program)
    except ValidationError as error:
        _exit_usage(program, [_complaint(cls, item) for item in error.errors()])
    except SettingsError as error:
        _exit_usage(program, [str(error)])


def _unknown_variables(cls: type[ServiceSettings], environ: Mapping[str, str]) -> list[str]:
    prefix = cls.model_config.get("env_prefix") or ""
    if not prefix:
        return []
    known = {(prefix + name).upper() for name in cls.model_fields}
    return sorted(name for name in environ if name.upper().startswith(prefix) and name.upper() not in known)


def _complaint(cls: type[ServiceSettings], item: Any) -> str:
    """One line: the flag, the variable, what is wrong with the value, the value."""
    message = item["msg"].removeprefix("Value error, ")
    if not item["loc"]:
        return str(message)
    name = str(item["loc"][0])
    prefix = cls.model_config.get("env_prefix") or ""
    where = f"--{name.replace('_', '-')} ({(prefix + name).upper()})"
    if item["type"] == "missing":
        return f"{where}: required"
    return f"{where}: {message}, got {_shown(cls, name, item['input'])}"


def _shown(cls: type[ServiceSettings], name: str, value: Any) -> str:
    field = cls.model_fields.get(name)
    secret = field is not None and "SecretStr" in str(field.annotation)
    return str(SecretStr("x")) if secret else repr(value)


def _exit_usage(program: str, complaints: Sequence[str]) -> NoReturn:
    for complaint in complaints:
        print(f"{program}: {complaint}", file=sys.stderr)
    print(f"{program}: see --help", file=sys.stderr)
    raise SystemExit(ExitCode.USAGE)
