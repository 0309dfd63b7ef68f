"""CC3M: tables and webdataset tars."""

from pathlib import Path

import pytest

from tests.downloads import (
    FREE,
    lines,
    manifest,
    refuses,
    sample,
    touch,
    webdataset,
    works,
    write,
)


def test_cc3m_tsv(tmp_path: Path) -> None:
    text = (
        "caption\turl\na very typical bus station\thttp://a/b.jpg\r\nTom &amp; <b>Jerry</b>\tx\n\thttp://c\nlast\ty\n"
    )
    path = write(tmp_path / "Train_GCC-training.tsv", text)
    root = touch(tmp_path / "images/train", ["00000/000000000.jpg", "000000001.jpg", "000000002.jpg"]).parent
    command = ["--tsv", path, "--output", tmp_path / "out"]
    assert "caption of train/000000002.jpg is empty (--skip-budget 0" in refuses("cc3m", *command, *FREE)
    works("cc3m", *command, "--images", root, "--skip-budget", 2)
    assert lines(tmp_path / "out" / "train.en") == ["a very typical bus station", "Tom & Jerry"]
    assert lines(tmp_path / "out" / "train.en.ids") == [
        "train/000000000.jpg\ttrain/0",
        "train/000000001.jpg\ttrain/1",
    ]
    assert lines(tmp_path / "out" / "images.tsv")[0] == "train/000000000.jpg\ttrain/00000/000000000.jpg"
    assert manifest(tmp_path / "out")["left_out"]["missing image"][0] == 1
    assert "train.en: has 3 captions, but 3318333" in refuses("cc3m", *command, "--skip-budget", 1)
    assert "line 1: has 1 columns; at least 2" in refuses(
        "cc3m", "--tsv", write(path, "x\n"), "--output", tmp_path / "out"
    )


def test_cc3m_tars(tmp_path: Path) -> None:
    first = [*sample("000000000", "a dog"), *sample("000000002", "Two\ncats", b""), *sample("000000003", "three")]
    tars = [
        webdataset(tmp_path / "00000.tar", first),
        webdataset(tmp_path / "00001.tar", sample("000010000", "schÃ¶n")[:2]),
    ]
    out = tmp_path / "out"
    assert "the image 000000002 is missing" in refuses("cc3m", "--tar", *tars, "--output", out, "--workers", 1)
    works("cc3m", "--tar", *tars, "--output", out, "--workers", 2, "--skip-budget", 1)
    assert lines(out / "train.en") == ["a dog", "three", "schön"]
    assert lines(out / "train.en.ids")[2] == "train/00001/000010000.jpg\ttrain/2"
    assert lines(out / "images.tsv")[0] == "train/00000/000000000.jpg\ttrain/00000/000000000.jpg"
    assert (out / "images" / "train" / "00001" / "000010000.jpg").read_bytes() == b"\xff\xd8"
    assert [source["file"] for source in manifest(out)["sources"]] == ["00000.tar", "00001.tar"]


def test_cc3m_tars_of_both_splits(tmp_path: Path) -> None:
    """Both have a tar and an image of the same name."""
    tars = {
        split: webdataset(tmp_path / split / "00000.tar", sample("000000000", f"a {split} dog", split.encode()))
        for split in ("train", "valid")
    }
    out = tmp_path / "out"
    works("cc3m", "--tar", tars["train"], "--valid-tar", tars["valid"], "--output", out, "--workers", 1)
    for split in tars:
        assert lines(out / f"{split}.en") == [f"a {split} dog"]
        assert lines(out / f"{split}.en.ids") == [f"{split}/00000/000000000.jpg\t{split}/0"]
        assert (out / "images" / split / "00000" / "000000000.jpg").read_bytes() == split.encode()
    assert len(lines(out / "images.tsv")) == len(lines(out / "texts.en.tsv")) == 2
    assert manifest(out)["splits"].keys() == tars.keys()


def test_cc3m_tables_of_both_splits(tmp_path: Path) -> None:
    tables = [write(tmp_path / f"{split}.tsv", f"a {split} dog\tx\n") for split in ("train", "valid")]
    root = touch(tmp_path / "images", ["train/00000/000000000.jpg", "valid/000000000.jpg"])
    command = ["--tsv", tables[0], "--valid-tsv", tables[1], "--output", tmp_path / "out"]
    works("cc3m", *command, "--images", root)
    assert lines(tmp_path / "out" / "valid.en") == ["a valid dog"]
    assert lines(tmp_path / "out" / "images.tsv") == [
        "train/000000000.jpg\ttrain/00000/000000000.jpg",
        "valid/000000000.jpg\tvalid/000000000.jpg",
    ]
    assert "valid.en: has 1 captions, but 15840" in refuses("cc3m", *command[2:])
    assert "give either --tsv and" in refuses("cc3m", "--output", tmp_path / "out")
    assert "give either --tsv and" in refuses("cc3m", *command, "--valid-tar", tables[0])


def test_a_different_image_with_the_same_path_is_not_overwritten(tmp_path: Path) -> None:
    tar = webdataset(tmp_path / "00000.tar", sample("000000000", "a dog", b"one"))
    command = ["--tar", tar, "--output", tmp_path / "out", "--workers", 1]
    works("cc3m", *command)
    works("cc3m", *command)
    image = tmp_path / "out" / "images" / "train" / "00000" / "000000000.jpg"
    webdataset(tar, sample("000000000", "a dog", b"two"))
    assert f"sample 000000000: {image} already exists and is a different image" in refuses("cc3m", *command)
    assert image.read_bytes() == b"one"
    assert list(image.parent.iterdir()) == [image]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([*sample("a", "x"), *sample("b", "y"), *sample("a", "z")], "sample a: occurs twice"),
        ([("../../evil .sh", b"x")], "has a member '../../evil .sh' of 1 bytes, which img2dataset does not write"),
        ([("a.txt", b"x" * ((1 << 20) + 1))], "has a member 'a.txt' of 1048577 bytes"),
        ([("a.jpg", b"x"), ("a.txt", b"\xff")], "sample a: is not UTF-8"),
        ([("a.jpg", b"x"), ("a.json", b"{")], "sample a: its .json is not JSON"),
    ],
)
def test_tars_that_are_refused(tmp_path: Path, members: list[tuple[str, bytes]], message: str) -> None:
    tar = webdataset(tmp_path / "00000.tar", members)
    assert message in refuses("cc3m", "--tar", tar, "--output", tmp_path / "out", "--workers", 1)


def test_nothing_leaves_the_output(tmp_path: Path) -> None:
    tar = webdataset(tmp_path / "in" / "00000.tar", [("../../a.jpg", b"x"), ("/tmp/../a.txt", b"a dog")])
    works("cc3m", "--tar", tar, "--output", tmp_path / "in" / "out", "--workers", 1)
    assert {path.name for path in tmp_path.iterdir()} == {"in"}
    assert lines(tmp_path / "in" / "out" / "images.tsv") == ["train/00000/a.jpg\ttrain/00000/a.jpg"]
    truncated = write(tmp_path / "00001.tar", tar.read_bytes()[:700])
    assert "cannot be read" in refuses("cc3m", "--tar", truncated, "--output", tmp_path / "x", "--workers", 1)
    assert "two of the tars of train have the same name" in refuses(
        "cc3m", "--tar", tar, tar, "--output", tmp_path / "x"
    )
