"""Connections of the page's server: nobody keeps others out by sending nothing, or by holding all connections."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from mclip_fairseq.search.limits import HEADERS, MAX_CONNECTIONS

HEADER_SECONDS = 10.0  # from the first byte, or from the connection, to the end of the headers
PER_CLIENT = MAX_CONNECTIONS // 4
RETRY_SECONDS = 5
# A refused connection is read from for so long, because closing it at once would reset it, and lose the answer.
LINGER_SECONDS = 1.0


def raw_answer(status: str, error: str) -> bytes:
    """An answer to a connection that no request of the application belongs to."""
    body = json.dumps({"error": error}).encode()
    retry = {"Retry-After": str(RETRY_SECONDS)} if status.startswith("503") else {}
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), "Connection": "close"}
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in (headers | retry | HEADERS).items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


class LimitedProtocol(H11Protocol):
    """HTTP with a time limit on headers and a share of the connections per client address."""

    silence: asyncio.TimerHandle | None = None
    refused = False
    since = 0.0  # when it was refused

    def connection_made(self, transport: Any) -> None:
        """Count the connection; one too many is answered at once and closed."""
        super().connection_made(transport)
        lingering = [other for other in self.connections if getattr(other, "refused", False)]
        served = self.connections - set(lingering)
        clients = [getattr(other, "client", None) for other in served]
        addresses = [client[0] for client in clients if client]
        own = addresses.count(self.client[0]) if self.client else 0
        if len(served) > MAX_CONNECTIONS or own > PER_CLIENT:
            self.refuse(transport, lingering)
        else:
            self.watch()

    def refuse(self, transport: Any, lingering: Sequence[Any]) -> None:
        """Answer at once, and close when the client has had the time to read it.

        Args:
            transport: of this connection.
            lingering: refused connections that are still open; if there are too many, the oldest makes room.
        """
        self.refused = True
        self.since = self.loop.time()
        waiting = [other for other in lingering if not other.transport.is_closing()]
        if len(waiting) >= MAX_CONNECTIONS:
            min(waiting, key=lambda other: other.since).transport.close()
        transport.write(raw_answer("503 Service Unavailable", "too many connections; try again in a moment"))
        transport.write_eof()
        self.silence = self.loop.call_later(LINGER_SECONDS, transport.close)

    def data_received(self, data: bytes) -> None:
        """Take data; the time limit ends once a request has begun."""
        if self.refused:
            return
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self.stop_watching()
        elif self.silence is None:
            self.watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self.stop_watching()
        super().connection_lost(exc)

    def watch(self) -> None:
        """Close the connection if no request begins in time."""
        self.silence = self.loop.call_later(HEADER_SECONDS, self.close_silent)

    def stop_watching(self) -> None:
        """End the time limit."""
        if self.silence is not None:
            self.silence.cancel()
            self.silence = None

    def close_silent(self) -> None:
        """Close a connection without a request."""
        self.silence = None
        if not self.transport.is_closing() and (self.cycle is None or self.cycle.response_complete):
            self.transport.write(raw_answer("408 Request Timeout", "the request took too long"))
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Answer bytes that are not HTTP."""
        self.transport.write(raw_answer("400 Bad Request", "the request is not HTTP"))
        self.transport.close()
