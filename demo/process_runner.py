"""Runs the services as local processes, under supervisord.

Theory of operation. supervisord is started as a daemon from a configuration file in a home directory
(`.cache/run/up`, `.cache/run/demo`) and is spoken to through a Unix socket that only this user can open. It
keeps one log file a process, stops them in the reverse order of their start with SIGTERM first, and starts
one anew that crashed. The home directory is all the state there is: any later command finds the daemon
through it.

Secrets travel in the environment of the daemon, which the processes inherit; never in arguments, never in the
file.
"""

import http.client
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import xmlrpc.client
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

from supervisor.xmlrpc import SupervisorTransport

ROOT = Path(__file__).resolve().parents[1]
"""Where `python -m <service>` finds its package."""

SOCKET_PATH_MAX = 92
"""Bytes of a Unix socket path: 108 in Linux, less the suffix that supervisord adds while binding."""

_ALIVE = frozenset({"STARTING", "RUNNING", "STOPPING"})
_DAEMON_START_S = 15.0


class RunnerFailed(Exception):
    """supervisord itself could not start or does not answer; the message carries what it said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSpec:
    """One process to run."""

    name: str
    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    """Added to what the daemon inherited. No secrets: it is written to the file."""
    stop_wait_s: int = 40
    """Seconds from SIGTERM to SIGKILL; more than the service's own drain time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessStatus:
    """How a process fares."""

    name: str
    pid: int | None
    """None while it does not run."""
    alive: bool
    exit_code: int | None
    """None while it runs, and when it ended within its first second."""
    detail: str
    """supervisord's own words."""


class ProcessRunner:
    """The processes of one home directory."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self._socket = _socket_path(home)

    def start(self, specs: Sequence[ProcessSpec], secrets: Mapping[str, str]) -> None:
        """Starts all processes, in this order, with new log files.

        Args:
            secrets: environment variables added to this process's own.

        Raises:
            RunnerFailed: supervisord did not come up.
        """
        self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        shutil.rmtree(self.home / "logs", ignore_errors=True)
        (self.home / "logs").mkdir()
        self._configure(specs)
        command = [sys.executable, "-m", "supervisor.supervisord", "--configuration", self._config.name]
        done = subprocess.run(
            command, check=False, cwd=self.home, env={**os.environ, **secrets}, capture_output=True, text=True
        )
        if done.returncode:
            raise RunnerFailed(f"supervisord did not start: {(done.stderr or done.stdout).strip()}")
        self._await_daemon()

    def replace(self, specs: Sequence[ProcessSpec], name: str) -> None:
        """Stops one process and starts it anew as `specs` now describe it; the others keep running."""
        self._configure(specs)
        with self._daemon() as supervisor:
            supervisor.reloadConfig()
            supervisor.stopProcessGroup(name)
            supervisor.removeProcessGroup(name)
            supervisor.addProcessGroup(name)

    def stop(self) -> bool:
        """Stops everything, gracefully where the processes comply.

        Returns: False when nothing was running.
        """
        if not self.running:
            return False
        with suppress(xmlrpc.client.Fault), self._daemon() as supervisor:  # a fault: it is stopping already
            supervisor.shutdown()
        while self.running:
            time.sleep(0.1)  # ends: supervisord kills after each process's stop_wait_s
        return True

    @property
    def running(self) -> bool:
        """True from the start of supervisord until its last process has ended."""
        try:
            with self._daemon() as supervisor:
                supervisor.getPID()
        except xmlrpc.client.Fault:
            return True  # shutting down
        except (OSError, http.client.HTTPException):
            return False
        return True

    def statuses(self) -> list[ProcessStatus]:
        """All processes, in the order of their names. Raises: RunnerFailed when supervisord is gone."""
        try:
            with self._daemon() as supervisor:
                return [_status(info) for info in cast(list[Any], supervisor.getAllProcessInfo())]
        except OSError as error:
            raise RunnerFailed(f"supervisord of {self.home} does not answer: {error}") from error

    def log_path(self, name: str) -> Path:
        """Standard output and error of a process."""
        return self.home / "logs" / f"{name}.log"

    def log_tail(self, name: str, lines: int = 15) -> str:
        """The last lines that a process wrote."""
        path = self.log_path(name)
        if not path.is_file():
            return ""
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 64 * 1024))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])

    @property
    def _config(self) -> Path:
        return self.home / "supervisord.conf"

    def _configure(self, specs: Sequence[ProcessSpec]) -> None:
        text = render_config(specs, self._socket)
        descriptor = os.open(self._config, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)

    def _daemon(self) -> "_Daemon":
        return _Daemon(self._socket)

    def _await_daemon(self) -> None:
        limit = time.monotonic() + _DAEMON_START_S
        while not self.running:
            if time.monotonic() > limit:
                raise RunnerFailed(f"supervisord did not answer; see {self.home / 'supervisord.log'}")
            time.sleep(0.05)


class _Daemon:
    """One conversation with supervisord; the connection is closed at its end."""

    def __init__(self, path: Path) -> None:
        self._transport = SupervisorTransport(None, None, f"unix://{path}")

    def __enter__(self) -> Any:
        return xmlrpc.client.ServerProxy("http://localhost", transport=self._transport).supervisor

    def __exit__(self, *_exc: object) -> None:
        self._transport.close()


def _status(info: Mapping[str, Any]) -> ProcessStatus:
    return ProcessStatus(
        name=info["name"],
        pid=info["pid"] or None,
        alive=info["statename"] in _ALIVE,
        exit_code=info["exitstatus"] if info["statename"] == "EXITED" else None,
        detail=info["spawnerr"] or info["description"],
    )


def _socket_path(home: Path) -> Path:
    """In the home directory, or in the temporary one where that path is too long for a socket."""
    path = home.resolve() / "supervisor.sock"
    if len(os.fsencode(path)) <= SOCKET_PATH_MAX:
        return path
    name = sha256(os.fsencode(path)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"autellix-{os.getuid()}-{name}.sock"


# ── configuration file ──────────────────────────────────────────────────────────────────────────────

_DAEMON_SECTIONS = """\
[unix_http_server]
file={socket}
chmod=0600

[supervisord]
logfile=supervisord.log
pidfile=supervisord.pid
umask=077
silent=true

[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface
"""

_PROGRAM_SECTION = """
[program:{name}]
command={command}
environment={environment}
directory={root}
priority={priority}
stdout_logfile=logs/{name}.log
stdout_logfile_maxbytes=20MB
stdout_logfile_backups=1
redirect_stderr=true
autorestart=unexpected
exitcodes={final_exit_codes}
startsecs=1
startretries=0
stopwaitsecs={stop_wait_s}
killasgroup=true
"""

FINAL_EXIT_CODES = "0,2,3,4,6"
"""A service that ends with one of these would end so again: it is not started anew."""


def render_config(specs: Sequence[ProcessSpec], socket_path: Path) -> str:
    """The configuration file, for a daemon whose working directory is its home.

    Paths in the home are relative: supervisord expands percent signs once in some options, twice in others.
    """
    sections = [_DAEMON_SECTIONS.format(socket=_escaped(str(socket_path)))]
    for position, spec in enumerate(specs, start=1):
        section = _PROGRAM_SECTION.format(
            name=spec.name,
            command=_escaped(shlex.join(spec.argv)),
            environment=",".join(f'{name}="{_quotable(value)}"' for name, value in spec.environment.items()),
            root=_escaped(str(ROOT)),
            priority=position,
            final_exit_codes=FINAL_EXIT_CODES,
            stop_wait_s=spec.stop_wait_s,
        )
        sections.append(section)
    return "".join(sections)


def _escaped(value: str) -> str:
    if "\n" in value:
        raise ValueError(f"a line break in {value!r} would end the line of the configuration file")
    return value.replace("%", "%%")


def _quotable(value: str) -> str:
    if '"' in value:
        raise ValueError(f"a quotation mark in {value!r} cannot be written to the configuration file")
    return _escaped(value)
