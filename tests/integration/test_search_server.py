"""The page's server: what it answers, and where it listens."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mclip_fairseq.cli import search as cli
from mclip_fairseq.search import server
from mclip_fairseq.search.batching import Batcher
from mclip_fairseq.search.index import SearchIndex
from mclip_fairseq.search.limits import Cache
from tests.colours import COLOURS, ColourModel, draw_colours
from tests.runs import HANG
from tests.search_page import BAD_NAME, ask, make_index, picture_of, running, search


def test_a_text_finds_images(served: Any) -> None:
    port, _, _ = served
    status, answer = search(port, "أزرق", k=3)
    assert status == 200
    assert [hit["id"] for hit in answer["results"]][:2] in (["blue.png", "large.jpg"], ["large.jpg", "blue.png"])
    assert len(answer["results"]) == 3
    assert answer["results"][0].keys() == {"picture", "id", "score"}


def test_an_image_finds_images(served: Any) -> None:
    port, _, _ = served
    stream = io.BytesIO()
    Image.new("RGB", (50, 50), COLOURS["purple"]).save(stream, "WEBP")
    status, _, content = ask(port, "POST", "/search/image", stream.getvalue(), {"Content-Type": "image/webp"})
    assert status == 200
    assert json.loads(content)["results"][0]["id"] == "purple.png"


def test_an_image_of_the_index_finds_images_like_it(served: Any) -> None:
    port, index, _ = served
    red = picture_of(index, "red.png")
    status, answer = search(port, None, like=red)
    assert status == 200
    assert answer["results"][0]["id"] == BAD_NAME, "the copy of it, not itself"
    assert search(port, "blue", like=red)[1]["results"][0]["id"] == "purple.png"
    for address in (f"{index.stamp}/999", "0/0", "../secret", ""):
        assert search(port, None, like=address)[0] in (400, 404), address


def test_an_upload_and_a_text_are_one_query(served: Any) -> None:
    port, _, _ = served
    stream = io.BytesIO()
    Image.new("RGB", (50, 50), COLOURS["red"]).save(stream, "PNG")
    for query, first in (("?query=blue&k=2", "purple.png"), ("?k=2&unique=1", "red.png")):
        path = f"/search/image{query}"
        status, _, content = ask(port, "POST", path, stream.getvalue(), {"Content-Type": "image/png"})
        results = json.loads(content)["results"]
        assert (status, len(results)) == (200, 2)
        assert results[0]["id"] == first or (first == "red.png" and results[0]["copies"] == 1)
    for wrong in ("k=0", "k=1e9", "query=%00", "query=%3Cb%3Ex%3C/b%3E"):
        path = f"/search/image?{wrong}"
        assert ask(port, "POST", path, stream.getvalue(), {"Content-Type": "image/png"})[0] == 400, wrong


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


def test_a_deleted_picture_is_a_404_and_still_found(served: Any) -> None:
    port, index, _ = served
    assert search(port, "white")[1]["results"][0]["id"] == "white.png"
    status, _, content = ask(port, "GET", f"/thumb/{picture_of(index, 'white.png')}")
    assert (status, json.loads(content)["error"]) == (404, "the image can no longer be read")


def change(index: SearchIndex, model: ColourModel, *arguments: str) -> None:
    """Run `mclip-search` on an index that is served."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "load_model", lambda *arguments: model)
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


def test_pictures_on_an_open_page_survive_a_change(tmp_path: Path) -> None:
    model, photos = ColourModel(), draw_colours(tmp_path / "photos", ["red", "green", "blue"])
    index = make_index(tmp_path / "index", photos, model)
    with running(index, model) as port:
        red, green = (search(port, name, k=1)[1]["results"][0] for name in ("red", "green"))
        draw_colours(photos, ["yellow"])
        change(index, model, "add", str(photos), "--workers", "0")
        assert search(port, "red", k=1)[1]["results"][0]["picture"] != red["picture"]
        assert ask(port, "GET", f"/thumb/{red['picture']}")[0] == 200
        change(index, model, "remove", "red.png")
        assert ask(port, "GET", f"/thumb/{red['picture']}")[0] == 404  # removed: not shown any more
        assert ask(port, "GET", f"/thumb/{green['picture']}")[0] == 200


def test_images_of_different_indexes_have_different_addresses(tmp_path: Path) -> None:
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
def test_the_printed_address_is_answered(
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
    """Stands for `make_server` and for its server, which ends at once."""

    def __call__(self, index: SearchIndex, model: Any, hosts: list[str], *more: Any) -> Idle:
        self.hosts = hosts
        return self

    def run(self, sockets: Any) -> None:
        """End at once."""


@pytest.mark.parametrize("name", ["a*b", "*b", "", "http://mybox", "mybox:8000", "a b"])
def test_an_impossible_host_name_is_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["serve", "index", "--allowed-host", name])
    assert "is not a host name" in capsys.readouterr().err


def test_queries_share_batches_but_not_failures(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    port, _, model = served
    model.batches.clear()
    arrived, call = list[Any](), Batcher.__call__

    async def counted(self: Batcher, item: Any) -> Any:
        arrived.append(item)
        if len(arrived) == 13:  # all wait for the first
            model.released.set()
        return await call(self, item)

    monkeypatch.setattr(Batcher, "__call__", counted)
    first = threading.Thread(target=search, args=(port, "slow start"))
    first.start()
    assert model.busy.wait(HANG)
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda number: search(port, f"blue {number}", k=1), range(12)))
    first.join()
    assert all(
        status == 200 and content["results"][0]["id"] in ("blue.png", "large.jpg") for status, content in answers
    )
    assert model.batches == [1, 12]
    assert search(port, "fail now") == (500, {"error": "the search failed"})
    assert search(port, "red")[0] == 200
    seen = len(model.texts)
    assert search(port, "red")[0] == 200
    assert len(model.texts) == seen  # cached


def test_an_index_far_away_holds_up_no_other_request(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    port, _, _ = served
    asked, arrived = threading.Event(), threading.Event()

    def waits(index: Any) -> list[dict[str, str]]:
        asked.set()
        return [{"picture": "", "id": "arrived" if arrived.wait(HANG) else "late"}]

    monkeypatch.setattr(server, "sample_pictures", waits)
    with ThreadPoolExecutor(1) as threads:
        about = threads.submit(ask, port, "GET", "/about")
        assert asked.wait(HANG)
        assert ask(port, "GET", "/page.css")[0] == 200
        arrived.set()
        assert json.loads(about.result()[2])["samples"][0]["id"] == "arrived"


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
    monkeypatch.setattr(cli, "load_model", lambda *arguments: model)
    assert cli.main(["serve", str(index.path), "--port", str(port)]) == 2
    assert f"127.0.0.1, port {port}: cannot listen there" in capsys.readouterr().err


def test_serve_says_where_it_is_and_stops(served: Any) -> None:
    _, index, _ = served
    code = (
        "import sys; from mclip_fairseq.cli import search as cli; from tests.colours import ColourModel\n"
        "cli.load_model = lambda *arguments: ColourModel()\n"
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
        _, errors = process.communicate(timeout=HANG)
    assert "Traceback" not in errors
