"""An index of a folder that lives: changed, deleted and renamed images."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from mclip_fairseq.encoding import images
from mclip_fairseq.search.files import read_times
from mclip_fairseq.search.index import SearchIndex
from mclip_fairseq.storage.errors import UserError
from tests.colours import COLOURS
from tests.search_cli import BUILD, Run, hits

QUICK = ("--workers", 0)


def paint(file: str, colour: str) -> None:
    """Other pixels under an old name, at another time."""
    Image.new("RGB", (96, 64), COLOURS[colour]).save(file)
    os.utime(file, ns=(0, Path(file).stat().st_mtime_ns + 10**9))


@pytest.mark.parametrize("command", ["add", "sync"])
def test_an_edited_image_is_encoded_again(mclip_search: Run, command: str) -> None:
    mclip_search(*BUILD)
    paint("photos/green.png", "yellow")
    printed = mclip_search(command, "index", "photos", *QUICK)
    assert printed == "index: 0 images added, 1 changed since and encoded again, 7 already in the index\n"
    answer = json.loads(mclip_search("query", "index", "--image", "photos/green.png", "--json"))["answers"][0]
    assert answer["results"][0]["id"] == "green.png"
    assert answer["results"][0]["score"] == pytest.approx(1, abs=1e-5)
    assert "nothing to add" in mclip_search(command, "index", "photos", *QUICK)


def test_deleted_and_renamed_images_are_dropped(mclip_search: Run) -> None:
    mclip_search(*BUILD)
    Path("photos/red.png").unlink()
    shutil.move("photos/blue.png", "photos/sea.png")
    assert "1 images added, 6 already in the index" in mclip_search("add", "index", "photos", *QUICK)
    assert "red.png  (its file is gone)" in mclip_search("query", "index", "red", "-k", 1)
    results = json.loads(mclip_search("query", "index", "red", "--json"))["answers"][0]["results"]
    assert {result["id"] for result in results if result.get("missing")} == {"red.png", "blue.png"}
    printed = mclip_search("sync", "index", "photos", *QUICK)
    assert printed == "index: 2 removed whose files are gone, 7 left\n"
    assert {"red.png", "blue.png"}.isdisjoint(hits(mclip_search, "red"))
    assert "nothing to add" in mclip_search("sync", "index", "photos", *QUICK)


def test_all_at_once(mclip_search: Run) -> None:
    mclip_search(*BUILD)
    Path("photos/red.png").unlink()
    paint("photos/green.png", "yellow")
    paint("photos/new.png", "red")
    assert mclip_search("sync", "index", "photos", *QUICK) == (
        "index: 1 images added, 1 changed since and encoded again, 1 removed whose files are gone, "
        "6 already in the index\n"
    )
    assert hits(mclip_search, "red")[0] == "new.png"


def test_another_folder_of_the_index_is_left_alone(mclip_search: Run) -> None:
    mclip_search(*BUILD)
    Path("others").mkdir()
    paint("others/sky.png", "blue")
    mclip_search("add", "index", "others", *QUICK)
    Path("photos/red.png").unlink()
    assert "nothing to add" in mclip_search("sync", "index", "others", *QUICK)
    assert len(SearchIndex.open("index")) == 9


def test_a_list_drops_only_what_is_gone(mclip_search: Run) -> None:
    mclip_search(*BUILD)
    Path("photos/red.png").unlink()
    Path("list").write_text("photos/blue.png\n")
    printed = mclip_search("sync", "index", "list", *QUICK)
    assert "1 removed whose files are gone" in printed
    assert len(SearchIndex.open("index")) == 8  # photos/blue.png is another id


def test_an_unchanged_folder_costs_stat_calls_only(mclip_search: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    mclip_search(*BUILD)

    def unexpected(*arguments: object) -> None:
        raise AssertionError(f"reads {arguments}")

    monkeypatch.setattr(images, "load_image", unexpected)
    monkeypatch.setattr("mclip_fairseq.cli.search.load_model", unexpected)
    for command in ("add", "sync"):
        assert "nothing to add" in mclip_search(command, "index", "photos", *QUICK)
    os.utime("photos/red.png")  # the negative control: a new time is noticed
    with pytest.raises(AssertionError, match="reads"):
        mclip_search("sync", "index", "photos", *QUICK)


def repaint(file: str, colour: str) -> None:
    """Other pixels in a file of the same size, with the time of before."""
    before = Path(file).stat()
    Image.new("RGB", (96, 64), COLOURS[colour]).save(file, compress_level=0)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_hashes_notice_what_size_and_time_hide(mclip_search: Run) -> None:
    for colour in ("green", "blue"):
        repaint(f"photos/{colour}.png", colour)
    mclip_search(*BUILD, "--hash-images")
    size = Path("photos/green.png").stat().st_size
    repaint("photos/green.png", "yellow")
    os.utime("photos/blue.png")  # a new time with the old content
    assert Path("photos/green.png").stat().st_size == size
    printed = mclip_search("sync", "index", "photos", *QUICK, "--hash-images")
    assert printed == "index: 0 images added, 1 changed since and encoded again, 7 already in the index\n"
    answer = json.loads(mclip_search("query", "index", "--image", "photos/green.png", "--json"))["answers"][0]
    assert answer["results"][0]["id"] == "green.png"
    assert "nothing to add" in mclip_search("add", "index", "photos", *QUICK, "--hash-images")
    printed = mclip_search("add", "index", "photos", *QUICK)  # the negative control: by size and time
    assert "1 changed since" in printed  # the picture with a new time
    repaint("photos/green.png", "green")
    assert "nothing to add" in mclip_search("add", "index", "photos", *QUICK)


def test_an_index_without_hashes_says_so(mclip_search: Run) -> None:
    mclip_search(*BUILD)
    printed = mclip_search("add", "index", "photos", *QUICK, "--hash-images")
    assert "for 8 of them the index has no hash, so a change would not be noticed: encode them again with" in printed
    mclip_search("add", "index", "photos", "--replace", *QUICK, "--hash-images")
    assert "no hash" not in mclip_search("add", "index", "photos", *QUICK, "--hash-images")
    line = Path("index/times-00002.tsv").read_text().splitlines()[-1]
    assert len(line.split("\t")[2]) == 64


@pytest.mark.parametrize("line", ["1", "1\t2\t3", "x\t2", "1\t2\t" + 64 * "a" + "\tb", "1\t2\t" + 64 * "g"])
def test_lines_of_times_that_nobody_writes(line: str, tmp_path: Path) -> None:
    (tmp_path / "times").write_text(f"{line}\n\n5\t6\n7\t8\t{64 * 'a'}\n")
    with pytest.raises(UserError, match="does not have a size and a time for 4 rows"):
        read_times(tmp_path / "times", 4)
    (tmp_path / "times").write_text(f"\n5\t6\n7\t8\t{64 * 'a'}\n")
    assert read_times(tmp_path / "times", 3) == [None, (5, 6), (7, 8, 64 * "a")]


def test_hashes_are_for_images_in_an_index_directory(mclip_search: Run, capsys: pytest.CaptureFixture[str]) -> None:
    message = mclip_search(*BUILD, "--hash-images", "--engine", "milvus", "--uri", "x.db", status=2)
    assert "--hash-images is for an index directory" in message


def test_an_index_without_times_says_so(mclip_search: Run) -> None:
    """As version 0.2 built it."""
    mclip_search(*BUILD)
    manifest = json.loads(Path("index/index.json").read_text())
    del manifest["files"]["times"]
    Path("index/index.json").write_text(json.dumps(manifest))
    printed = mclip_search("add", "index", "photos", *QUICK)
    assert "for 8 of them the index has no size and time, so a change would not be noticed" in printed
    mclip_search("add", "index", "photos", "--replace", *QUICK)
    paint("photos/green.png", "yellow")
    assert "1 changed since" in mclip_search("add", "index", "photos", *QUICK)


def test_times_survive_a_removal_of_most_rows(mclip_search: Run) -> None:
    mclip_search(*BUILD)
    mclip_search("remove", "index", *(f"{name}.png" for name in ("red", "orange", "yellow", "black", "white")))
    paint("photos/green.png", "yellow")
    printed = mclip_search("add", "index", "photos", *QUICK)
    assert printed == "index: 5 images added, 1 changed since and encoded again, 2 already in the index\n"


def test_damaged_times_are_refused(mclip_search: Run) -> None:
    mclip_search(*BUILD)
    Path("index/times-00001.tsv").write_text("1\t2\n")
    assert "times-00001.tsv: is altered or truncated" in mclip_search("add", "index", "photos", status=2)


@pytest.mark.parametrize("kind", ["exact", "hnsw", "ivf"])
def test_copies_are_shown_once_on_request(mclip_search: Run, kind: str) -> None:
    for number in range(6):
        shutil.copy("photos/red.png", f"photos/copy{number}.png")
    mclip_search(*BUILD, "--kind", kind, *(["--lists", 1] if kind == "ivf" else []))
    assert len([name for name in hits(mclip_search, "red", "-k", 4) if name[:4] in ("copy", "red.")]) == 4
    table = mclip_search("query", "index", "red", "-k", 3, "--unique").splitlines()
    assert len(table) == 5
    assert table[2].endswith("(and 6 copies)")
    assert not [line for line in table[3:] if "copy" in line]
    results = json.loads(mclip_search("query", "index", "red", "--unique", "--json"))["answers"][0]["results"]
    assert [result.get("copies") for result in results] == [6, *[None] * 7]


@pytest.mark.parametrize("command", ["build", "add"])
def test_an_awkward_name_costs_one_of_the_skip_budget(mclip_search: Run, command: str) -> None:
    if command == "add":
        mclip_search(*BUILD)
    shutil.copy("photos/red.png", os.fsdecode(os.fsencode("photos/caf") + b"\xe9.png"))
    Path("photos/broken.png").write_text("no picture")
    line = BUILD if command == "build" else ["add", "index", "photos", *QUICK]
    message = mclip_search(*line, status=2)
    assert "photos/caf\\xe9.png: its name is not UTF-8; rename it, or leave it out with --skip-budget 1" in message
    assert "more than --skip-budget 0 inputs" in mclip_search(*line, "--skip-budget", 1, status=2)
    mclip_search(*line, "--skip-budget", 2)
    assert len(SearchIndex.open("index")) == 8
