"""Logs: format, routing of the standard library's loggers, secrets."""

import errno
import io
import json
import logging
import sys

import pytest
import structlog

from svc_runtime.log import REDACTED, configure_logging, redact_secrets


@pytest.fixture(autouse=True)
def _restored_logging():
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers, root.level = handlers, level
    structlog.reset_defaults()


def logged(capsys):
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_an_event_is_one_json_line_with_its_keys(capsys):
    configure_logging("scheduler", format="json")
    structlog.get_logger("core").info("call_dispatched", program_id="p1", level=2)
    [line] = logged(capsys)
    assert line["event"] == "call_dispatched"
    assert (line["program_id"], line["service"], line["level"]) == ("p1", "scheduler", "info")
    assert line["queue_level"] == 2


def test_the_standard_library_goes_the_same_way(capsys):
    configure_logging("executor", format="json")
    logging.getLogger("library.engine").warning("loaded %d layers", 2)
    [line] = logged(capsys)
    assert (line["event"], line["logger"], line["service"]) == (
        "loaded 2 layers",
        "library.engine",
        "executor",
    )


def test_the_level_holds_for_both(capsys):
    configure_logging("frontend", level="warning", format="json")
    structlog.get_logger("a").info("hidden")
    logging.getLogger("b").info("hidden")
    structlog.get_logger("a").warning("shown")
    assert [line["event"] for line in logged(capsys)] == ["shown"]


class FullDisk(io.StringIO):
    """Takes nothing."""

    def write(self, _text):
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("level", ["info", "warning", "error", "exception", "critical"])
def test_a_line_that_cannot_be_written_is_dropped(monkeypatch, level):
    monkeypatch.setattr(sys, "stderr", FullDisk())
    configure_logging("scheduler")
    with pytest.raises(OSError, match="No space left"):
        sys.stderr.write("x")
    getattr(structlog.get_logger("a"), level)("call_finished")


def test_a_closed_stderr_ends_nothing(monkeypatch, capsys):
    closed = io.StringIO()
    monkeypatch.setattr(sys, "stderr", closed)
    configure_logging("scheduler")
    closed.close()
    structlog.get_logger("a").info("call_finished")
    monkeypatch.undo()
    assert capsys.readouterr().err == ""


def test_an_exception_is_logged_without_local_variables(capsys):
    configure_logging("frontend", format="json")
    prompt = "a private prompt"
    try:
        raise RuntimeError(f"{len(prompt)} is too long")
    except RuntimeError:
        structlog.get_logger("a").exception("call_failed")
    text = capsys.readouterr().err
    assert "RuntimeError" in text
    assert "private" not in text


def test_auto_without_a_terminal_is_json(capsys):
    configure_logging("frontend")
    structlog.get_logger("a").info("ready")
    assert logged(capsys)[0]["event"] == "ready"


def test_console_is_for_people(capsys):
    configure_logging("frontend", format="console")
    structlog.get_logger("a").info("ready", port=8000)
    text = capsys.readouterr().err
    assert "ready" in text
    assert "port=8000" in text


@pytest.mark.parametrize(
    "key", ["peer_token", "authorization", "x-api-key", "api_keys", "client_secret", "token", "password"]
)
def test_values_of_secret_keys_never_show(key):
    assert redact_secrets(None, "info", {key: "hunter2"}) == {key: REDACTED}
    assert redact_secrets(None, "info", {"headers": [{key: "hunter2"}]}) == {"headers": [{key: REDACTED}]}


@pytest.mark.parametrize("key", ["tokens", "token_ids", "max_tokens", "prompt_tokens", "key"])
def test_words_that_only_look_like_secrets_stay(key):
    assert redact_secrets(None, "info", {key: 7}) == {key: 7}


def test_bearer_tokens_inside_texts_are_cut():
    event = redact_secrets(None, "info", {"event": 'got "Authorization: Bearer abc.def" and more'})
    assert event["event"] == f'got "Authorization: Bearer {REDACTED}" and more'
