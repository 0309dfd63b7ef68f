"""The page's server against hostile or oversized requests."""

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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from starlette.exceptions import HTTPException
from starlette.requests import Request

from mclip_fairseq.search import limits, server
from mclip_fairseq.search.limits import MAX_TEXT_BODY, MAX_UPLOAD, MAX_UPLOADS, read_body
from mclip_fairseq.search.server import make_server
from tests.runs import HANG
from tests.search_page import BAD_NAME, SECRET, ask, picture_of, search


def test_every_answer_has_the_security_headers(served: Any) -> None:
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


def test_no_answer_contains_a_path_of_the_server(served: Any) -> None:
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
    status, answer = search(served[0], query, **more)
    assert status == 400
    assert len(answer["error"]) < 200


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'"red"', b"{}", b"\xff", b"[" * 9000, b"1" * 9000])
def test_a_body_that_is_not_a_question_is_a_400(served: Any, body: bytes) -> None:
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
        with socket.create_connection(("127.0.0.1", port), timeout=HANG) as connection:
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


def test_harmful_images_are_a_400(served: Any) -> None:
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


def test_formats_that_are_decoded_completely_have_a_lower_limit(served: Any) -> None:
    port, _, _ = served
    for name, expected in (("PNG", 400), ("JPEG", 200)):
        stream = io.BytesIO()
        Image.new("L", (4200, 4000)).save(stream, name)
        status, _, content = ask(port, "POST", "/search/image", stream.getvalue(), {"Content-Type": "image/png"})
        assert status == expected
        assert expected == 200 or b'4200 x 4000 pixels, more than 16000000; make it smaller"' in content


def test_uploads_that_take_much_memory_are_refused(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A progressive JPEG, transparency, 16 bits, a TIFF and a WebP need more than their pixels."""
    port, _, _ = served
    plain = Image.new("RGB", (400, 400), "red")
    cases: list[tuple[Image.Image, dict[str, Any], int]] = [
        (plain, {"format": "PNG"}, 200),
        (plain, {"format": "JPEG"}, 200),
        (plain, {"format": "JPEG", "progressive": True}, 400),
        (plain.convert("RGBA"), {"format": "PNG"}, 400),
        (plain.convert("I;16"), {"format": "PNG"}, 400),
        (plain, {"format": "TIFF", "compression": "tiff_deflate"}, 400),
        (plain, {"format": "WEBP"}, 400),
    ]
    monkeypatch.setattr(limits, "MAX_DECODED", 8 * 400 * 400)
    for image, options, expected in cases:
        stream = io.BytesIO()
        image.save(stream, **options)
        status, _, content = ask(port, "POST", "/search/image", stream.getvalue(), {"Content-Type": "image/png"})
        assert status == expected, options
        assert expected == 200 or b"to decode, more than 1; make it smaller" in content


MEASURE = """
import re, sys
from pathlib import Path
from PIL import Image
from mclip_fairseq.storage.images import decoding_bytes, load_image
def memory(name):
    return int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) << 10
for path in sys.argv[1:]:
    with Image.open(path) as image:
        needed = decoding_bytes(image, image.width * image.height)
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    load_image(path)
    print(Path(path).name, (memory("VmHWM") - before) / needed)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are measured with Linux's /proc")
def test_the_estimate_of_memory_holds(tmp_path: Path) -> None:
    """The peak of a process that decodes images is not above the estimates."""
    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "alpha.png": ("RGBA", {}),
        "deep.png": ("I;16", {}),
        "plain.png": ("RGB", {}),
        "steps.jpg": ("RGB", {"progressive": True}),
        "strips.tif": ("RGB", {"compression": "tiff_deflate"}),
        "lossy.webp": ("RGB", {}),
    }
    for name, (mode, options) in kinds.items():
        Image.new("RGB", (1500, 1500), "red").convert(mode).save(tmp_path / name, **options)
    command = [sys.executable, "-c", MEASURE, *(str(tmp_path / name) for name in kinds)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    shares = {name: float(share) for name, share in (line.split() for line in lines)}
    assert shares.keys() == kinds.keys()
    assert 0.2 < min(shares.values()) <= max(shares.values()) < 1.25, shares


def test_the_page_warms_up_before_it_says_where_it_is(
    served: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A text and an image go through the model, so that the first query waits for nothing."""
    _, index, model = served
    done = []
    monkeypatch.setattr(server, "search_texts", lambda *a: done.append(f"text {capsys.readouterr().out}"))
    monkeypatch.setattr(server, "search_images", lambda *a: done.append(f"image {capsys.readouterr().out}"))
    monkeypatch.setattr(server.uvicorn.Server, "run", lambda self, sockets: done.append(capsys.readouterr().out))
    server.serve(index, model, "127.0.0.1", 0)
    assert done[:2] == ["text ", "image "]
    assert " images at http://127.0.0.1:" in done[2]


def test_the_number_of_uploads_at_once_is_limited(served: Any) -> None:
    port, index, _ = served
    head = "POST /search/image HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: 99\r\n\r\nx"
    stalled = [socket.create_connection(("127.0.0.1", port), timeout=HANG) for _ in range(MAX_UPLOADS)]
    for connection in stalled:
        connection.sendall(head.encode())
    content, kind = (index.roots[0] / "red.png").read_bytes(), {"Content-Type": "image/png"}
    deadline = time.monotonic() + HANG
    while (refused := ask(port, "POST", "/search/image", content, kind))[0] != 503 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (refused[0], refused[1]["retry-after"]) == (503, "5")
    assert search(port, "red")[0] == 200
    # Whoever sends slowly keeps nobody else out.
    assert ask(port, "POST", "/search/image", content, kind, client="127.0.0.2")[0] == 200
    for connection in stalled:
        connection.close()
    while (answer := ask(port, "POST", "/search/image", content, kind))[0] == 503 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert answer[0] == 200
    assert make_server(*served[1:]).config.limit_concurrency


def test_a_request_that_ends_early_is_not_a_failure() -> None:
    async def gone() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    # In a thread of its own, because the browser of other tests leaves an event loop in this one.
    with ThreadPoolExecutor(1) as pool, pytest.raises(HTTPException, match="ended early"):
        pool.submit(asyncio.run, read_body(Request({"type": "http", "headers": []}, gone), 10)).result()


def test_an_upload_does_not_delay_the_pictures(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    port, index, _ = served
    free = threading.Event()
    monkeypatch.setattr(server, "load_upload", lambda *a: free.wait(HANG) and Image.new("RGB", (9, 9)))
    with ThreadPoolExecutor(3) as pool:
        sent = [pool.submit(ask, port, "POST", "/search/image", b"x", {"Content-Type": "image/png"}) for _ in range(3)]
        assert ask(port, "GET", f"/thumb/{picture_of(index, 'green.png')}")[0] == 200
        assert not any(answer.done() for answer in sent)
        free.set()
        assert [answer.result()[0] for answer in sent] == [200] * 3


def test_names_that_contain_script_are_data(served: Any) -> None:
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
def test_comparison_signs_are_not_markup(served: Any, query: str) -> None:
    assert search(served[0], query)[0] == 200


@pytest.mark.parametrize(
    "query",
    ["<script>alert(1)</script> red", "< IMG src=x onerror=alert(1)>", "</script>", "a <b> red", "red <a\nhref=x>"],
)
def test_markup_is_not_a_query(served: Any, query: str) -> None:
    body = json.dumps({"query": query}).encode()
    status, headers, content = ask(served[0], "POST", "/search", body, {"Content-Type": "application/json"})
    assert (status, headers["content-type"]) == (400, "application/json")
    assert "describe the image in words" in json.loads(content)["error"]
    assert b"alert" not in content  # the query is not echoed
