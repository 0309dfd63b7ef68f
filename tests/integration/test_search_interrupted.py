"""`mclip-search build` and `add`, interrupted: they continue, but only if the images are still the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mclip_fairseq.cli import search as cli
from mclip_fairseq.search import build as building
from mclip_fairseq.search import sources
from mclip_fairseq.search.index import SearchIndex
from mclip_fairseq.storage.features import write_features
from tests.colours import ColourModel
from tests.search_cli import BUILD, Run, hits


def cut(owner: Any, name: str, calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a method fail once, after `calls` calls."""
    works, seen = getattr(owner, name), []

    def failing(*arguments: Any, **options: Any) -> Any:
        seen.append(1)
        if len(seen) == calls + 1:
            raise OSError("power cut")
        return works(*arguments, **options)

    monkeypatch.setattr(owner, name, failing)


def test_an_interrupted_encoding_continues(
    mclip_search: Run, monkeypatch: pytest.MonkeyPatch, colour_model: ColourModel
) -> None:
    monkeypatch.setattr(sources, "SHARD_ROWS", 3)
    encode = colour_model.encode_image
    seen: list[int] = []

    def failing(images: Any, **options: Any) -> Any:
        if len(seen) == 2:
            raise OSError("power cut")
        seen.append(len(images))
        return encode(images, **options)

    monkeypatch.setattr(colour_model, "encode_image", failing)
    assert "power cut" in mclip_search(*BUILD, status=2)
    assert "its index is not finished" in mclip_search("query", "index", "red", status=2)

    def counting(images: Any, **options: Any) -> Any:
        seen.append(len(images))
        return encode(images, **options)

    monkeypatch.setattr(colour_model, "encode_image", counting)
    mclip_search(*BUILD)
    assert seen == [3, 3, 2]  # nothing twice
    resumed = SearchIndex.open("index")
    shutil.rmtree("index")
    mclip_search(*BUILD)
    straight = SearchIndex.open("index")
    assert resumed.manifest["files"] == straight.manifest["files"]
    assert not Path("index/partial").exists()


@pytest.mark.parametrize("addition", [False, True])
def test_an_image_that_changed_meanwhile_is_encoded_again(
    addition: bool, mclip_search: Run, monkeypatch: pytest.MonkeyPatch, colour_model: ColourModel
) -> None:
    monkeypatch.setattr(sources, "SHARD_ROWS", 3)
    command = ["add", "index", "photos", "--replace", "--workers", 0] if addition else BUILD
    if addition:
        mclip_search(*BUILD)
    cut(colour_model, "encode_image", 2, monkeypatch)
    assert "power cut" in mclip_search(*command, status=2)
    shutil.copy("photos/red.png", "photos/black.png")  # of the first shard
    mclip_search(*command)
    assert set(hits(mclip_search, "red")[:2]) == {"red.png", "black.png"}


def test_an_unfinished_index_of_different_features_is_discarded(
    mclip_search: Run, monkeypatch: pytest.MonkeyPatch, colour_model: ColourModel
) -> None:
    vectors, ids = np.eye(5, dtype=np.float32), [f"i{n}" for n in range(5)]
    for name, rows in (("one", vectors), ("two", vectors[::-1])):
        write_features(name, ids, rows, model={"name": "t"}, normalized=True)
    monkeypatch.setattr(building, "BLOCK", 2)
    monkeypatch.setattr(building, "SAVE_SECONDS", -1.0)
    cut(colour_model, "encode_image_features", 2, monkeypatch)
    assert "power cut" in mclip_search("build", "one", *BUILD[2:], status=2)
    mclip_search("build", "two", *BUILD[2:])
    index = SearchIndex.open("index").searcher.index
    assert np.array_equal(index.reconstruct_n(0, 5), vectors[::-1])


def test_an_unfinished_index_of_different_images_is_discarded(
    mclip_search: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "BLOCK", 3)
    monkeypatch.setattr(building, "SAVE_SECONDS", -1.0)
    cut(building.FeatureStore, "take", 1, monkeypatch)
    assert "power cut" in mclip_search(*BUILD, status=2)
    assert Path("index/partial/saved.json").exists()
    shutil.copy("photos/red.png", "photos/black.png")
    mclip_search(*BUILD)
    assert set(hits(mclip_search, "red")[:2]) == {"red.png", "black.png"}


def test_an_interrupted_indexing_continues(
    mclip_search: Run, monkeypatch: pytest.MonkeyPatch, colour_model: ColourModel
) -> None:
    vectors = np.random.default_rng(0).normal(size=(500, 5)).astype(np.float32)
    write_features("features", [f"i{n}" for n in range(500)], vectors, model={"name": "t"}, normalized=False)
    command = ["build", "features", "--model", "m", "--kind", "ivf", "--lists", 8, "--output"]
    monkeypatch.setattr(building, "BLOCK", 100)
    mclip_search(*command, "straight")
    monkeypatch.setattr(building, "SAVE_SECONDS", -1.0)
    project, rows = colour_model.encode_image_features, 0

    def failing(features: Any, **options: Any) -> Any:
        nonlocal rows
        rows += len(features)
        if rows > 850:  # 500 to train, then 100 at a time
            raise OSError("power cut")
        return project(features, **options)

    monkeypatch.setattr(colour_model, "encode_image_features", failing)
    mclip_search(*command, "index", status=2)
    assert json.loads(Path("index/partial/saved.json").read_text())["rows"] == 300
    trained: list[int] = []
    monkeypatch.setattr(building, "training_rows", lambda *a: trained.append(1))
    monkeypatch.setattr(colour_model, "encode_image_features", project)
    mclip_search(*command, "index")
    assert not trained
    files = [json.loads(Path(name, "index.json").read_text())["files"] for name in ("straight", "index")]
    assert files[0] == files[1]


def test_a_build_continues_when_the_broken_image_is_gone(mclip_search: Run, capsys: pytest.CaptureFixture[str]) -> None:
    Path("photos/broken.jpg").write_text("<html>not found</html>")
    mclip_search(*BUILD, status=2)
    Path("photos/broken.jpg").unlink()
    assert cli.main(BUILD) == 0
    printed = capsys.readouterr()
    assert printed.out == "index: 8 images of 5 dimensions, exact\n"
    assert "index: the images changed after the interruption; starting from scratch" in printed.err


def test_an_interruption_says_how_to_continue(
    mclip_search: Run, monkeypatch: pytest.MonkeyPatch, colour_model: ColourModel
) -> None:
    monkeypatch.setattr(colour_model, "encode_image", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
    message = mclip_search(*BUILD, status=130)
    assert message.endswith("\nmclip-search: interrupted; run the same command again to continue\n")
