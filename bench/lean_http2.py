"""One gRPC stream a connection, for load generators: what `grpc.aio` does on a client's side, for little CPU.

Theory of operation. With `grpc.aio` a message and its answer cost each side about 100 us, most of it in
threads and wake-ups. A load generator that stands for 32 executors cannot afford that on the machine whose
other half it measures. So a `LeanChannel` speaks HTTP/2 itself, as far as one bidirectional stream needs it,
on the event loop's own sockets. On the wire it is a gRPC client like any other: framing, flow control both
ways, answers to SETTINGS and PING, the peer's token.

    bytes ── frames ──┬─ DATA ── length-prefixed messages ── read()
                      ├─ SETTINGS, PING: answered      WINDOW_UPDATE: room for write()
                      └─ HEADERS that end the stream, RST_STREAM, GOAWAY: over

What it leaves out: header compression (headers of the peer are not read, so neither a status nor an error's
text is known: a stream that the peer ends counts as ended in good order), compressed messages, padding, TLS,
PINGs of its own, second streams, several writers or readers at once. The stream opens with the first `write`.
A GOAWAY ends it at once.
"""

import asyncio
import struct
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, cast

import grpc

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_HEAD = struct.Struct(">HBBBL")
"""A frame's head: 24 bits of length, kind, flags, stream."""
_PREFIX = struct.Struct(">BL")
"""Before each message: whether it is compressed, length."""
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_ACK = _END_STREAM = 0x1
_END_HEADERS = 0x4
_CONNECTION, _STREAM = 0, 1
_INITIAL_WINDOW_SETTING = 4
_INITIAL_WINDOW = 65_535
_WINDOW = 1 << 30
"""Bytes that the peer may send before it hears that we took them."""
_FRAME_BYTES_MAX = 16_384


def _frame(kind: int, payload: bytes = b"", *, flags: int = 0, stream: int = _CONNECTION) -> bytes:
    length = len(payload)
    return _HEAD.pack(length >> 8, length & 0xFF, kind, flags, stream) + payload


def _window_update(stream: int, grown: int) -> bytes:
    return _frame(_WINDOW_UPDATE, grown.to_bytes(4, "big"), stream=stream)


def _literal(text: str) -> bytes:
    """A string of a header. Raises: ValueError when it is too long for one byte of length."""
    raw = text.encode()
    if len(raw) > 126:
        raise ValueError(f"a header of {len(raw)} bytes, 126 are possible here")
    return bytes([len(raw)]) + raw


class LeanChannel:
    """As much of a `grpc.aio.Channel` as a client of one bidirectional stream needs."""

    def __init__(self, target: str, *, metadata: Sequence[tuple[str, str]] = ()) -> None:
        """
        Args:
            target: host:port.
            metadata: goes along with every call.
        """
        self._target = target
        self._metadata = metadata
        self._calls: list[LeanCall] = []

    def stream_stream(
        self,
        method: str,
        request_serializer: Callable[[Any], bytes] = bytes,
        response_deserializer: Callable[[bytes], Any] = bytes,
        **_options: object,
    ) -> "Callable[[], LeanCall]":
        """See `grpc.aio.Channel`; each call has a connection of its own."""
        headers = {
            ":method": "POST",
            ":scheme": "http",
            ":path": method,
            ":authority": self._target,
            "te": "trailers",
            "content-type": "application/grpc",
            **dict(self._metadata),
        }

        def call() -> LeanCall:
            self._calls.append(LeanCall(self._target, headers, request_serializer, response_deserializer))
            return self._calls[-1]

        return call

    async def close(self) -> None:
        """Closes the connections."""
        for call in self._calls:
            call.cancel()


class LeanCall(asyncio.Protocol):
    """One stream: `write`, `read` and `cancel` of a `grpc.aio.StreamStreamCall`."""

    def __init__(
        self,
        target: str,
        headers: dict[str, str],
        serialize: Callable[[Any], bytes],
        deserialize: Callable[[bytes], Any],
    ) -> None:
        self._target = target
        self._headers = headers
        self._serialize = serialize
        self._deserialize = deserialize
        self._transport: asyncio.Transport | None = None
        self._unread = b""
        """Bytes of a frame that is not complete."""
        self._body = b""
        """Bytes of a message that is not complete."""
        self._taken = 0
        """Bytes of messages since the peer was last told that we took them."""
        self._messages: deque[bytes] = deque()
        self._came: asyncio.Future[None] | None = None
        """Whoever waits for a message, or for the end."""
        self._room = {_CONNECTION: _INITIAL_WINDOW, _STREAM: _INITIAL_WINDOW}
        """Bytes that the peer takes now, of all streams and of this one."""
        self._initial_window = _INITIAL_WINDOW
        self._grown = asyncio.Event()
        self._end: str | None = None
        """Why it is over; empty: the peer ended the stream."""

    # ── what the caller does ────────────────────────────────────────────────────────────────────────

    @property
    def room(self) -> int:
        """Bytes that the peer takes before it has to say more."""
        return min(self._room.values())

    async def write(self, message: Any) -> None:
        """Sends a message; waits for room, not for its arrival.

        Raises: asyncio.InvalidStateError when the peer has ended the stream; grpc.aio.AioRpcError when the
            connection is lost.
        """
        self._check_open()
        if self._transport is None:
            await self._open()
        body = self._serialize(message)
        payload = _PREFIX.pack(0, len(body)) + body
        while payload:
            count = await self._wait_for_room(len(payload))
            self._send(_frame(_DATA, payload[:count], stream=_STREAM))
            payload = payload[count:]

    async def read(self) -> Any:
        """The next message; EOF when the peer has ended the stream.

        Raises: grpc.aio.AioRpcError when the connection is lost.
        """
        while not self._messages:
            if self._end == "":
                return grpc.aio.EOF
            self._check_open()
            self._came = asyncio.get_running_loop().create_future()
            await self._came
        return self._deserialize(self._messages.popleft())

    def cancel(self) -> None:
        """Closes the connection."""
        self._finish("cancelled here")

    async def _open(self) -> None:
        host, _, port = self._target.rpartition(":")
        loop = asyncio.get_running_loop()
        try:
            await loop.create_connection(lambda: self, host, int(port))
        except OSError as error:
            self._finish(str(error))

    async def _wait_for_room(self, wanted: int) -> int:
        """Takes room for the next frame; returns its bytes."""
        self._check_open()
        while (room := min(wanted, _FRAME_BYTES_MAX, self.room)) <= 0:
            self._grown.clear()
            await self._grown.wait()
            self._check_open()
        for stream in self._room:
            self._room[stream] -= room
        return room

    def _check_open(self) -> None:
        if self._end is None:
            return
        if not self._end:
            raise asyncio.InvalidStateError("the peer has ended the stream")
        none = grpc.aio.Metadata()
        raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, none, none, details=self._end)

    def _finish(self, why: str) -> None:
        if self._end is None:
            self._end = why
        if self._transport is not None:
            self._transport.close()
        self._grown.set()
        self._wake()

    def _wake(self) -> None:
        if self._came is not None and not self._came.done():
            self._came.set_result(None)

    # ── what the connection does ────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Opens the stream, before anything that comes can be answered."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's only look like one
        if self._end is not None:  # cancelled meanwhile
            self._transport.close()
            return
        settings = struct.pack(">HL", _INITIAL_WINDOW_SETTING, _WINDOW)
        block = b"".join(b"\0" + _literal(name) + _literal(value) for name, value in self._headers.items())
        self._send(
            _PREFACE
            + _frame(_SETTINGS, settings)
            + _window_update(_CONNECTION, _WINDOW - _INITIAL_WINDOW)
            + _frame(_HEADERS, block, flags=_END_HEADERS, stream=_STREAM)
        )

    def connection_lost(self, error: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._finish(f"connection lost: {error}")

    def data_received(self, data: bytes) -> None:
        """Takes every frame that is complete."""
        data = self._unread + data if self._unread else data
        start = 0
        while len(data) - start >= _HEAD.size:
            high, low, kind, flags, stream = _HEAD.unpack_from(data, start)
            end = start + _HEAD.size + (high << 8 | low)
            if end > len(data):
                break
            self._take(kind, flags, stream, data[start + _HEAD.size : end])
            start = end
        self._unread = data[start:]

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == _DATA:
            self._take_data(payload)
        elif kind == _WINDOW_UPDATE:
            self._room[stream] += int.from_bytes(payload, "big")
            self._grown.set()
        elif kind == _SETTINGS and not flags & _ACK:
            self._take_settings(payload)
        elif kind == _PING and not flags & _ACK:
            self._send(_frame(_PING, payload, flags=_ACK))
        elif kind in (_RST_STREAM, _GOAWAY):
            self._finish(f"ended by frame {kind}: {payload.hex()}")
        if kind in (_DATA, _HEADERS) and flags & _END_STREAM:
            self._finish("")

    def _take_data(self, payload: bytes) -> None:
        body = self._body + payload if self._body else payload
        start = 0
        while len(body) - start >= _PREFIX.size:
            _, length = _PREFIX.unpack_from(body, start)
            end = start + _PREFIX.size + length
            if end > len(body):
                break
            self._messages.append(body[start + _PREFIX.size : end])
            start = end
        self._body = body[start:]
        self._taken += len(payload)
        if self._taken > _WINDOW // 2:
            self._send(_window_update(_CONNECTION, self._taken) + _window_update(_STREAM, self._taken))
            self._taken = 0
        if self._messages:
            self._wake()

    def _take_settings(self, payload: bytes) -> None:
        for setting, value in struct.iter_unpack(">HL", payload):
            if setting == _INITIAL_WINDOW_SETTING:
                self._room[_STREAM] += value - self._initial_window
                self._initial_window = value
                self._grown.set()
        self._send(_frame(_SETTINGS, flags=_ACK))

    def _send(self, frames: bytes) -> None:
        if self._end is None and self._transport is not None:
            self._transport.write(frames)
