"""Settings: precedence, bounds, complaints."""

import pytest
from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from svc_runtime.settings import ServiceSettings, load_settings


class ProbeSettings(ServiceSettings):
    """Settings of a service that exists for this test."""

    model_config = SettingsConfigDict(env_prefix="AUTELLIX_PROBE_")

    port: int = Field(default=50051, ge=1, le=65535, description="port to listen on")
    idle_timeout_s: float = Field(default=600, gt=0, description="seconds")
    peer_token: SecretStr | None = Field(default=None, min_length=8)
    verbose: bool = False


def refusal(capsys, argv):
    with pytest.raises(SystemExit) as exit_info:
        load_settings(ProbeSettings, argv)
    assert exit_info.value.code == 2
    return capsys.readouterr().err


def test_flags_win_over_the_environment_and_that_over_defaults(monkeypatch):
    monkeypatch.setenv("AUTELLIX_PROBE_PORT", "1000")
    monkeypatch.setenv("AUTELLIX_PROBE_IDLE_TIMEOUT_S", "5")
    settings = load_settings(ProbeSettings, ["--port", "2000"])
    assert (settings.port, settings.idle_timeout_s, settings.drain_s) == (2000, 5, 30)


def test_flags_are_kebab_case_and_switches_need_no_value():
    settings = load_settings(ProbeSettings, ["--idle-timeout-s=1.5", "--verbose"])
    assert (settings.idle_timeout_s, settings.verbose) == (1.5, True)


def test_a_bad_value_is_named_with_its_bound(capsys):
    complaint = refusal(capsys, ["--port", "70000"])
    for part in ("--port", "AUTELLIX_PROBE_PORT", "65535", "70000"):
        assert part in complaint


def test_all_bad_values_are_named_at_once(capsys):
    complaint = refusal(capsys, ["--port", "x", "--idle-timeout-s", "0"])
    assert "--port" in complaint
    assert "--idle-timeout-s" in complaint


def test_an_unknown_flag_is_refused(capsys):
    assert "--prot" in refusal(capsys, ["--prot", "1"])


def test_an_unknown_variable_with_our_prefix_is_refused(capsys, monkeypatch):
    monkeypatch.setenv("AUTELLIX_PROBE_PROT", "1")
    assert "AUTELLIX_PROBE_PROT" in refusal(capsys, [])


def test_an_empty_variable_counts_as_unset(monkeypatch):
    monkeypatch.setenv("AUTELLIX_PROBE_PORT", "")
    assert load_settings(ProbeSettings, []).port == 50051


def test_other_variables_are_none_of_our_business(monkeypatch):
    monkeypatch.setenv("AUTELLIX_OTHER_PROT", "1")
    assert load_settings(ProbeSettings, []).port == 50051


def test_a_bad_secret_is_not_shown(capsys):
    complaint = refusal(capsys, ["--peer-token", "hunter2"])
    assert "--peer-token" in complaint
    assert "hunter2" not in complaint


def test_a_secret_does_not_print():
    assert "long-enough" not in repr(load_settings(ProbeSettings, ["--peer-token", "long-enough"]))


def test_help_tells_flags_and_meanings(capsys):
    with pytest.raises(SystemExit) as exit_info:
        load_settings(ProbeSettings, ["--help"])
    assert exit_info.value.code == 0
    text = capsys.readouterr().out
    assert "--idle-timeout-s" in text
    assert "port to listen on" in text
