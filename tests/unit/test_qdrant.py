"""`QdrantStore`: what it says about a server that refuses, and about folders and collections that it cannot use."""

from __future__ import annotations

import contextlib
import json
import socket
import sqlite3
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("qdrant_client", reason="needs the extra qdrant")

from mclip_fairseq.search.engine import Unavailable
from mclip_fairseq.search.qdrant import QdrantStore, points_of
from mclip_fairseq.storage.errors import UserError

KEYS = list[str]()


@contextlib.contextmanager
def server(status: int) -> Iterator[str]:
    """Address of a server that answers every request with this status."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            KEYS.append(self.headers.get("api-key", ""))
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            body = json.dumps({"status": {"error": "as\nsaid"}, "time": 0}).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = answer

        def log_message(self, *arguments: Any) -> None:
            pass

    running = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{running.server_port}"
    finally:
        running.shutdown()
        thread.join()
        running.server_close()


@pytest.mark.parametrize(
    ("status", "where", "message"),
    [
        (401, "", "refuses the credentials (401 Unauthorized: "),
        (403, "", "set QDRANT_TOKEN to an API key"),
        (500, "", "as\\nsaid"),
        (507, "", "; when that is solved, run the same command again"),
        (400, '{"must": []}', '--where {"must": []}: is refused by '),
    ],
)
def test_what_a_server_refuses(status: int, where: str, message: str) -> None:
    KEYS.clear()
    with server(status) as uri:
        store = QdrantStore(uri, "c", "secret")
        with pytest.raises(UserError) as caught:
            store.search(np.ones((1, 2), np.float32), 1, (), None, where) if where else store.facts()
    assert message in str(caught.value)
    assert f"{uri}, collection c" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)
    assert set(KEYS) == {"secret"}


def test_a_server_that_nobody_runs() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        store = QdrantStore(f"http://127.0.0.1:{closed.getsockname()[1]}", "c")
        with pytest.raises(Unavailable, match="cannot be reached"):
            store.facts()


def test_a_folder_that_another_program_has_open(tmp_path: Path) -> None:
    uri = str(tmp_path / "x.qdrant")
    first = QdrantStore(uri, "c", create=True)
    with pytest.raises(Unavailable, match="cannot be opened; wait until no other program has it open"):
        QdrantStore(uri, "c")
    first.client.close()
    assert QdrantStore(uri, "c").facts() is None


def test_a_folder_that_takes_no_more_or_is_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any, **more: Any) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    uri = str(tmp_path / "x.qdrant")
    store = QdrantStore(uri, "c", create=True)
    monkeypatch.setattr(store.client, "upsert", full)
    with pytest.raises(UserError, match="reports: database or disk is full; when that is solved, run the same command"):
        store.upsert([{"id": "a"}], np.ones((1, 2), np.float32))
    store.client.close()
    Path(uri, "meta.json").write_text("")
    with pytest.raises(UserError, match=r"is damaged \(.*\); remove the folder and build it again"):
        QdrantStore(uri, "c")


def test_collections_and_kinds_that_cannot_be_used(tmp_path: Path) -> None:
    store = QdrantStore(str(tmp_path / "x.qdrant"), "c", create=True)
    with pytest.raises(UserError, match="--kind pq: Qdrant has no such index; choose one of exact, hnsw, sq8"):
        store.create(3, "pq", {}, {})
    vectors = store.models.VectorParams(size=3, distance="Dot")
    store.client.create_collection("c", vectors_config=vectors)
    with pytest.raises(UserError, match="was not made by mclip-search build; choose another collection"):
        store.facts()


def test_a_point_is_named_by_its_id() -> None:
    names = ["a", "b", "a\nb", "日本.png"]
    assert len(set(points_of(names))) == len(names)
    assert points_of(["日本.png"]) == points_of(names)[-1:]
