"""A running `mclip-search serve` inside the test's process, and plain requests to it."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mclip_fairseq.cli import search as cli
from mclip_fairseq.search.embeddings import Access
from mclip_fairseq.search.engine import Index
from mclip_fairseq.search.index import SearchIndex
from mclip_fairseq.search.presenting import Extras
from mclip_fairseq.search.server import make_server
from tests.colours import ColourModel
from tests.runs import HANG

SECRET = "not for anyone"
BAD_NAME = "<img src=x onerror=alert(1)>.png"


class SlowModel(ColourModel):
    """Waits with texts that begin with `slow` until it is released; fails for those that begin with `fail`."""

    def __init__(self) -> None:
        super().__init__()
        self.busy, self.released = threading.Event(), threading.Event()

    def encode_text(self, texts: Any, batch_size: int = 1, normalize: bool = True) -> Any:
        if "slow" in texts[0]:
            self.busy.set()
            self.released.wait(HANG)
        if "fail" in texts[0]:
            raise RuntimeError("/secret/path is broken")
        return super().encode_text(texts)


def make_index(folder: Path, images: Path, model: ColourModel) -> SearchIndex:
    """An index of a folder of pictures."""
    load, cli.load_model = cli.load_model, lambda *arguments: model
    try:
        assert cli.main(["build", str(images), "--model", "m", "--output", str(folder), "--workers", "0"]) == 0
    finally:
        cli.load_model = load
    return SearchIndex.open(folder)


@contextlib.contextmanager
def running(index: Index, model: Any, extras: Extras | None = None, access: Access | None = None) -> Iterator[int]:
    """Serve on a free port; gives the port."""
    server = make_server(index, model, extras=extras, access=access)
    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    deadline = time.monotonic() + HANG
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.01)
    try:
        yield listening.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(HANG)


def ask(
    port: int,
    method: str,
    path: str,
    body: Any = None,
    headers: dict[str, str] | None = None,
    client: str = "127.0.0.1",
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body; the path goes out as it is, from an address of the client."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=HANG, source_address=(client, 0))
    try:
        connection.request(method, path, body=body, headers=headers or {})
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def search(port: int, query: Any, **more: Any) -> tuple[int, Any]:
    """Status and JSON of a text query."""
    body = json.dumps({"query": query} | more).encode()
    status, _, content = ask(port, "POST", "/search", body, {"Content-Type": "application/json"})
    return status, json.loads(content)


def picture_of(index: SearchIndex, name: str) -> str:
    """Address of an image, below `/thumb/` and `/image/`."""
    return f"{index.stamp}/{index.row_of[name]}"
