"""`mclip-search add` and `remove`: an index changes without being built again."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mclip_fairseq.cli import search as cli
from mclip_fairseq.search import index as searching
from mclip_fairseq.search.index import SearchIndex
from mclip_fairseq.storage.features import write_features
from tests.colours import COLOURS, ColourModel, draw_colours
from tests.search_cli import BUILD, Run, hits


def test_images_are_added_removed_and_replaced_without_a_rebuild(mclip_search: Run) -> None:
    for name in ("yellow", "blue"):
        shutil.move(f"photos/{name}.png", f"{name}.png")
    mclip_search(*BUILD)
    before = json.loads(Path("index/index.json").read_text())
    assert hits(mclip_search, "blue")[0] != "blue.png"
    shutil.move("blue.png", "photos/blue.png")
    assert mclip_search("add", "index", "photos", "--workers", 0) == "index: 1 images added, 6 already in the index\n"
    assert mclip_search("add", "index", "photos") == "index: nothing to add, all 7 images are already in the index\n"
    assert hits(mclip_search, "blue")[0] == "blue.png"
    assert mclip_search("remove", "index", "red.png", "black.png") == "index: 2 images removed, 5 left\n"
    assert set(hits(mclip_search, "red")) == {"orange.png", "green.png", "blue.png", "purple.png", "white.png"}
    mclip_search("add", "index", "photos", "--workers", 0)
    assert hits(mclip_search, "red")[0] == "red.png"
    Image.new("RGB", (9, 9), COLOURS["yellow"]).save("photos/green.png")
    printed = mclip_search("add", "index", "photos", "--workers", 0)
    assert printed == "index: 0 images added, 1 changed since and encoded again, 6 already in the index\n"
    assert hits(mclip_search, "yellow")[0] == "green.png"
    printed = mclip_search("add", "index", "photos", "--replace", "--workers", 0)
    assert printed == "index: 0 images added, 7 replaced\n"
    assert hits(mclip_search, "yellow")[0] == "green.png"
    after = json.loads(Path("index/index.json").read_text())
    assert after["model"] == before["model"]
    assert len(after["made_by"]) == 6
    assert sorted(path.name for path in Path("index").iterdir()) == [
        ".lock",
        "index.json",
        "rows-00005.tsv",
        "times-00005.tsv",
        "vectors-00005.faiss",
    ]


def test_an_id_never_silently_changes_its_image(mclip_search: Run) -> None:
    mclip_search(*BUILD)
    draw_colours(Path("others"), ["red"])
    message = mclip_search("add", "index", "others", status=2)
    assert "the id 'red.png' already names a different image" in message
    Path("list.tsv").write_text("mine\tothers/red.png\n", encoding="utf-8")
    mclip_search("add", "index", "list.tsv", "--workers", 0)
    assert set(hits(mclip_search, "rot")[:2]) == {"mine", "red.png"}
    printed = json.loads(mclip_search("query", "index", "rot", "--json", "-k", 2))
    files = {hit["id"]: Path(hit["file"]).parent.name for hit in printed["answers"][0]["results"]}
    assert files == {"mine": "others", "red.png": "photos"}


def test_a_query_whose_lists_were_emptied_is_answered(mclip_search: Run) -> None:
    rng = np.random.default_rng(0)
    vectors = np.repeat(np.eye(5), 100, axis=0) + 0.01 * rng.normal(size=(500, 5))
    write_features("features", [f"i{n}" for n in range(500)], vectors, model={"name": "t"}, normalized=False)
    mclip_search("build", "features", *BUILD[2:], "--kind", "ivf", "--lists", 5, "--effort", 1)
    near = hits(mclip_search, "red", "-k", 100)
    Path("near").write_text("\n".join(near), encoding="utf-8")
    printed = mclip_search("remove", "index", "--ids", "near")
    assert printed == ("index: 100 images removed, 400 left; the recall measured at the build no longer applies\n")
    assert json.loads(Path("index/index.json").read_text())["recall"] is None
    assert not set(near) & set(hits(mclip_search, "red"))
    assert "rank of" in mclip_search("query", "index", "--languages", "en=red", "de=rot")


@pytest.mark.parametrize("part", ["rows", "vectors"])
def test_an_addition_may_finish_while_the_index_is_opened(
    part: str, mclip_search: Run, colour_model: ColourModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    mclip_search(*BUILD)
    check_index_file = searching.check_index_file

    def slow(folder: Path, entry: Any) -> Path:
        path = check_index_file(folder, entry)
        if entry["file"].startswith(part):
            monkeypatch.setattr(searching, "check_index_file", check_index_file)
            Image.new("RGB", (9, 9), COLOURS["red"]).save("photos/new.png")
            assert cli.main(["add", "index", "photos", "--workers", "0"]) == 0
        return path

    monkeypatch.setattr(searching, "check_index_file", slow)
    assert len(SearchIndex.open("index")) == 9


def test_a_killed_addition_leaves_the_index_as_it_was(mclip_search: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.move("photos/red.png", "red.png")
    mclip_search(*BUILD)
    before = {path.name: path.read_bytes() for path in Path("index").iterdir()}
    shutil.move("red.png", "photos/red.png")
    monkeypatch.setattr("mclip_fairseq.search.change.write_manifest", lambda *a: (_ for _ in ()).throw(OSError("cut")))
    mclip_search("add", "index", "photos", "--workers", 0, status=2)
    assert {name: Path("index", name).read_bytes() for name in before} == before
    assert len(hits(mclip_search, "red")) == 7
    monkeypatch.undo()


def test_two_changes_at_once_are_refused(mclip_search: Run, tmp_path: Path) -> None:
    mclip_search(*BUILD)
    code = "import fcntl,sys; f=open('index/.lock'); fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); input()"
    holder = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert "another mclip-search is changing this index" in mclip_search("remove", "index", "red.png", status=2)
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    mclip_search("remove", "index", "red.png")


def test_moved_images_are_still_the_same(mclip_search: Run) -> None:
    mclip_search(*BUILD)
    shutil.move("photos", "moved")
    Image.new("RGB", (9, 9), COLOURS["red"]).save("moved/new.png")
    message = mclip_search("add", "index", "moved", status=2)
    assert "photos/black.png; if the images have moved, say where they are now with --moved" in message
    assert "no such folder" in mclip_search("add", "index", "moved", "--moved", "photos", status=2)
    printed = mclip_search("add", "index", "moved", "--moved", "moved", "--workers", 0)
    assert printed == "index: 1 images added, 8 already in the index\n"
    index = SearchIndex.open("index")
    assert [root.name for root in index.roots] == ["moved"]
    assert all(index.picture(row).is_file() for row in range(9))  # type: ignore[union-attr]
    shutil.move("moved", "again")
    mclip_search("add", "index", "again", "--moved", "again")
    assert mclip_search("query", "index", "red", "--show", "grid.png")


def test_removed_rows_are_dropped_once_they_are_the_majority(mclip_search: Run) -> None:
    mclip_search(*BUILD)
    for _ in range(3):
        mclip_search("add", "index", "photos", "--replace", "--workers", 0)
        assert json.loads(Path("index/index.json").read_text())["rows"] <= 16
    assert [hits(mclip_search, name)[0] for name in COLOURS] == [f"{name}.png" for name in COLOURS]
    mclip_search("remove", "index", *(f"{name}.png" for name in COLOURS if name != "red"))
    manifest = json.loads(Path("index/index.json").read_text())
    assert (manifest["rows"], manifest["removed"]) == (1, [])
    assert hits(mclip_search, "blue") == ["red.png"]
    mclip_search("remove", "index", "red.png")
    assert hits(mclip_search, "blue") == []
    assert mclip_search("add", "index", "photos", "--workers", 0) == "index: 8 images added\n"
    assert hits(mclip_search, "blue")[0] == "blue.png"
