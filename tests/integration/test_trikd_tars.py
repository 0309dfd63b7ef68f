"""Training on images that stay in webdataset tars: the same steps as with a folder, also after a resume."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.images import ImageError
from mclip_fairseq.storage.tar_index import TarImages, entries_of, open_images
from tests.runs import difference, state_of
from tests.tars import split_tars, write_tar
from tests.tiny_data import pixel_options

fsspec = pytest.importorskip("fsspec", reason="needs the extra scale")
Train = Callable[..., str]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MCLIP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def in_memory(photos: Path, folder: Path) -> str:
    """The images of a corpus as tars of the file system memory://; their pattern."""
    memory = fsspec.filesystem("memory")
    for tar in split_tars(photos / "images", folder, 5):
        memory.pipe(f"/train/{tar.name}", tar.read_bytes())
    return "memory://train/*.tar"


def test_tars_train_as_the_folder_does(photos: Path, tiny_corpus: Path, run_train: Train, tmp_path: Path) -> None:
    split_tars(photos / "images", tmp_path / "tars", 5)
    roots = {
        "folder": photos / "images",
        "file": f"file://{tmp_path}/tars/*.tar",
        "memory": in_memory(photos, tmp_path / "copy"),
    }
    for name, root in roots.items():
        workers = ("--num-workers", 2) if name == "memory" else ()
        run_train(*pixel_options(photos, tiny_corpus / "tokenizer", tmp_path / name, "--image-root", root, *workers))
    folder = state_of(tmp_path / "folder")
    assert difference(folder, state_of(tmp_path / "file")) == ""
    assert difference(folder, state_of(tmp_path / "memory")) == ""


def test_a_run_on_tars_resumes_to_the_sample(photos: Path, tiny_corpus: Path, run_train: Train, tmp_path: Path) -> None:
    root = in_memory(photos, tmp_path / "copy")
    common = ("--image-root", root, "--batch-size", 8)
    run_train(*pixel_options(photos, tiny_corpus / "tokenizer", tmp_path / "whole", *common, "--max-update", 5))
    run_train(*pixel_options(photos, tiny_corpus / "tokenizer", tmp_path / "broken", *common, "--max-update", 2))
    run_train(*pixel_options(photos, tiny_corpus / "tokenizer", tmp_path / "broken", *common, "--max-update", 5))
    assert difference(state_of(tmp_path / "whole"), state_of(tmp_path / "broken")) == ""


def test_an_image_is_found_by_key_ending_and_shard(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"x.png": b"first", "d/y.png": b"second", "y.txt": b"words"})
    write_tar(tmp_path / "b.tar", {"x.jpg": b"third", "z.png": b"fourth"})
    images = TarImages(f"{tmp_path}/*.tar")
    assert len(images) == 4
    for image_id, content in {
        "z": b"fourth",
        "z.png": b"fourth",
        "b/z.png": b"fourth",
        "d/y": b"second",
        "d/y.png": b"second",
        "a/x.png": b"first",
        "b/x": b"third",
        "a/d/y.png": b"second",
    }.items():
        assert images.open(image_id).read() == content, image_id
    with pytest.raises(UserError, match=r"2 tars have the image 'x\.png'; name it SHARD/KEY"):
        images.open("x.png")
    for missing in ("w", "a/z", "y", "c/x.png", ""):
        with pytest.raises(ImageError, match="is in none of the tars"):
            images.open(missing)
    again = pickle.loads(pickle.dumps(images))  # as a spawned loader process gets it
    assert again.open("z").read() == b"fourth"


def test_splits_may_have_tars_of_the_same_names(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        write_tar(tmp_path / split / "00.tar", {"1.png": split.encode()})
    images = TarImages(f"{tmp_path}/{{train,valid}}/*.tar")
    assert images.open("valid/00/1.png").read() == b"valid"  # as preprocess/own.py names it
    assert images.open("train/00/1").read() == b"train"
    for unclear in ("1", "00/1.png"):
        with pytest.raises(UserError, match="2 tars have the image"):
            images.open(unclear)


def test_a_tar_is_indexed_once_and_again_when_it_changes(tmp_path: Path, cache: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", {"x.png": b"first"})
    entries = entries_of(str(tar))
    (record,) = (cache / "tars").iterdir()
    assert (entries_of(str(tar)) == entries).all()
    record.write_bytes(b"damaged")
    assert (entries_of(str(tar)) == entries).all()
    write_tar(tmp_path / "a.tar", {"longer.png": b"other " * 2000})
    assert TarImages(str(tar)).open("longer").read() == b"other " * 2000


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"x.txt": b"words"}, "a.tar: holds no images"),
        ({"x.png": b"1", "x.jpg": b"2"}, "a.tar: has two images of the key 'x'"),
    ],
)
def test_a_tar_that_cannot_be_used(members: dict[str, bytes], message: str, tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", members)
    with pytest.raises(UserError, match=r"a\.tar") as caught:
        open_images(f"{tmp_path}/a.tar")
    assert message in str(caught.value)


def test_what_is_no_tar_or_gone(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"x" * 3000)
    with pytest.raises(UserError, match="is not a tar, or is truncated"):
        open_images(tmp_path / "a.tar")
    with pytest.raises(UserError, match="no such files; check the path"):
        open_images(tmp_path / "b.tar")
    tar = write_tar(tmp_path / "c.tar", {"x.png": b"first" * 1000})
    images = TarImages(str(tar))
    tar.write_bytes(b"")
    with pytest.raises(UserError, match="ends early, it has changed since the run began"):
        images.open("x")
    tar.unlink()
    with pytest.raises(UserError, match=r"c\.tar: no such file"):  # and not an image to be skipped
        images.open("x")


def test_an_unreadable_image_in_a_tar_is_named(
    photos: Path, tiny_corpus: Path, run_train: Train, tmp_path: Path
) -> None:
    shutil.copytree(photos / "images", tmp_path / "images")
    (tmp_path / "images" / "img7.png").write_bytes(b"<html>not found</html>")
    split_tars(tmp_path / "images", tmp_path / "tars", 5)
    options = pixel_options(
        photos, tiny_corpus / "tokenizer", tmp_path / "run", "--image-root", tmp_path / "tars" / "*.tar"
    )
    with pytest.raises(UserError, match=r"tars/\*\.tar, img7\.png: is not an image in a known format"):
        run_train(*options, "--max-epoch", 1)
    run_train(*options, "--skip-budget", 1, "--max-epoch", 1)
    assert "img7.png" in (tmp_path / "run" / "skipped.tsv").read_text()
