"""Captions of Flickr30k's images that are trained on: Flickr30k and Multi30K."""

from pathlib import Path

import pytest

from tests.downloads import (
    COCO_TRAIN as TRAIN,
)
from tests.downloads import (
    COCO_VAL as VAL,
)
from tests.downloads import (
    FREE,
    coco_split_file,
    lines,
    manifest,
    multi30k_data,
    refuses,
    touch,
    works,
    write,
    write_json,
)


@pytest.fixture
def split_file(tmp_path: Path) -> Path:
    return coco_split_file(tmp_path)


@pytest.fixture
def multi30k(tmp_path: Path) -> Path:
    return multi30k_data(tmp_path)


def test_multi30k(tmp_path: Path, multi30k: Path) -> None:
    out = tmp_path / "out"
    works("multi30k", "--data", multi30k, "--output", out, *FREE)
    assert lines(out / "train.de") == ["Ein Hund.", "Eine Katze."]
    assert lines(out / "valid.fr") == ["Un chien.", "Un chat."]
    assert lines(out / "test_2016_flickr.en.ids") == ["1000092795.jpg", "10002456.jpg"]
    assert lines(out / "train.en.ids")[0] == "1000092795.jpg\ttrain/0"
    assert lines(out / "test_2017_mscoco.de.ids") == [TRAIN, VAL]
    assert f"{TRAIN}\ttrain2014/{TRAIN}" in lines(out / "images.tsv")
    assert set(manifest(out)["splits"]) == {"train", "valid", "test_2016_flickr", "test_2017_mscoco"}
    works("multi30k", "--task", 2, "--data", multi30k, "--output", tmp_path / "two", *FREE)
    assert lines(tmp_path / "two" / "test_2016_flickr.de")[:6] == [*[f"de {n} a" for n in range(1, 6)], "de 1 b"]
    assert lines(tmp_path / "two" / "test_2016_flickr.de.ids") == ["36979.jpg"] * 5 + ["65567.jpg"] * 5
    assert [manifest(folder)["name"] for folder in (out, tmp_path / "two")] == ["Multi30K task 1", "Multi30K task 2"]
    assert "train.en: has 2 captions, but 29000" in refuses("multi30k", "--data", multi30k, "--output", tmp_path / "x")
    chosen = ["--splits", "val", "--languages", "fr", "--data", multi30k, "--output", tmp_path / "fr", *FREE]
    works("multi30k", *chosen)
    assert manifest(tmp_path / "fr")["splits"].keys() == {"valid"}


def test_multi30k_names_the_option_for_splits_with_images_elsewhere(tmp_path: Path, multi30k: Path) -> None:
    root = touch(tmp_path / "flickr30k", ["1000092795.jpg", "10002456.jpg"])
    command = ["--data", multi30k, "--images", root, "--output", tmp_path / "out", *FREE]
    said = refuses("multi30k", *command)
    assert (
        f"{root}: has none of the images of test_2017_mscoco; add them, or choose the splits whose images it has"
        in said
    )
    assert "--splits train val test_2016_flickr" in said
    works("multi30k", *command, "--splits", "train", "val", "test_2016_flickr")
    (root / "10002456.jpg").unlink()
    assert "the image 10002456.jpg is missing: there is no" in refuses("multi30k", *command)


def test_another_set_is_not_overwritten(tmp_path: Path, multi30k: Path, split_file: Path) -> None:
    out = tmp_path / "out"
    for _ in range(2):
        works("multi30k", "--data", multi30k, "--output", out, *FREE)
    before = (out / "images.tsv").read_bytes()
    said = refuses("coco", "--karpathy", split_file, "--output", out, *FREE)
    assert f"{out}: already holds Multi30K task 1, which MSCOCO (Karpathy split) would overwrite; give every" in said
    assert "which Multi30K task 2 would" in refuses("multi30k", "--task", 2, "--data", multi30k, "--output", out, *FREE)
    assert (out / "images.tsv").read_bytes() == before
    assert manifest(out)["name"] == "Multi30K task 1"
    write(out / "manifest.json", "[]")
    assert "already holds something else" in refuses("multi30k", "--data", multi30k, "--output", out, *FREE)


def test_multi30k_with_a_different_shape(tmp_path: Path, multi30k: Path) -> None:
    def refused(*options: object) -> str:
        return refuses("multi30k", "--data", multi30k, "--output", tmp_path / "out", *FREE, *options)

    (multi30k / "task2" / "raw" / "test_2016.3.de.gz").unlink()
    assert "has 4 of the 5 files test_2016.N.de.gz" in refused("--task", 2)
    assert "--splits test_2018: task 2 has train, val, test_2016" in refused("--task", 2, "--splits", "test_2018")
    write(multi30k / "task1" / "raw" / "val.de.gz", "nur eins\n")
    assert "val.de.gz: has 1 lines, but" in refused()
    write(multi30k / "task1" / "image_splits" / "train.txt", "1.jpg\n1.jpg\n")
    assert "line 2: the image '1.jpg' is already at" in refused()
    (multi30k / "task1" / "image_splits" / "train.txt").unlink()
    assert "train.txt: not found; --help says" in refused()
    assert "no such folder" in refuses("multi30k", "--data", tmp_path / "none", "--output", tmp_path / "out")


def test_flickr30k(tmp_path: Path) -> None:
    image = {"sentids": [0], "imgid": 0, "sentences": [{"tokens": ["a"], "raw": "A dog .", "imgid": 0, "sentid": 0}]}
    images = [image | {"split": "test", "filename": "1007129816.jpg"}]
    path = write_json(tmp_path / "dataset_flickr30k.json", {"images": images, "dataset": "flickr30k"})
    root = touch(tmp_path / "images", ["flickr30k-images/1007129816.jpg"])
    works("flickr30k", "--karpathy", path, "--images", root, "--output", tmp_path / "out", *FREE)
    assert lines(tmp_path / "out" / "images.tsv") == ["1007129816.jpg\tflickr30k-images/1007129816.jpg"]
