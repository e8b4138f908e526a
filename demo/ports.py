"""Says which port is taken, and by whom, before anything is started."""

import socket
from collections.abc import Mapping
from contextlib import suppress

import psutil


class PortsTaken(Exception):
    """At least one port is in use; the message names each, its holder and the way out."""


def require_free(ports: Mapping[str, int], *, host: str = "127.0.0.1") -> None:
    """Checks that all ports can be listened on.

    Args:
        ports: Make variable -> port, e.g. {"PORT": 8000}.

    Raises:
        PortsTaken
    """
    taken = {variable: port for variable, port in ports.items() if not _is_free(host, port)}
    if taken:
        lines = [
            f"port {port} is taken{holder(port)}: choose another, e.g. {variable}={port + 100}"
            for variable, port in taken.items()
        ]
        raise PortsTaken("\n".join(lines))


def _is_free(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def holder(port: int) -> str:
    """`" by NAME (pid N)"`, as far as this user may know."""
    with suppress(psutil.Error):
        for connection in psutil.net_connections("inet"):
            if connection.status != psutil.CONN_LISTEN or not connection.pid or not connection.laddr:
                continue
            if connection.laddr.port == port:
                return f" by {psutil.Process(connection.pid).name()} (pid {connection.pid})"
    return ""


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
