"""How the server keeps its connections: answers leave at once, and clients that neither send nor read are dropped."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_SECONDS = 10.0
"""Time a connection has for the header of each of its requests, and for reading a part of each answer."""


class HeaderTimeoutProtocol(H11Protocol):
    """uvicorn's HTTP protocol with a limit for every header of a connection, the first and all later ones."""

    _timer: asyncio.TimerHandle | None = None
    _unsent = 0

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        connection = transport.get_extra_info("socket")
        if connection.family in (socket.AF_INET, socket.AF_INET6):
            # Otherwise the body of an answer waits 40 ms for the client to acknowledge its header.
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._wait()

    def on_response_complete(self) -> None:
        # first the clock: the call below may begin the next request at once, if the client sent it already
        self._wait()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def _wait(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._unsent = self.transport.get_write_buffer_size()
        self._timer = self.loop.call_later(HEADER_SECONDS, self._drop_if_stuck)

    def _drop_if_stuck(self) -> None:
        """Nothing may stand still for the whole time: neither the reading of an answer nor, between two, a header."""
        answering = self.cycle is not None and not self.cycle.response_complete
        unsent = self.transport.get_write_buffer_size()
        if unsent and unsent >= self._unsent > 0:
            self.transport.abort()
        elif unsent or answering:
            self._wait()
        else:
            self.transport.close()
