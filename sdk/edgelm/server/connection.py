"""Connection: HTTP/1.1 as uvicorn speaks it, with limits on the time, turns and places that a client may take."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from edgelm.server.options import RequestLimits

# What is read of one connection before the others get their turn. asyncio would read 256 KiB, which take h11 2.5 s if
# they come in chunks of one byte; 2048 bytes take 0.02 s. A body of a megabyte takes 0.04 s instead of 0.03.
_READ_BYTES = 2048


class BoundedConnection(H11Protocol, asyncio.BufferedProtocol):
    """Cut a connection whose request head does not come, or whose reader does not read.

    uvicorn waits for both without end. The body's time is `request_body`'s to watch. Where there are more connections
    than the limit, the one that has waited longest for a request gives its place to the newest.
    """

    def __init__(self, limits: RequestLimits, **uvicorns: Any) -> None:
        super().__init__(**uvicorns)
        self._limits = limits
        self._head_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        # asyncio then pauses us as soon as a byte waits for the client: so a reader that stalls is noticed.
        transport.set_write_buffer_limits(high=0)
        self._await_head()
        self._waiting_since = self.loop.time()
        if len(self.connections) > self._limits.connections:
            self._take_a_place()

    def get_buffer(self, sizehint: int) -> bytearray:
        """Return the memory for what asyncio reads next."""
        self._incoming = bytearray(_READ_BYTES)
        return self._incoming

    def buffer_updated(self, nbytes: int) -> None:
        """Take what asyncio has read."""
        self.data_received(bytes(self._incoming[:nbytes]))

    def data_received(self, data: bytes) -> None:
        """Take bytes; the first ones of a request begin the wait for its head."""
        if self._head_timer is None and (self.cycle is None or self.cycle.response_complete):
            self._await_head()
        super().data_received(data)

    def handle_events(self) -> None:
        """Handle what was read, also what was sent before the last request was answered; a whole head ends the wait."""
        super().handle_events()
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_waiting()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP; if an answer was begun already, end the connection."""
        try:
            super().send_400_response(msg)
        except h11.LocalProtocolError:
            self.transport.abort()

    def on_response_complete(self) -> None:
        """Begin to wait for the next request."""
        self._waiting_since = self.loop.time()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """Begin to wait for the client to read."""
        super().pause_writing()
        if self._stall_timer is None:
            self._stall_timer = self.loop.call_later(self._limits.write_stall_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """Take the client for alive: it has read all."""
        super().resume_writing()
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Drop the timers, which would keep the connection's memory."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _take_a_place(self) -> None:
        others = [other for other in self.connections if isinstance(other, BoundedConnection) and other is not self]
        waiting = [other for other in others if other._waits_for_a_request()]
        if waiting:
            longest = min(waiting, key=lambda other: other._waiting_since)
            self.connections.discard(longest)
            longest.transport.abort()

    def _waits_for_a_request(self) -> bool:
        is_answered = self.cycle is None or self.cycle.response_complete
        return is_answered and self.transport.get_write_buffer_size() == 0

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(self._limits.header_seconds, self.transport.abort)

    def _stop_waiting(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
