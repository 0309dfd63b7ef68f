"""An index that came from elsewhere chooses nothing, and one that is shared tells nothing about its machine."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from mclip_fairseq.cli import search as cli
from mclip_fairseq.search.index import SearchIndex
from mclip_fairseq.search.settings import ModelPaths
from tests.colours import ColourModel
from tests.search_cli import BUILD, Run, hits


@pytest.fixture
def received(mclip_search: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """An index that another user has built: nothing is remembered of it here."""
    monkeypatch.setenv("MCLIP_CACHE", str(tmp_path / "theirs"))
    mclip_search(*BUILD)
    monkeypatch.setenv("MCLIP_CACHE", str(tmp_path / "mine"))
    return mclip_search


def test_its_model_is_named_by_the_user(received: Run) -> None:
    message = received("query", "index", "red", status=2)
    assert "nothing here says where its model 'colours' is; name it with --model" in message
    assert hits(received, "red", "--model", "colours")[0] == "red.png"


@pytest.mark.parametrize("load", [None, {"path": "openai/clip-vit-base-patch32"}, {"path": "/etc"}])
def test_a_forged_manifest_chooses_no_model_and_no_folder(received: Run, tmp_path: Path, load: object) -> None:
    manifest = json.loads(Path("index/index.json").read_text())
    manifest["model"]["load"] = load
    manifest["roots"] = [str(tmp_path / "photos")]
    Path("index/index.json").write_text(json.dumps(manifest))
    assert "name it with --model" in received("query", "index", "red", status=2)
    printed = json.loads(received("query", "index", "red", "--model", "colours", "--json"))
    assert {hit["file"] for hit in printed["answers"][0]["results"]} == {None}
    assert SearchIndex.open("index").picture(0) is None
    shown = received("query", "index", "red", "--model", "colours", "--show", "x.png", status=2)
    assert "name their folder with --images-root" in shown


def test_its_images_are_shown_from_the_folder_that_the_user_names(received: Run) -> None:
    options = ("--model", "colours", "--images-root", "photos", "--json", "-k", 1)
    printed = json.loads(received("query", "index", "red", *options))
    assert printed["answers"][0]["results"][0]["file"] == "photos/red.png"


def test_images_are_added_once_their_folder_is_named(received: Run) -> None:
    Path("photos/red.png").rename("photos/new.png")
    assert "name their folder with --moved" in received("add", "index", "photos", "--model", "colours", status=2)
    line = ["add", "index", "photos", "--model", "colours", "--moved", "photos", "--workers", 0]
    assert "1 images added" in received(*line)


def test_other_rows_are_not_read_below_the_folders_of_ones_own_index(mclip_search: Run) -> None:
    """A manifest can be copied with its id; the record of this machine belongs to the rows as well."""
    mclip_search(*BUILD)
    assert SearchIndex.open("index").picture(0) is not None
    manifest = json.loads(Path("index/index.json").read_text())
    rows = Path("index", manifest["files"]["rows"]["file"])
    rows.write_text(rows.read_text().replace("\tred.png", "\tsub/secret.png"))
    manifest["files"]["rows"]["sha256"] = hashlib.sha256(rows.read_bytes()).hexdigest()
    Path("index/index.json").write_text(json.dumps(manifest))
    assert SearchIndex.open("index").roots == []


def test_an_own_index_remembers_its_places_when_it_is_moved_and_changed(
    mclip_search: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    mclip_search(*BUILD)
    mclip_search("remove", "index", "red.png")
    Path("index").rename("elsewhere")
    loaded: list[str] = []

    def load(paths: ModelPaths, device: str | None) -> ColourModel:
        loaded.append(paths.path)
        return ColourModel()

    monkeypatch.setattr(cli, "load_model", load)
    printed = json.loads(mclip_search("query", "elsewhere", "blue", "--json", "-k", 1))
    assert Path(printed["answers"][0]["results"][0]["file"]).name == "blue.png"
    assert loaded == ["colours"]


def test_an_index_holds_no_absolute_path(mclip_search: Run, tmp_path: Path) -> None:
    line = ["build", tmp_path / "photos", "--model", "colours", "--output", tmp_path / "index", "--workers", "0"]
    mclip_search(*line)
    mclip_search("add", tmp_path / "index", tmp_path / "photos", "--replace", "--workers", 0)
    for file in Path("index").iterdir():
        assert str(tmp_path).encode() not in file.read_bytes(), file
    made = json.loads(Path("index/index.json").read_text())["made_by"][0]
    assert made["command"].startswith("mclip-search build .../photos --model colours --output .../index")
