"""The page's server: what it answers, and what it refuses."""

from __future__ import annotations

import asyncio
import io
import json
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from starlette.exceptions import HTTPException
from starlette.requests import Request

from mclip_fairseq.cli import search as cli
from mclip_fairseq.search import server
from mclip_fairseq.search.index import SearchIndex
from mclip_fairseq.search.limits import MAX_TEXT_BODY, MAX_UPLOAD, MAX_UPLOADS, Cache, read_body
from mclip_fairseq.search.server import make_server
from tests.colours import COLOURS, ColourModel, draw_colours
from tests.search_page import ask, make_index, running, search

SECRET = "not for anyone"
BAD_NAME = "<img src=x onerror=alert(1)>.png"


class SlowModel(ColourModel):
    """Takes its time, so that queries pile up; fails when it is told to."""

    def encode_text(self, texts: Any, batch_size: int = 1, normalize: bool = True) -> Any:
        if "slow" in texts[0]:
            time.sleep(0.3)
        if "fail" in texts[0]:
            raise RuntimeError("/secret/path is broken")
        return super().encode_text(texts)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, SearchIndex, SlowModel]]:
    folder = tmp_path_factory.mktemp("server")
    draw_colours(folder / "photos")
    with Image.open(folder / "photos" / "red.png") as picture:
        picture.save(folder / "photos" / BAD_NAME)
    large = Image.new("RGB", (3000, 2000), COLOURS["blue"])
    exif = Image.Exif()
    exif[0x010E] = "taken at home"
    large.save(folder / "photos" / "large.jpg", exif=exif)
    (folder / "secret.txt").write_text(SECRET)
    model = SlowModel()
    index = make_index(folder / "index", folder / "photos", model)
    (folder / "photos" / "white.png").unlink()
    with running(index, model) as port:
        yield port, index, model


def picture_of(index: SearchIndex, name: str) -> str:
    return f"{index.stamp}/{index.row_of[name]}"


def test_a_text_finds_images(served: Any) -> None:
    port, _, _ = served
    status, told = search(port, "أزرق", k=3)
    assert status == 200
    assert [hit["id"] for hit in told["results"]][:2] in (["blue.png", "large.jpg"], ["large.jpg", "blue.png"])
    assert len(told["results"]) == 3
    assert told["results"][0].keys() == {"picture", "id", "score"}


def test_an_image_finds_images(served: Any) -> None:
    port, _, _ = served
    stream = io.BytesIO()
    Image.new("RGB", (50, 50), COLOURS["purple"]).save(stream, "WEBP")
    status, _, content = ask(port, "POST", "/search/image", stream.getvalue(), {"Content-Type": "image/webp"})
    assert status == 200
    assert json.loads(content)["results"][0]["id"] == "purple.png"


def test_pictures_come_small_and_large_without_metadata(served: Any) -> None:
    port, index, _ = served
    name = picture_of(index, "large.jpg")
    for path, edge in ((f"/thumb/{name}", 256), (f"/image/{name}", 1600)):
        status, headers, content = ask(port, "GET", path)
        assert (status, headers["content-type"]) == (200, "image/jpeg")
        with Image.open(io.BytesIO(content)) as picture:
            assert max(picture.size) == edge
            assert not picture.getexif()
    assert ask(port, "GET", f"/thumb/{name}")[2] == ask(port, "GET", f"/thumb/{name}")[2]


def test_every_answer_tells_the_browser_to_be_careful(served: Any) -> None:
    port, index, _ = served
    for path in ("/", "/page.js", "/page.css", "/about", f"/thumb/{index.stamp}/0", "/nowhere"):
        _, headers, _ = ask(port, "GET", path)
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert "server" not in headers
    page = ask(port, "GET", "/")[2].decode()
    assert "http://" not in page
    assert "https://" not in page
    assert "style=" not in page


def test_no_answer_holds_a_path_of_the_server(served: Any) -> None:
    port, index, _ = served
    paths = ["/", "/about", "/search", *(f"/thumb/{index.stamp}/{row}" for row in ("99999", "x"))]
    paths.append(f"/thumb/{picture_of(index, 'white.png')}")
    answers = [ask(port, "GET", path)[2] for path in paths]
    answers += [json.dumps(search(port, query)[1]).encode() for query in ("red", "", "fail now")]
    answers.append(ask(port, "POST", "/search/image", b"GIF89a", {"Content-Type": "image/gif"})[2])
    for content in answers:
        assert str(index.path.parent).encode() not in content
        assert b"/secret/path" not in content
        assert b"Traceback" not in content


def test_a_deleted_picture_is_a_404_and_still_found(served: Any) -> None:
    port, index, _ = served
    assert search(port, "white")[1]["results"][0]["id"] == "white.png"
    status, _, content = ask(port, "GET", f"/thumb/{picture_of(index, 'white.png')}")
    assert (status, json.loads(content)["error"]) == (404, "the picture cannot be read any more")


@pytest.mark.parametrize(
    "path",
    [
        "/thumb/../../secret.txt",
        "/thumb/..%2f..%2fsecret.txt",
        "/thumb/%2e%2e/%2e%2e/secret.txt",
        "/image/....//secret.txt",
        "/image/STAMP/../../secret.txt",
        "/image/STAMP/%00",
        "/image/STAMP/-1",
        "/image/STAMP/1e3",
        "/image/STAMP/%C2%B2",
        "/image/STAMP/" + "9" * 5000,
        "/../secret.txt",
        "//etc/passwd",
        "/page.js/../../server.py",
        "/page/index.html",
        "/thumb/STAMP/99",
        "/thumb/STAMP/",
        "/thumb/0",
        "/thumb/000000000000/0",
        "/thumb/",
    ],
)
def test_paths_lead_nowhere(served: Any, path: str) -> None:
    status, _, content = ask(served[0], "GET", path.replace("STAMP", served[1].stamp))
    assert 400 <= status < 500
    assert SECRET.encode() not in content


@pytest.mark.parametrize(
    ("query", "more"),
    [(query, {}) for query in ("", "  \n", "x" * 2001, "x" * 20_000, "a\0b", "\ud800", 7, None, ["red"])]
    + [("red", {"k": k}) for k in (0, 101, "5", True)],
)
def test_a_bad_question_is_a_400_with_a_sentence(served: Any, query: Any, more: Any) -> None:
    status, told = search(served[0], query, **more)
    assert status == 400
    assert len(told["error"]) < 200


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'"red"', b"{}", b"\xff", b"[" * 9000, b"1" * 9000])
def test_what_is_no_question_is_a_400(served: Any, body: bytes) -> None:
    assert ask(served[0], "POST", "/search", body, {"Content-Type": "application/json"})[0] == 400


def test_other_types_methods_and_hosts_are_refused(served: Any) -> None:
    port, _, _ = served
    body = b'{"query": "red"}'
    assert ask(port, "POST", "/search", body, {"Content-Type": "text/plain"})[0] == 415
    assert ask(port, "POST", "/search", body, {"Content-Type": "Application/JSON; charset=utf-8"})[0] == 200
    assert ask(port, "POST", "/search/image", b"x", {"Content-Type": "multipart/form-data"})[0] == 415
    assert ask(port, "GET", "/search")[0] == 405
    assert ask(port, "DELETE", "/thumb/x/0")[0] == 405
    assert ask(port, "GET", "/about", headers={"Host": "evil.example"})[0] == 400
    assert ask(port, "GET", "/about", headers={"Host": f"localhost:{port}"})[0] == 200


def test_a_huge_body_is_refused_before_it_is_read(served: Any) -> None:
    port, _, _ = served
    kinds = {"/search": "application/json", "/search/image": "image/png"}
    for path, limit in (("/search", MAX_TEXT_BODY), ("/search/image", MAX_UPLOAD)):
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kinds[path]}\r\n"
            connection.sendall(f"{head}Content-Length: {limit + 1}\r\n\r\n".encode())
            assert connection.recv(100).startswith(b"HTTP/1.1 413 ")
    # Without a length the body is counted as it comes.
    chunks = (b" " * 1024 for _ in range(MAX_TEXT_BODY // 1024 + 2))
    assert ask(port, "POST", "/search", chunks, {"Content-Type": kinds["/search"]})[0] == 413


def png_of(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims to be huge."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100_000))


def test_images_that_do_harm_are_a_400(served: Any) -> None:
    port, _, _ = served
    bodies = {
        "bomb": png_of(60_000, 60_000),
        "large": png_of(8_000, 8_000),
        "truncated": png_of(500, 500)[:-30],
        "page": b"<html><script>alert(1)</script></html>",
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(%pipe%id) (w) file\n",
        "empty": b"",
    }
    for name, body in bodies.items():
        status, _, content = ask(port, "POST", "/search/image", body, {"Content-Type": "image/png"})
        assert status == 400, name
        assert json.loads(content)["error"].startswith("the image "), name


def test_what_is_decoded_completely_may_be_less_large(served: Any) -> None:
    port, _, _ = served
    for name, expected in (("PNG", 400), ("JPEG", 200)):
        stream = io.BytesIO()
        Image.new("L", (4200, 4000)).save(stream, name)
        status, _, content = ask(port, "POST", "/search/image", stream.getvalue(), {"Content-Type": "image/png"})
        assert status == expected
        assert expected == 200 or b'4200 x 4000 pixels, more than 16000000; make it smaller"' in content


def test_so_many_images_at_a_time(served: Any) -> None:
    port, index, _ = served
    head = "POST /search/image HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: 99\r\n\r\nx"
    stalled = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(MAX_UPLOADS)]
    for connection in stalled:
        connection.sendall(head.encode())
    content, kind = (index.roots[0] / "red.png").read_bytes(), {"Content-Type": "image/png"}
    deadline = time.monotonic() + 10
    while (refused := ask(port, "POST", "/search/image", content, kind))[0] != 503 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (refused[0], refused[1]["retry-after"]) == (503, "5")
    assert search(port, "red")[0] == 200
    for connection in stalled:
        connection.close()
    while (answer := ask(port, "POST", "/search/image", content, kind))[0] == 503 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert answer[0] == 200
    assert make_server(*served[1:]).config.limit_concurrency


def test_a_request_that_ends_early_is_no_failure() -> None:
    async def gone() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    with pytest.raises(HTTPException, match="ended early"):
        asyncio.run(read_body(Request({"type": "http", "headers": []}, gone), 10))


def test_an_upload_does_not_delay_the_pictures(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    port, index, _ = served
    free = threading.Event()
    monkeypatch.setattr(server, "load_upload", lambda *a: free.wait(10) and Image.new("RGB", (9, 9)))
    with ThreadPoolExecutor(3) as pool:
        sent = [pool.submit(ask, port, "POST", "/search/image", b"x", {"Content-Type": "image/png"}) for _ in range(3)]
        assert ask(port, "GET", f"/thumb/{picture_of(index, 'green.png')}")[0] == 200
        assert not any(answer.done() for answer in sent)
        free.set()
        assert [answer.result()[0] for answer in sent] == [200] * 3


def change(index: SearchIndex, model: ColourModel, *arguments: str) -> None:
    """Run `mclip-search` on an index that is served."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "load_model", lambda options: model)
        assert cli.main([arguments[0], str(index.path), *arguments[1:]]) == 0


def test_a_change_is_served_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, photos = ColourModel(), draw_colours(tmp_path / "photos")
    index = make_index(tmp_path / "index", photos, model)
    with running(index, model) as port:
        red = search(port, "red", k=1)[1]["results"][0]
        assert ask(port, "GET", f"/thumb/{red['picture']}")[0] == 200
        change(index, model, "remove", "red.png")
        assert search(port, "red", k=1)[1]["results"][0]["id"] != "red.png"
        assert json.loads(ask(port, "GET", "/about")[2])["images"] == 7
        assert ask(port, "GET", f"/thumb/{red['picture']}")[0] == 404
        change(index, model, "add", str(photos), "--workers", "0")
        again = search(port, "red", k=1)[1]["results"][0]
        assert again["id"] == "red.png"
        assert again["picture"] != red["picture"]
        assert ask(port, "GET", f"/thumb/{again['picture']}")[0] == 200
        (index.path / "index.json").write_text("{}")
        assert search(port, "red", k=1)[1]["results"][0] == again
        assert capsys.readouterr().err.count("cannot be opened again") == 1


def test_pictures_of_another_index_have_other_addresses(tmp_path: Path) -> None:
    model = ColourModel()
    one, two = (
        make_index(tmp_path / f"index{n}", draw_colours(tmp_path / f"photos{n}", ["red"]), model) for n in (1, 2)
    )
    assert one.stamp != two.stamp
    assert one.stamp == one.reopened().stamp
    with running(two, model) as port:
        assert ask(port, "GET", f"/thumb/{picture_of(one, 'red.png')}")[0] == 404
        assert ask(port, "GET", f"/thumb/{picture_of(two, 'red.png')}")[0] == 200


@pytest.mark.parametrize(
    ("host", "allowed", "trusted", "shown"),
    [
        ("127.0.0.9", ["mybox"], ["127.0.0.9", "mybox"], "127.0.0.9"),
        ("127.0.0.9", [], ["127.0.0.9"], "127.0.0.9"),
        ("0.0.0.0", ["mybox"], ["mybox"], "localhost"),
        ("0.0.0.0", [], ["*"], "localhost"),
    ],
)
def test_the_address_that_is_shown_is_answered(
    host: str,
    allowed: list[str],
    trusted: list[str],
    shown: str,
    served: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    idle = Idle()
    monkeypatch.setattr(server, "make_server", idle)
    _, index, model = served
    server.serve(index, model, host, 0, allowed)
    assert idle.hosts == trusted
    assert f"http://{shown}:" in capsys.readouterr().out


class Idle:
    """A server that ends at once, and makes itself."""

    def __call__(self, index: SearchIndex, model: Any, hosts: list[str]) -> Idle:
        """See `make_server`."""
        self.hosts = hosts
        return self

    def run(self, sockets: Any) -> None:
        """See uvicorn."""


@pytest.mark.parametrize("name", ["a*b", "*b", "", "http://mybox", "mybox:8000", "a b"])
def test_a_host_that_no_one_can_call_is_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["serve", "index", "--allowed-host", name])
    assert "is no name of a machine" in capsys.readouterr().err


def test_names_that_hold_script_are_data(served: Any) -> None:
    status, headers, content = ask(
        served[0],
        "POST",
        "/search",
        b'{"query": "red <3"}',
        {"Content-Type": "application/json"},
    )
    assert status == 200
    assert headers["content-type"] == "application/json"
    assert BAD_NAME in [hit["id"] for hit in json.loads(content)["results"]]


@pytest.mark.parametrize("query", ["a<b and c>d", "<3 red", "x < y > z"])
def test_signs_are_no_markup(served: Any, query: str) -> None:
    assert search(served[0], query)[0] == 200


@pytest.mark.parametrize(
    "query",
    ["<script>alert(1)</script> red", "< IMG src=x onerror=alert(1)>", "</script>", "a <b> red", "red <a\nhref=x>"],
)
def test_markup_is_no_query(served: Any, query: str) -> None:
    body = json.dumps({"query": query}).encode()
    status, headers, content = ask(served[0], "POST", "/search", body, {"Content-Type": "application/json"})
    assert (status, headers["content-type"]) == (400, "application/json")
    assert "say in words what the image shows" in json.loads(content)["error"]
    assert b"alert" not in content  # the query is not given back


def test_queries_share_batches_and_one_failure_is_nobody_elses(served: Any) -> None:
    port, _, model = served
    model.batches.clear()
    first = threading.Thread(target=search, args=(port, "slow start"))
    first.start()
    time.sleep(0.1)
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda number: search(port, f"blue {number}", k=1), range(12)))
    first.join()
    assert all(status == 200 and told["results"][0]["id"] in ("blue.png", "large.jpg") for status, told in answers)
    assert max(model.batches) > 4
    assert search(port, "fail now") == (500, {"error": "the search failed"})
    assert search(port, "red")[0] == 200
    seen = len(model.texts)
    assert search(port, "red")[0] == 200
    assert len(model.texts) == seen  # remembered


def test_a_cache_forgets_the_oldest() -> None:
    cache: Cache[bytes] = Cache(10, len)
    for key in "abc":
        cache.put(key, b"1234")
        assert cache.get("a") is not None or key == "c"
    assert [key for key in "abc" if cache.get(key) is not None] == ["a", "c"] or cache.get("b") is None
    assert cache.used == 8
    cache.put("c", b"1")
    assert cache.used == 5


def test_an_address_in_use_is_a_sentence(
    served: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    port, index, model = served
    monkeypatch.setattr(cli, "load_model", lambda options: model)
    assert cli.main(["serve", str(index.path), "--port", str(port)]) == 2
    assert f"127.0.0.1, port {port}: cannot be listened on" in capsys.readouterr().err


def test_serve_says_where_it_is_and_stops(served: Any) -> None:
    _, index, _ = served
    code = (
        "import sys; from mclip_fairseq.cli import search as cli; from tests.colours import ColourModel\n"
        "cli.load_model = lambda options: ColourModel()\n"
        "sys.exit(cli.main(['serve', sys.argv[1], '--port', '0']))"
    )
    command = [sys.executable, "-c", code, str(index.path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("10 images at http://127.0.0.1:")
        port = int(line.split(":")[2].split("/")[0])
        assert search(port, "red")[0] == 200
    finally:
        process.terminate()
        _, errors = process.communicate(timeout=20)
    assert "Traceback" not in errors
