"""What `mclip-search --engine milvus` says when the database fails, and what its page does meanwhile."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.colours import ColourModel
from tests.runs import HANG
from tests.search_cli import Run
from tests.search_page import ask, running, search

grpc: Any = pytest.importorskip("grpc", reason="needs the extra milvus")
pytest.importorskip("pymilvus", reason="needs the extra milvus")
pytest.importorskip("milvus_lite", reason="needs the extra milvus")

BUILD = ["build", "photos", "--model", "colours", "--output", "colours", "--workers", "0", "--engine", "milvus"]
ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def milvus_server(folder: Path) -> Iterator[tuple[str, Any]]:
    """Address and server of a milvus-lite that listens on a port, as a Milvus does."""
    from milvus_lite.adapter.grpc.server import start_server_in_thread

    server, database, port = start_server_in_thread(str(folder))
    try:
        yield f"http://127.0.0.1:{port}", server
    finally:
        server.stop(None)
        database.close()


def test_a_server_that_nobody_runs(mclip_search: Run) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{closed.getsockname()[1]}"
        printed = mclip_search(*BUILD, "--uri", uri, status=2)
    assert f"{uri}, collection colours: cannot be reached (" in printed
    assert printed.count("\n") == 1


def test_credentials_that_the_server_refuses(mclip_search: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[str]()

    class Guard(grpc.GenericRpcHandler):
        def service(self, details: Any) -> Any:
            seen.extend(value for name, value in details.invocation_metadata if name == "authorization")

            def refuse(request: bytes, context: Any) -> None:
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "auth check failure, please check username and password")

            return grpc.unary_unary_rpc_method_handler(refuse)

    server = grpc.server(ThreadPoolExecutor(2), handlers=(Guard(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    monkeypatch.setenv("MILVUS_TOKEN", "me:secret")
    try:
        printed = mclip_search(*BUILD, "--uri", f"http://127.0.0.1:{port}", status=2)
    finally:
        server.stop(None)
    assert "refuses the credentials (" in printed
    assert "set MILVUS_TOKEN to USER:PASSWORD" in printed
    assert "secret" not in printed
    assert seen  # the token was sent


def test_a_collection_that_something_else_made(mclip_search: Run, tmp_path: Path) -> None:
    from pymilvus import MilvusClient

    with milvus_server(tmp_path / "data") as (uri, _):
        MilvusClient(uri).create_collection("colours", dimension=5)
        sentence = "collection colours: was not made by mclip-search build; choose another collection"
        assert sentence in mclip_search(*BUILD, "--uri", uri, status=2)
        assert sentence in mclip_search("remove", "colours", "x", "--engine", "milvus", "--uri", uri, status=2)


def test_a_file_that_another_program_has_open(mclip_search: Run) -> None:
    code = "import pymilvus; c = pymilvus.MilvusClient('images.db'); print('open', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"open\n"
        printed = mclip_search(*BUILD, "--uri", "images.db", status=2)
        other.communicate(b"\n")
    assert printed.endswith("wait until no other program has it open\n")
    assert mclip_search(*BUILD, "--uri", "images.db").endswith("8 images of 5 dimensions, exact\n")


# The command line in a process of its own, with a model that needs no files.
COMMAND = """
import os, sys
from tests.colours import ColourModel
from mclip_fairseq.cli import search as cli
cli.load_model = lambda *arguments: ColourModel()
sys.exit(cli.main(sys.argv[1:]))
"""


def test_a_full_disk(mclip_search: Run) -> None:
    rows = [f"{path.name}\t{path.name}\t{'long ' * 2000}" for path in sorted(Path("photos").glob("*.png"))]
    Path("photos/list.tsv").write_text("\n".join(["id\tpath\tnote", *rows]) + "\n")

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writing fails, as it does on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (30000, 30000))

    command = [sys.executable, "-c", COMMAND, "build", "photos/list.tsv", *BUILD[2:], "--uri", "images.db"]
    done = subprocess.run(command, preexec_fn=limit, capture_output=True, text=True, env=environment())
    assert done.returncode == 2, done.stderr
    assert "the database reports: " in done.stderr.splitlines()[-1], done.stderr
    assert "run the same command again" in done.stderr
    printed = mclip_search("build", "photos/list.tsv", *BUILD[2:], "--uri", "images.db")
    assert printed.endswith("8 images of 5 dimensions, exact\n")


def test_a_collection_that_a_full_disk_kept_from_being_created(mclip_search: Run) -> None:
    mclip_search(*BUILD, "--uri", "images.db")
    leftover = Path("images.db/collections/other/schema.json.tmp")  # as milvus-lite leaves it
    leftover.parent.mkdir()
    leftover.touch()
    printed = mclip_search(*BUILD, "--output", "other", "--uri", "images.db")
    assert printed == "images.db, collection other: 8 images of 5 dimensions, exact\n"


def test_processes_that_decode_are_forked_quietly(mclip_search: Run) -> None:
    command = [sys.executable, "-c", COMMAND, *BUILD, "--workers", "2", "--uri", "images.db"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=HANG)
    assert done.stdout == "images.db, collection colours: 8 images of 5 dimensions, exact\n"
    assert done.stderr == ""


def environment() -> dict[str, str]:
    """The environment of a process that imports this checkout."""
    return os.environ | {"PYTHONPATH": str(ROOT)}


def test_the_page_searches_a_collection(mclip_search: Run, colour_model: ColourModel, tmp_path: Path) -> None:
    from mclip_fairseq.search.collection import Collection
    from mclip_fairseq.search.milvus import MilvusStore

    with milvus_server(tmp_path / "data") as (uri, server):
        mclip_search(*BUILD, "--uri", uri)
        collection = Collection(MilvusStore(uri, "colours"))
        with running(collection, colour_model) as port:
            status, found = search(port, "rot", k=2)
            assert (status, found["results"][0]["id"]) == (200, "red.png")
            picture = found["results"][0]["picture"]
            status, headers, content = ask(port, "GET", f"/thumb/{picture}")
            assert (status, headers["content-type"], content[:2]) == (200, "image/jpeg", b"\xff\xd8")
            _, like = search(port, None, like=picture, k=2)
            assert "red.png" not in [hit["id"] for hit in like["results"]]
            about = json.loads(ask(port, "GET", "/about")[2])
            assert (about["name"], about["images"], len(about["samples"])) == ("colours", 8, 8)
            for address in (f"/thumb/{collection.stamp}/bm8", f"/thumb/{collection.stamp}/%ff", "/thumb/x/bm8"):
                assert ask(port, "GET", address)[0] == 404
            mclip_search("remove", "colours", "red.png", "--engine", "milvus", "--uri", uri)
            assert search(port, "rot", k=2)[1]["results"][0]["id"] != "red.png"
            assert ask(port, "GET", f"/thumb/{picture}")[0] == 404
            server.stop(None).wait()
            status, answer = search(port, "blau")
            assert (status, answer) == (503, {"error": "the index cannot be reached; try again in a moment"})
