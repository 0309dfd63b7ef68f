"""Captions of images that are trained on: CC3M, MSCOCO, Multi30K, Flickr30k, STAIR, YJ Captions and COCO-CN."""

import importlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from corpora.tars import read_samples
from PIL import Image

from tests.downloads import (
    annotations,
    karpathy,
    karpathy_image,
    lines,
    manifest,
    refuses,
    run,
    tokenizer,
    touch,
    webdataset,
    works,
    write,
    write_json,
)
from tests.tiny_models import tiny_clip_directory

FREE = ["--expect-counts", "no"]
TRAIN = "COCO_train2014_000000000009.jpg"
VAL = "COCO_val2014_000000000042.jpg"


@pytest.fixture
def split_file(tmp_path: Path) -> Path:
    """`dataset_coco.json` of seven images, with the oddities of captions that people typed."""
    images = [
        karpathy_image(9, "train", ["A dog.\n", "Two\tdogs\u2028run "], "train2014"),
        karpathy_image(42, "test", ["a cat", "Cafe\u0301 ＣＡＦÉ！"]),
        karpathy_image(43, "restval", ["a car"]),
        karpathy_image(44, "val", ["a hat", "<b>a hat</b>"]),
        *[karpathy_image(number, "test", ["a bus"]) for number in (45, 46, 47)],
    ]
    return karpathy(tmp_path / "dataset_coco.json", images)


def test_coco(tmp_path: Path, split_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = touch(tmp_path / "images", [f"val2014/COCO_val2014_{number:012d}.jpg" for number in range(42, 48)])
    touch(root, [TRAIN])
    monkeypatch.setitem(importlib.import_module("coco").CORPUS.folds, "test", 2)
    out = tmp_path / "out"
    said = works("coco", "--karpathy", split_file, "--images", root, "--output", out, *FREE)
    assert lines(out / "train.en") == ["A dog.", "Two dogs run", "a car"]
    assert lines(out / "train.en.ids")[1:] == [f"{TRAIN}\ttrain/1", "COCO_val2014_000000000043.jpg\ttrain/2"]
    assert lines(out / "test.en")[:2] == ["a cat", "Cafe\u0301 ＣＡＦÉ！"]
    assert lines(out / "test.en.ids")[:2] == [VAL, VAL]
    assert lines(out / "valid.en") == ["a hat", "<b>a hat</b>"]
    assert lines(out / "texts.en.tsv")[-1] == "valid/1\t<b>a hat</b>"
    assert lines(out / "images.tsv")[:2] == [f"{TRAIN}\t{TRAIN}", f"{VAL}\tval2014/{VAL}"]
    assert [line.split("\t")[1] for line in lines(out / "test.folds.tsv")] == ["0", "0", "1", "1"]
    facts = manifest(out)
    assert facts["folds"] == {"test": {"folds": 2, "images": 2}}
    assert facts["splits"]["train"]["en"] == {"captions": "train.en", "ids": "train.en.ids", "lines": 3, "images": 2}
    assert facts["images"] == {"list": "images.tsv", "count": 7, "checked": True}
    assert facts["sources"][0]["file"] == "dataset_coco.json"
    assert set(facts["files"]) == {path.name for path in out.iterdir()} - {"manifest.json"}
    assert "test.en: 5 captions of 4 images" in said


def test_the_split_file_in_its_archive(tmp_path: Path, split_file: Path) -> None:
    plain, packed, renamed = tmp_path / "plain", tmp_path / "packed", tmp_path / "renamed"
    works("coco", "--karpathy", split_file, "--output", plain, *FREE)
    for name, members in (("mine.zip", 1), ("twice.zip", 2), ("caption_datasets.zip", 1)):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for number in range(members):
                archive.write(split_file, f"{number}/dataset_coco.json")
    works("coco", "--karpathy", tmp_path / "mine.zip", "--output", packed, *FREE)
    assert [lines(folder / "test.en") for folder in (packed, plain)] == [lines(plain / "test.en")] * 2
    said = refuses("coco", "--karpathy", tmp_path / "caption_datasets.zip", "--output", renamed, *FREE)
    assert "expected is 4cfd70132527b80933105e5829dc9034eaab9573482e2e680abbab6130244817; download it again" in said
    said = refuses("coco", "--karpathy", tmp_path / "twice.zip", "--output", renamed, *FREE)
    assert "twice.zip: holds 2 files dataset_coco.json; give that file itself" in said
    (tmp_path / "bad.zip").write_bytes(b"PK")
    assert "bad.zip: cannot be read" in refuses("flickr30k", "--karpathy", tmp_path / "bad.zip", "--output", renamed)


def test_the_project_reads_what_is_written(tmp_path: Path, split_file: Path) -> None:
    from mclip_fairseq.data.captions import read_caption_ids
    from mclip_fairseq.encoding.bulk import list_images, read_caption_list
    from mclip_fairseq.encoding.captions import read_caption_files

    root = touch(tmp_path / "images", [TRAIN, *[f"COCO_val2014_{number:012d}.jpg" for number in range(42, 48)]])
    out = tmp_path / "out"
    works("coco", "--karpathy", split_file, "--images", root, "--output", out, *FREE)
    images = list_images(out / "images.tsv", root)
    assert all(path.is_file() for _, path in images)
    texts = dict(read_caption_list(out / "texts.en.tsv"))
    image_ids, text_ids = read_caption_ids(out / "train.en.ids", 3)
    assert image_ids is not None
    assert text_ids is not None
    assert set(image_ids) <= {name for name, _ in images}
    assert [texts[name] for name in text_ids] == lines(out / "train.en")
    captions = read_caption_files([f"en={out / 'valid.en'}"], [f"en={out / 'valid.en.ids'}"])
    assert captions[0].ids == ["COCO_val2014_000000000044.jpg"] * 2


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        ([karpathy_image(9, "train", ["a"])], [], "train.en: 1 captions where 566747 were published"),
        (
            [karpathy_image(9, "train", ["a"])] * 2,
            FREE,
            "image 2: the image 'COCO_val2014_000000000009.jpg' is already at",
        ),
        ([karpathy_image(9, "dev", ["a"])], FREE, "image 1: the split 'dev' is not one of train, restval, val, test"),
        ([karpathy_image(9, "test", ["a", " "])], [*FREE, "--skip-budget", "9"], "image 1: the caption of COCO_val"),
        ([karpathy_image(9, "train", [" ", "a"])], FREE, "is empty (--skip-budget 0 is used up)"),
        (
            [karpathy_image(9, "train", ["a"]) | {"filename": "../x.jpg"}],
            FREE,
            "'../x.jpg' is no name that an image can",
        ),
        ([{"filename": "x.jpg"}], FREE, "image 1: has no 'split' of type str; is this the file that --help names?"),
        ([], FREE, "the source files hold no caption"),
    ],
)
def test_coco_of_another_shape(
    tmp_path: Path, images: list[dict[str, object]], options: list[str], message: str
) -> None:
    path = karpathy(tmp_path / "dataset_coco.json", images)
    assert message in refuses("coco", "--karpathy", path, "--output", tmp_path / "out", *options)
    assert not list((tmp_path / "out").iterdir())


def test_captions_without_text_or_image_are_left_out_within_the_budget(tmp_path: Path) -> None:
    images = [karpathy_image(9, "train", ["a", " "]), karpathy_image(8, "train", ["b"])]
    path = karpathy(tmp_path / "dataset_coco.json", images)
    root = touch(tmp_path / "images", ["COCO_val2014_000000000009.jpg"])
    command = ["--karpathy", path, "--images", root, "--output", tmp_path / "out", *FREE, "--skip-budget"]
    assert "the image COCO_val2014_000000000008.jpg is not there at val2014/" in refuses("coco", *command, 1)
    works("coco", *command, 2)
    left_out = manifest(tmp_path / "out")["left_out"]
    assert {reason: count for reason, (count, _) in left_out.items()} == {"empty": 1, "missing image": 1}
    assert lines(tmp_path / "out" / "train.en") == ["a"]


@pytest.mark.parametrize("content", ["[1", '{"images": 3}', "[]", "[" * 100000, "\ufeff{}"])
def test_no_json_of_that_shape(tmp_path: Path, content: str) -> None:
    path = write(tmp_path / "dataset_coco.json", content)
    assert str(path) in refuses("coco", "--karpathy", path, "--output", tmp_path / "out")


def test_json_is_bounded(tmp_path: Path, split_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("corpora.files.MAX_JSON", 100)
    assert "is larger than" in refuses("coco", "--karpathy", split_file, "--output", tmp_path / "out")


@pytest.mark.parametrize("suffix", [".json.gz", ".zip"])
def test_json_that_unpacks_to_far_more_is_refused(
    tmp_path: Path, split_file: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    content = split_file.read_bytes() + b" " * 1_000_000
    path = write(tmp_path / f"bomb{suffix}", content if suffix != ".zip" else packed_json(content))
    command = ["--karpathy", path, "--output", tmp_path / "out", *FREE]
    works("coco", *command)
    monkeypatch.setattr("corpora.files.BOMB_BYTES", 2000)
    limit = 200 * path.stat().st_size
    assert limit < len(content)
    assert f"bomb{suffix}: is larger than {limit} bytes, which no file" in refuses("coco", *command)


def test_json_of_many_lists_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("corpora.files.MAX_CONTAINERS", 1000)
    path = write(tmp_path / "dataset_coco.json", '{"images":[' + "[]," * 999 + "[]]}")
    said = refuses("coco", "--karpathy", path, "--output", tmp_path / "out", *FREE)
    assert "dataset_coco.json: has more than 1000 lists and objects" in said


def packed_json(content: bytes, **changes: int) -> bytes:
    """A zip archive of the split file; changes are made to both of its headers, by offset in the local one."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("dataset_coco.json", content)
    data = bytearray(stream.getvalue())
    for name, value in changes.items():
        offset = {"flags": 6, "method": 8}[name]
        for place in (offset, data.rindex(b"PK\1\2") + offset + 2):
            data[place : place + 2] = value.to_bytes(2, "little")
    return bytes(data)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"flags": 1}, "is encrypted, password required"), ({"method": 99}, "That compression method is not supported")],
)
def test_archives_that_cannot_be_unpacked(tmp_path: Path, changes: dict[str, int], message: str) -> None:
    path = write(tmp_path / "mine.zip", packed_json(b"{}", **changes))
    said = refuses("coco", "--karpathy", path, "--output", tmp_path / "out", *FREE)
    assert "mine.zip: cannot be read: " in said
    assert message in said


@pytest.mark.parametrize("name", ["a\\ud800.jpg", "a\\u001b[31m.jpg", "a b.jpg", "../a.jpg"])
@pytest.mark.parametrize("text", ["a dog", " "])
def test_names_that_no_image_can_have(tmp_path: Path, name: str, text: str) -> None:
    image = json.dumps(karpathy_image(9, "train", [text]) | {"filename": "NAME"}).replace("NAME", name)
    path = write(tmp_path / "dataset_coco.json", f'{{"images": [{image}]}}')
    said = refuses("coco", "--karpathy", path, "--output", tmp_path / "out", *FREE)
    assert "dataset_coco.json, image 1: 'a" in said or "image 1: '../a" in said
    assert "is no name that an image can have" in said
    assert said.strip().isprintable()


def test_stair_goes_by_the_split_file(tmp_path: Path, split_file: Path) -> None:
    train = annotations(tmp_path / "stair_captions_v1.2_train.json", {9: ["犬がいる。", "２匹\u3000の犬"]})
    others = {number: [f"画像{number}"] for number in (47, 46, 45, 44, 43, 42)}
    val = annotations(tmp_path / "stair_captions_v1.2_val.json", others, first=100)
    options = ["--karpathy", split_file, "--output", tmp_path / "out", *FREE]
    works("stair", "--captions", train, val, *options)
    assert lines(tmp_path / "out" / "train.ja") == ["犬がいる。", "２匹 の犬", "画像43"]
    assert lines(tmp_path / "out" / "test.ja") == ["画像42", "画像45", "画像46", "画像47"]
    assert lines(tmp_path / "out" / "train.ja.ids")[0] == TRAIN
    assert "has no Japanese caption in the files of --captions" in refuses("stair", "--captions", train, *options)
    more = annotations(tmp_path / "more.json", {77: ["x"]}, first=900)
    assert "the image 77 is not in" in refuses("stair", "--captions", train, val, more, *options)


def test_yj_captions(tmp_path: Path, split_file: Path) -> None:
    path = annotations(tmp_path / "yjcaptions26k_clean.json", {9: ["犬\r\nがいる"], 42: ["猫"]})
    works("yjcaptions", "--captions", path, "--output", tmp_path / "alone", *FREE)
    assert lines(tmp_path / "alone" / "train.ja") == ["犬 がいる", "猫"]
    works("yjcaptions", "--captions", path, "--karpathy", split_file, "--output", tmp_path / "out", *FREE)
    assert lines(tmp_path / "out" / "test.ja.ids") == [VAL]
    assert "train.ja: 2 captions where 131740" in refuses("yjcaptions", "--captions", path, "--output", tmp_path / "x")
    twice = write_json(path, {"annotations": [{"id": 5, "image_id": 9, "caption": "犬"}] * 2})
    error = refuses("yjcaptions", "--captions", twice, "--output", tmp_path / "x", *FREE)
    assert "annotation 2: the annotation id 5 is already at" in error


def coco_cn(folder: Path, captions: str) -> Path:
    """COCO-CN's folder."""
    write(folder / "coco-cn_train.txt", "COCO_train2014_000000000009\n")
    write(folder / "coco-cn_val.txt", "COCO_val2014_000000000044\r\n")
    write(folder / "coco-cn_test.txt", "COCO_val2014_000000000042\n\n")
    write(folder / "imageid.human-written-caption.txt", captions)
    return folder


def test_coco_cn(tmp_path: Path) -> None:
    captions = (
        "\ufeffCOCO_train2014_000000000009#0\t一只狗\t在这里\r\n"
        "COCO_val2014_000000000042#0\t一只猫，睡觉！\n"
        "\n"
        "COCO_val2014_000000000042#1\t猫\u2028在\n"
    )
    folder = coco_cn(tmp_path / "coco-cn-version1805v1.1", captions)
    write(folder / "imageid.manually-translated-caption.txt", "COCO_val2014_000000000042#0\t翻译\n")
    works("coco_cn", "--folder", folder, "--output", tmp_path / "out", *FREE)
    assert lines(tmp_path / "out" / "train.zh") == ["一只狗 在这里"]
    assert lines(tmp_path / "out" / "test.zh") == ["一只猫，睡觉！", "猫 在"]
    assert lines(tmp_path / "out" / "test.zh.ids") == [VAL, VAL]
    works("coco_cn", "--folder", folder, "--captions", "translated", "--output", tmp_path / "out2", *FREE)
    assert lines(tmp_path / "out2" / "test.zh") == ["翻译"]
    names = [manifest(tmp_path / out)["name"] for out in ("out", "out2")]
    assert names == ["COCO-CN", "COCO-CN (translated captions)"]
    assert "test.zh: 1 images where 1000" in refuses("coco_cn", "--folder", folder, "--output", tmp_path / "x")


@pytest.mark.parametrize(
    ("captions", "message"),
    [
        ("COCO_val2014_000000000042#0\ta\nCOCO_val2014_000000000042#0\tb\n", "line 2: the caption 'COCO_val2014_0"),
        ("COCO_val2014_000000000042 a\n", "line 1: write it as 'COCO_val2014_000000000042#0, tab, caption'"),
        (
            "COCO_val2014_000000000099#0\ta\n",
            "line 1: the image COCO_val2014_000000000099 is in none of",
        ),
        ("COCO_val2014_000000000042#0\t \n", "line 1: the caption of COCO_val2014_000000000042.jpg is empty"),
    ],
)
def test_coco_cn_of_another_shape(tmp_path: Path, captions: str, message: str) -> None:
    folder = coco_cn(tmp_path / "coco-cn", captions)
    assert message in refuses("coco_cn", "--folder", folder, "--output", tmp_path / "out", *FREE)


@pytest.fixture
def multi30k(tmp_path: Path) -> Path:
    """The repository's folder `data`."""
    data = tmp_path / "data"
    texts = {"en": "A dog.\nA cat.\n", "de": "Ein Hund.\r\nEine Katze.\r\n", "fr": "Un chien.\nUn\u00a0chat.\n"}
    for split in ("train", "val", "test_2016_flickr", "test_2017_mscoco"):
        for lang, text in texts.items():
            write(data / "task1" / "raw" / f"{split}.{lang}.gz", text)
        names = "1000092795.jpg\n10002456.jpg\n"
        if split == "test_2017_mscoco":
            names = f"{TRAIN}#367178\n{VAL}#657409\n"
        write(data / "task1" / "image_splits" / f"{split}.txt", names)
    for lang in ("en", "de"):
        for number in range(1, 6):
            write(data / "task2" / "raw" / f"test_2016.{number}.{lang}.gz", f"{lang} {number} a\n{lang} {number} b\n")
    write(data / "task2" / "image_splits" / "test_2016_images.txt", "36979.jpg\n65567.jpg\n")
    return data


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
    assert "train.en: 2 captions where 29000" in refuses("multi30k", "--data", multi30k, "--output", tmp_path / "x")
    chosen = ["--splits", "val", "--languages", "fr", "--data", multi30k, "--output", tmp_path / "fr", *FREE]
    works("multi30k", *chosen)
    assert manifest(tmp_path / "fr")["splits"].keys() == {"valid"}


def test_multi30k_names_the_option_where_a_split_has_its_images_elsewhere(tmp_path: Path, multi30k: Path) -> None:
    root = touch(tmp_path / "flickr30k", ["1000092795.jpg", "10002456.jpg"])
    command = ["--data", multi30k, "--images", root, "--output", tmp_path / "out", *FREE]
    said = refuses("multi30k", *command)
    assert f"{root}: has none of the images of test_2017_mscoco; add them, or name the splits whose images are" in said
    assert "--splits train val test_2016_flickr" in said
    works("multi30k", *command, "--splits", "train", "val", "test_2016_flickr")
    (root / "10002456.jpg").unlink()
    assert "the image 10002456.jpg is not there at" in refuses("multi30k", *command)


def test_another_set_is_not_overwritten(tmp_path: Path, multi30k: Path, split_file: Path) -> None:
    out = tmp_path / "out"
    for _ in range(2):
        works("multi30k", "--data", multi30k, "--output", out, *FREE)
    before = (out / "images.tsv").read_bytes()
    said = refuses("coco", "--karpathy", split_file, "--output", out, *FREE)
    assert f"{out}: holds Multi30K task 1 already, which MSCOCO (Karpathy split) would overwrite; give every" in said
    assert "which Multi30K task 2 would" in refuses("multi30k", "--task", 2, "--data", multi30k, "--output", out, *FREE)
    assert (out / "images.tsv").read_bytes() == before
    assert manifest(out)["name"] == "Multi30K task 1"
    write(out / "manifest.json", "[]")
    assert "holds something else already" in refuses("multi30k", "--data", multi30k, "--output", out, *FREE)


def test_multi30k_of_another_shape(tmp_path: Path, multi30k: Path) -> None:
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


def test_captions_of_more_lines_than_the_memory_holds(
    tmp_path: Path, multi30k: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("corpora.files.MAX_HELD", 2000)
    works("multi30k", "--data", multi30k, "--output", tmp_path / "out", *FREE)
    write(multi30k / "task1" / "raw" / "train.de.gz", "\n" * 100_000)
    said = refuses("multi30k", "--data", multi30k, "--output", tmp_path / "out", *FREE)
    assert "train.de.gz, line 21: no file of this data set has as many lines" in said


def test_flickr30k(tmp_path: Path) -> None:
    image = {"sentids": [0], "imgid": 0, "sentences": [{"tokens": ["a"], "raw": "A dog .", "imgid": 0, "sentid": 0}]}
    images = [image | {"split": "test", "filename": "1007129816.jpg"}]
    path = write_json(tmp_path / "dataset_flickr30k.json", {"images": images, "dataset": "flickr30k"})
    root = touch(tmp_path / "images", ["flickr30k-images/1007129816.jpg"])
    works("flickr30k", "--karpathy", path, "--images", root, "--output", tmp_path / "out", *FREE)
    assert lines(tmp_path / "out" / "images.tsv") == ["1007129816.jpg\tflickr30k-images/1007129816.jpg"]


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
    assert "train.en: 3 captions where 3318333" in refuses("cc3m", *command, "--skip-budget", 1)
    assert "line 1: has 1 columns where 2" in refuses("cc3m", "--tsv", write(path, "x\n"), "--output", tmp_path / "out")


def sample(key: str, caption: str, image: bytes = b"\xff\xd8") -> list[tuple[str, bytes]]:
    """A sample as img2dataset writes it."""
    record = {"url": "http://x", "caption": caption, "key": key, "status": "success", "error_message": None}
    members = [(f"{key}.jpg", image)] if image else []
    return [*members, (f"{key}.json", json.dumps(record).encode()), (f"{key}.txt", caption.encode())]


def test_cc3m_tars(tmp_path: Path) -> None:
    first = [*sample("000000000", "a dog"), *sample("000000002", "Two\ncats", b""), *sample("000000003", "three")]
    tars = [
        webdataset(tmp_path / "00000.tar", first),
        webdataset(tmp_path / "00001.tar", sample("000010000", "schÃ¶n")[:2]),
    ]
    out = tmp_path / "out"
    assert "the image 000000002 is not there" in refuses("cc3m", "--tar", *tars, "--output", out, "--workers", 1)
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
    assert "valid.en: 1 captions where 15840" in refuses("cc3m", *command[2:])
    assert "give either --tsv and" in refuses("cc3m", "--output", tmp_path / "out")
    assert "give either --tsv and" in refuses("cc3m", *command, "--valid-tar", tables[0])


def test_another_image_of_the_same_path_is_not_overwritten(tmp_path: Path) -> None:
    tar = webdataset(tmp_path / "00000.tar", sample("000000000", "a dog", b"one"))
    command = ["--tar", tar, "--output", tmp_path / "out", "--workers", 1]
    works("cc3m", *command)
    works("cc3m", *command)
    image = tmp_path / "out" / "images" / "train" / "00000" / "000000000.jpg"
    webdataset(tar, sample("000000000", "a dog", b"two"))
    assert f"sample 000000000: {image} is there already and is another image" in refuses("cc3m", *command)
    assert image.read_bytes() == b"one"
    assert list(image.parent.iterdir()) == [image]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([*sample("a", "x"), *sample("b", "y"), *sample("a", "z")], "sample a: is there twice"),
        ([("../../evil .sh", b"x")], "has a member '../../evil .sh' of 1 bytes, which is no sample's"),
        ([("a.txt", b"x" * ((1 << 20) + 1))], "has a member 'a.txt' of 1048577 bytes"),
        ([("a.jpg", b"x"), ("a.txt", b"\xff")], "sample a: is not UTF-8"),
        ([("a.jpg", b"x"), ("a.json", b"{")], "sample a: its .json is not JSON"),
    ],
)
def test_tars_that_are_refused(tmp_path: Path, members: list[tuple[str, bytes]], message: str) -> None:
    tar = webdataset(tmp_path / "00000.tar", members)
    assert message in refuses("cc3m", "--tar", tar, "--output", tmp_path / "out", "--workers", 1)


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """The header of a member, whatever follows it."""
    entry = tarfile.TarInfo(name)
    entry.size, entry.type = size, kind
    return entry.tobuf(tarfile.GNU_FORMAT)


def pieces(version: int) -> bytes:
    """A member that is said to be in pieces, their number being the first of its content."""
    entry = tarfile.TarInfo("a.txt")
    entry.size = 512
    entry.pax_headers = {
        "GNU.sparse.major": str(version),
        "GNU.sparse.minor": "0",
        "GNU.sparse.realsize": "512",
        **({} if version else {"GNU.sparse.size": "x"}),
    }
    return entry.tobuf(tarfile.PAX_FORMAT) + b"999999999\n".ljust(512, b"\0")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header("././@LongLink", 3 << 30, tarfile.GNUTYPE_LONGNAME), "a name or header of 3221225472 bytes"),
        (header("././@LongLink", 3 << 30, tarfile.GNUTYPE_LONGLINK), "a name or header of 3221225472 bytes"),
        (header("./PaxHeaders/a", 3 << 30, tarfile.XHDTYPE), "a name or header of 3221225472 bytes"),
        (header("./PaxHeaders/a", 3 << 30, tarfile.XGLTYPE), "a name or header of 3221225472 bytes"),
        (
            header("a.txt", 1) + b"x".ljust(512, b"\0") + header("b", 1 << 20, tarfile.XHDTYPE),
            "header of 1048576 bytes",
        ),
        (header("a.txt", 9, tarfile.GNUTYPE_SPARSE), "a file in pieces"),
        (pieces(1), "a file in pieces"),
        (pieces(0), "a file in pieces"),
        (header("a.bin", 3 << 30), "unpacks to more than 67108864 bytes"),
        (header("folder", 3 << 30, tarfile.FIFOTYPE), "unpacks to more than 67108864 bytes"),
    ],
)
@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_tars_that_would_fill_the_memory(tmp_path: Path, content: bytes, message: str, suffix: str) -> None:
    tar = write(tmp_path / f"00000{suffix}", content + bytes(1024))
    said = refuses("cc3m", "--tar", tar, "--output", tmp_path / "out", "--workers", 1)
    assert f"{tar}: " in said
    assert message in said


def test_a_tar_that_unpacks_to_far_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = webdataset(tmp_path / "plain.tar", [(f"{number}.txt", b"") for number in range(2000)])
    tar = write(tmp_path / "00000.tar.gz", plain.read_bytes())
    command = ["--tar", tar, "--output", tmp_path / "out", "--workers", 1, "--skip-budget", 2000]
    assert "no caption of the chosen" in refuses("cc3m", *command)
    monkeypatch.setattr("corpora.files.BOMB_BYTES", 1000)
    monkeypatch.setattr("corpora.files.BOMB_RATIO", 5)
    said = refuses("cc3m", *command)
    assert f"unpacks to more than {5 * tar.stat().st_size} bytes, as no images do" in said


def test_only_known_parts_of_a_sample_are_kept_and_their_sum_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = [(f"a.e{number}", b"x" * 1000) for number in range(50)]
    tar = webdataset(tmp_path / "00000.tar", [*others, *sample("a", "a dog"), ("b.e1", b"x")])
    read = list(read_samples(tar))
    assert [(it.key, sorted(it.parts)) for it in read] == [("a", ["jpg", "json", "txt"]), ("b", [])]
    monkeypatch.setattr("corpora.tars.MAX_SAMPLE", 1000)
    assert len(list(read_samples(tar))) == 2
    webdataset(tar, [("a.jpg", b"x" * 600), ("a.png", b"x" * 600)])
    with pytest.raises(ValueError, match="sample a: has more than 1000 bytes"):
        list(read_samples(tar))


def test_members_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[int] = []
    take = tarfile.TarFile.next

    def take_and_count(tar: tarfile.TarFile) -> tarfile.TarInfo | None:
        entry = take(tar)
        kept.append(len(vars(tar)["members"]))
        return entry

    monkeypatch.setattr(tarfile.TarFile, "next", take_and_count)
    tar = webdataset(tmp_path / "00000.tar", [(f"{number}.txt", b"") for number in range(20)])
    assert len(list(read_samples(tar))) == 20
    assert max(kept) <= 1


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


def test_from_download_to_fairseq(tmp_path: Path, split_file: Path, repository_root: Path) -> None:
    """The recipe, with a program in the place of mclip-features that writes down how it was called."""
    root = touch(tmp_path / "images", [TRAIN, *[f"COCO_val2014_{number:012d}.jpg" for number in range(42, 48)]])
    program = write(tmp_path / "bin" / "mclip-features", f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n')
    program.chmod(0o755)
    out = tmp_path / "coco"
    command: list[object] = ["preprocess/captions.sh", "--xlmr", tokenizer(tmp_path / "xlmr"), "--output", out]
    command += ["--images", root, "--teacher", "clip", "--store-dtype", "float32", "--"]
    command += ["coco", "--karpathy", split_file, *FREE]
    done = subprocess.run(
        list(map(str, command)),
        cwd=repository_root,
        env={**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    names = {path.name for path in (out / "bin").iterdir()}
    assert {"train.en-None.en.bin", "valid.en-None.en.idx", "train.en.ids", "valid.en.ids"} <= names
    assert not [name for name in names if name.startswith("test")]
    text = out / "text"
    assert lines(tmp_path / "calls") == [
        f"--model clip --images {text}/images.tsv --root {root} --output {out}/features/image --store-dtype float32",
        f"--model clip --captions {text}/texts.en.tsv --output {out}/features/text --store-dtype float32",
    ]


def several_sets(folder: Path) -> dict[str, tuple[list[list[object]], str]]:
    """The scripts and their arguments of docs/data.md's fine-tunings on several sets, and the languages."""
    split_file = karpathy(
        folder / "dataset_coco.json",
        [karpathy_image(42, "train", ["a dog", "the dog"]), karpathy_image(44, "val", ["a cat"])],
    )
    stair = annotations(folder / "stair.json", {42: ["犬がいる"], 44: ["猫がいる"]})
    cn = coco_cn(folder / "coco-cn", "COCO_train2014_000000000009#0\t一只狗\nCOCO_val2014_000000000044#0\t一只猫\n")
    data = folder / "data"
    for split, names in (("train", "1.jpg\n2.jpg\n"), ("val", "3.jpg\n4.jpg\n")):
        for task, languages, numbers, listed in (
            (1, "fr cs", [""], ""),
            (2, "en de", [f".{n}" for n in "12345"], "_images"),
        ):
            write(data / f"task{task}" / "image_splits" / f"{split}{listed}.txt", names)
            for lang in languages.split():
                for number in numbers:
                    write(data / f"task{task}" / "raw" / f"{split}{number}.{lang}.gz", f"{lang}{number} a\n{lang} b\n")
    multi30k = ["multi30k", "--data", data, "--splits", "train", "val", "--task"]
    return {
        "mscoco": (
            [
                ["coco", "--karpathy", split_file],
                ["stair", "--karpathy", split_file, "--captions", stair],
                ["coco_cn", "--folder", cn],
            ],
            "en,ja,zh",
        ),
        "multi30k": (
            [[*multi30k, 2, "--languages", "en", "de"], [*multi30k, 1, "--languages", "fr", "cs"]],
            "en,de,fr,cs",
        ),
    }


def pieces_and_binaries(folder: Path, xlmr: Path) -> None:
    """The rest of captions.sh, in this process."""
    ids = [path for split in ("train", "valid") for path in (folder / "text").glob(f"{split}.*.ids")]
    model = xlmr / "sentencepiece.bpe.model"
    works("encode", "--model", model, "--output", folder / "pieces", *[path.with_suffix("") for path in ids])
    command = ["--pieces", folder / "pieces", "--dictionary", xlmr / "dict.txt", "--output", folder / "bin"]
    works("binarise", *command, "--captions", *sorted({path.suffixes[0][1:] for path in ids}))
    for path in ids:
        shutil.copy(path, folder / "bin")


@pytest.mark.parametrize("case", ["mscoco", "multi30k"])
def test_training_on_several_sets_that_share_features(tmp_path: Path, run_train: Callable[..., str], case: str) -> None:
    from mclip_fairseq.cli.features import main as features

    sets, languages = several_sets(tmp_path)[case]
    names = [TRAIN, *(f"COCO_val2014_{number:012d}.jpg" for number in (42, 44)), *(f"{n}.jpg" for n in range(1, 5))]
    root, xlmr, made = tmp_path / "images", tokenizer(tmp_path / "xlmr"), []
    root.mkdir()
    for number, name in enumerate(names):
        Image.new("RGB", (40, 40), (30 * number, 0, 0)).save(root / name)
    for number, (script, *arguments) in enumerate(sets):
        made.append(tmp_path / f"set{number}")
        works(str(script), *arguments, "--images", root, "--output", made[-1] / "text", *FREE)
        pieces_and_binaries(made[-1], xlmr)
    listed = sorted({line for folder in made for line in lines(folder / "text" / "images.tsv")})
    write(tmp_path / "images.tsv", "\n".join(listed) + "\n")
    model = ["--model", str(tiny_clip_directory(tmp_path / "clip")), "--device", "cpu", "--output"]
    stores = [str(tmp_path / "features" / kind) for kind in ("image", "text")]
    assert features([*model, stores[0], "--images", str(tmp_path / "images.tsv"), "--root", str(root)]) == 0
    assert features([*model, stores[1], "--captions", str(made[0] / "text" / "texts.en.tsv")]) == 0
    log = run_train(
        *(":".join(str(folder / "bin") for folder in made), "--task", "trikd", "--langs", languages),
        *("--image-features", stores[0], "--text-features", stores[1], "--arch", "mclip_tiny", "--criterion", "trikd"),
        *("--freeze-text", "none", "--text-tokenizer", xlmr, "--num-workers", "0", "--optimizer", "sgd", "--lr", "0.1"),
        *("--batch-size", "2", "--max-epoch", "1", "--valid-retrieval", "--save-dir", tmp_path / "run"),
        "--no-progress-bar",
    )
    for lang in languages.split(","):
        assert f"train {lang}: " in log
        assert f"mean_recall_{lang}" in log


@pytest.mark.parametrize("recipe", ["parallel.sh", "captions.sh", "evaluation.sh"])
def test_recipes_help_and_refuse(tmp_path: Path, repository_root: Path, recipe: str) -> None:
    def call(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [str(repository_root / "preprocess" / recipe), *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert f"preprocess/{recipe} --" in call("--help").stdout
    assert call("--help").returncode == 0
    assert call().returncode == 2
    for wrong in (["--elvish", "x"], ["--output"], ["--output", tmp_path / "x", "en", "de", "--train"]):
        done = call(*wrong)
        assert done.returncode == 2
        assert done.stderr.startswith(recipe)


def test_help_of_every_script_says_where_the_data_are_from() -> None:
    scripts = ["parallel", "cc3m", "coco", "coco_cn", "flickr30k", "flickr30k_cn", "multi30k", "stair", "yjcaptions"]
    scripts += ["babel_imagenet", "sts", "tatoeba", "wit", "xflickrco", "xm3600", "xtd10"]
    for script in scripts:
        shown = run(script, "--help").out
        assert "rom the " in shown or "upon request" in shown.lower() or "passed on" in shown, script
        assert "http" not in shown
