"""Taken ports are found before anything starts."""

import os
import socket
from collections.abc import Iterator

import pytest

from demo.ports import PortsTaken, free_port, require_free


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_taken_port_is_named_with_its_holder_and_the_way_out(taken: int) -> None:
    with pytest.raises(PortsTaken) as caught:
        require_free({"GRPC_PORT": free_port(), "PORT": taken})
    message = str(caught.value)
    assert f"port {taken} is taken" in message
    assert f"(pid {os.getpid()})" in message
    assert "PORT=" in message
    assert "GRPC_PORT" not in message


def test_free_ports_pass() -> None:
    require_free({"PORT": free_port()})
