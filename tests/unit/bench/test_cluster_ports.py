"""Ports that tests and benches give to services stay free until the service listens."""

import socket
import subprocess
import sys
from pathlib import Path

from bench.cluster import PORTS, free_port

ROOT = Path(__file__).parents[3]


def test_no_port_is_given_twice() -> None:
    given = [free_port() for _ in range(50)]
    assert len(set(given)) == 50
    assert set(given) <= set(PORTS)


def test_a_taken_port_is_passed_over() -> None:
    following = free_port() + 1
    while True:
        try:
            with socket.create_server(("127.0.0.1", following)):
                assert free_port() > following
            return
        except OSError:  # somebody else has it
            following = free_port() + 1


def test_another_process_starts_elsewhere() -> None:
    code = "from bench.cluster import free_port; print(*(free_port() for _ in range(8)))"
    listed = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert set(map(int, listed.stdout.split())).isdisjoint(free_port() for _ in range(8))


def test_no_client_connection_takes_one_of_them() -> None:
    """The system gives outgoing connections and port 0 other numbers."""
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as client,
    ):
        assert server.getsockname()[1] not in PORTS
        assert client.getsockname()[1] not in PORTS
