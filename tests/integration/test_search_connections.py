"""Connections that send nothing, or too many of one client, do not keep others out."""

from __future__ import annotations

import contextlib
import json
import socket
from typing import Any

import pytest

from mclip_fairseq.search import connections
from tests.runs import HANG


def connect(port: int, source: str = "127.0.0.1") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), source_address=(source, 0))
    connection.settimeout(HANG)
    return connection


def everything(connection: socket.socket) -> bytes:
    """All that comes until the server closes."""
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


def is_answered(port: int, source: str = "127.0.0.1") -> bool:
    with connect(port, source) as connection:
        connection.sendall(b"GET /about HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        return everything(connection).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHost: local"])
def test_silence_ends_with_a_sentence(served: Any, sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.3)
    with connect(served[0]) as connection:
        connection.sendall(sent)
        answer = everything(connection)
    assert answer.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    assert b"Content-Security-Policy: " in answer
    assert json.loads(answer.partition(b"\r\n\r\n")[2]) == {"error": "the request took too long"}


def test_a_client_has_a_share_of_the_connections(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "PER_CLIENT", 5)
    monkeypatch.setattr(connections, "HEADER_SECONDS", HANG)
    held = [connect(served[0]) for _ in range(5)]
    try:
        with connect(served[0]) as connection:
            answer = everything(connection)
        assert answer.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
        assert b"Retry-After: 5\r\n" in answer
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"].startswith("too many connections")
    finally:
        for connection in held:
            connection.close()
    assert is_answered(served[0])


@pytest.mark.parametrize("sent", [b"", b"GET /about HTTP/1.1\r\nHost: localhost\r\nX-Slow: "])
def test_five_hundred_silent_connections_keep_nobody_out(
    served: Any, sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one client: another one is answered at once, and its own next request is refused in JSON."""
    monkeypatch.setattr(connections, "HEADER_SECONDS", HANG)  # on a busy machine, the first would end before the last
    with contextlib.ExitStack() as held:
        for _ in range(500):
            held.enter_context(connect(served[0])).sendall(sent)
        assert is_answered(served[0], "127.0.0.2")
        with connect(served[0]) as connection:
            connection.sendall(b"GET /about HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answer = everything(connection)
        assert answer.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
        assert b"Retry-After: 5\r\n" in answer
        assert json.loads(answer.partition(b"\r\n\r\n")[2]) == {"error": "too many connections; try again in a moment"}
    assert is_answered(served[0])


def test_what_is_not_http_is_a_400_with_headers(served: Any) -> None:
    with connect(served[0]) as connection:
        connection.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        answer = everything(connection)
    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b"X-Content-Type-Options: nosniff" in answer
