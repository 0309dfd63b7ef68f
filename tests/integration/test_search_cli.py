"""`mclip-search` with options and files that cannot be used: one sentence, status 2, nothing left behind."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mclip_fairseq.cli import search as cli
from mclip_fairseq.search import files
from mclip_fairseq.storage.features import write_features
from tests.colours import COLOURS
from tests.search_cli import BUILD, LOAD_MODEL, Run, hits


def test_an_unreadable_image_is_named_or_skipped(mclip_search: Run) -> None:
    Path("photos/broken.jpg").write_text("<html>not found</html>")
    message = mclip_search(*BUILD, status=2)
    assert "1 of 9 inputs cannot be read" in message
    assert "broken.jpg: is not an image in a known format" in message
    printed = mclip_search(*BUILD, "--skip-budget", 1)
    assert printed == "index: 8 images of 5 dimensions, exact; 1 unreadable images skipped\n"
    printed = mclip_search("add", "index", "photos", "--workers", 0, "--skip-budget", 1)
    assert printed == "index: 0 images added, 8 already in the index, 1 unreadable images skipped\n"


def test_max_pixels_works_where_messages_suggest_it(mclip_search: Run) -> None:
    assert "allow more with --max-pixels" in mclip_search(*BUILD, "--max-pixels", 100, status=2)
    mclip_search(*BUILD, "--max-pixels", 96 * 64)
    Image.new("RGB", (9, 9), COLOURS["white"]).save("photos/new.png")
    assert "allow more with --max-pixels" in mclip_search("add", "index", "photos", "--max-pixels", 80, status=2)
    mclip_search("add", "index", "photos", "--max-pixels", 81)
    assert "allow more with --max-pixels" in mclip_search(
        "query", "index", "--image", "photos/new.png", "--max-pixels", 80, status=2
    )
    assert hits(mclip_search, "--image", "photos/new.png", "--max-pixels", 81)


def test_a_build_without_any_readable_image_is_refused(mclip_search: Run) -> None:
    Path("broken").mkdir()
    Path("broken/a.png").write_text("no picture")
    command = ["build", "broken", *BUILD[2:], "--skip-budget", 1, "--kind", "hnsw"]
    assert "none of its images can be read" in mclip_search(*command, status=2)


def test_an_id_is_not_an_absolute_path(mclip_search: Run, tmp_path: Path) -> None:
    Path("list.txt").write_text(f"photos/red.png\n{tmp_path}/photos/blue.png\n", encoding="utf-8")
    message = mclip_search("build", "list.txt", *BUILD[2:], status=2)
    assert "(number 2) is an absolute path" in message
    assert "id<TAB>path" in message
    Path("list.txt").write_text(f"blue\t{tmp_path}/photos/blue.png\n", encoding="utf-8")
    mclip_search("build", "list.txt", *BUILD[2:])
    assert hits(mclip_search, "blue") == ["blue"]


def test_an_unreadable_subfolder_is_refused(mclip_search: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("photos/private").mkdir()
    scan = __import__("os").scandir

    def refusing(path: Any) -> Any:
        if str(path).endswith("private"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr("os.scandir", refusing)
    assert mclip_search(*BUILD, status=2) == "mclip-search: error: photos/private: cannot be read: Permission denied\n"


def test_a_folder_without_permission_is_named(mclip_search: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    mclip_search(*BUILD)
    works = Path.is_file

    def closed(path: Path) -> bool:
        if path.parent.name in ("private", "photos"):
            raise PermissionError(13, "Permission denied", str(path))
        return works(path)

    monkeypatch.setattr(Path, "is_file", closed)
    printed = "permission denied; ask its owner for read access\n"
    assert mclip_search("query", "private", "red", status=2) == f"mclip-search: error: private: {printed}"
    assert mclip_search("build", "photos", *BUILD[2:-3], "other", status=2) == f"mclip-search: error: photos: {printed}"
    assert not Path("other").exists()


def test_a_read_only_index_can_be_queried(mclip_search: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    mclip_search(*BUILD)
    works = os.open

    def closed(path: Any, flags: int, *more: Any, **options: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise PermissionError(13, "Permission denied", str(path))
        return works(path, flags, *more, **options)

    monkeypatch.setattr("os.open", closed)
    message = mclip_search("remove", "index", "red.png", status=2)
    assert message.startswith("mclip-search: error: index: cannot be written to: Permission denied; ask its owner")
    assert hits(mclip_search, "red")[0] == "red.png"


def test_a_manifest_without_permission_is_not_called_damaged(
    mclip_search: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    mclip_search(*BUILD)

    def closed(path: Path, **options: Any) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    read_text = Path.read_text
    monkeypatch.setattr(Path, "read_text", closed)
    message = mclip_search("query", "index", "red", status=2)
    assert message == "mclip-search: error: index/index.json: cannot be read: Permission denied\n"
    monkeypatch.setattr(Path, "read_text", read_text)
    monkeypatch.setattr(files, "file_sha256", closed)
    assert "rows-00001.tsv: permission denied; ask its owner" in mclip_search("query", "index", "red", status=2)


def test_a_mistyped_index_is_not_created(mclip_search: Run) -> None:
    Path("file").write_text("text")
    assert "is not a search index" in mclip_search("remove", "typo", "x", status=2)
    assert "is not a search index" in mclip_search("add", "typo/x", "photos", status=2)
    assert "no such folder" in mclip_search("build", "typo", *BUILD[2:-3], "new", status=2)
    assert not Path("typo").exists()
    assert not Path("new").exists()
    for place in ("file", "file/index"):
        assert f"{place}: is a file, or below one" in mclip_search(*BUILD[:-3], place, status=2)


@pytest.mark.parametrize(("device", "words"), [("bogus", "torch has no such device"), ("cuda:99", "--device cuda:99")])
def test_a_missing_device_is_one_sentence(
    device: str, words: str, mclip_search: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    mclip_search(*BUILD)
    monkeypatch.setattr(cli, "load_model", LOAD_MODEL)
    assert words in mclip_search("query", "index", "red", "--model", "m", "--device", device, status=2)


def test_a_full_disk_leaves_nothing_behind(mclip_search: Run) -> None:
    write_features("features", [str(n) for n in range(9000)], np.ones((9000, 5)), model={"name": "t"}, normalized=False)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        message = mclip_search("build", "features", *BUILD[2:], status=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "vectors-00001.faiss: cannot be written; free disk space" in message
    assert sorted(path.name for path in Path("index").iterdir()) == [".lock", "partial"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["query", "index", "   "], "the query is empty"),
        (["query", "index", "x" * 100_000], "the query has 100000 characters; give at most 2000"),
        (["query", "index"], "give a text, --queries FILE"),
        (["query", "index", "red", "--queries", "q.txt"], "only one of them"),
        (["query", "index", "--image", "missing.png"], "missing.png: does not exist"),
        (
            ["query", "index", "red", "--show", "photos"],
            "--show photos: has no image extension; write photos.png",
        ),
        (["query", "index", "red", "--target", "red.png"], "give both"),
        (["query", "photos", "red"], "is not a search index"),
        (["query", "nowhere", "red"], "is not a search index"),
        (["query", "index", "red", "--images-root", "a", "--images-root", "b"], "has images in 1 folders"),
        (["remove", "index", "red.png", "pink.png"], "'pink.png'; nothing was removed"),
        (["remove", "index"], "no ids given"),
        (["add", "index", "nowhere"], "nowhere: no such folder"),
        (["add", "index", "photos", "--images-root", "photos"], "--images-root is for a feature directory"),
        ([*BUILD, "--kind", "hnsw"], "already holds an index"),
        ([*BUILD[:-3], "other", "--kind", "pq"], "at least 256 images"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(mclip_search: Run, arguments: list[str], words: str) -> None:
    mclip_search(*BUILD)
    before = Path("index/index.json").read_bytes()
    message = mclip_search(*arguments, status=2)
    assert message.startswith("mclip-search: error: ")
    assert message.count("\n") == 1
    assert words in message
    assert Path("index/index.json").read_bytes() == before


def test_unknown_options_are_refused(mclip_search: Run, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["query", "index", "red", "--quick"], ["remove", "index", "--all"], ["find"]):
        with pytest.raises(SystemExit) as stop:
            cli.main(arguments)
        assert stop.value.code == 2
