"""Captions of COCO's images: MSCOCO, STAIR Captions, YJ Captions and COCO-CN."""

import importlib
import json
import zipfile
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
    annotations,
    coco_cn,
    coco_split_file,
    karpathy,
    karpathy_image,
    lines,
    manifest,
    refuses,
    touch,
    works,
    write,
    write_json,
)


@pytest.fixture
def split_file(tmp_path: Path) -> Path:
    return coco_split_file(tmp_path)


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
    from mclip_fairseq.encoding.bulk import read_caption_list
    from mclip_fairseq.encoding.captions import read_caption_files
    from mclip_fairseq.storage.images import find_images

    root = touch(tmp_path / "images", [TRAIN, *[f"COCO_val2014_{number:012d}.jpg" for number in range(42, 48)]])
    out = tmp_path / "out"
    works("coco", "--karpathy", split_file, "--images", root, "--output", out, *FREE)
    images = find_images(root, out / "images.tsv").images
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
        ([karpathy_image(9, "train", ["a"])], [], "train.en: has 1 captions, but 566747 were published"),
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
            "'../x.jpg' is not a valid image name",
        ),
        (
            [{"filename": "x.jpg"}],
            FREE,
            "image 1: has no 'split' of type str; check that this is the file --help names",
        ),
        ([], FREE, "the source files hold no caption"),
    ],
)
def test_coco_with_a_different_shape(
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
    assert "the image COCO_val2014_000000000008.jpg is missing: there is no val2014/" in refuses("coco", *command, 1)
    works("coco", *command, 2)
    left_out = manifest(tmp_path / "out")["left_out"]
    assert {reason: count for reason, (count, _) in left_out.items()} == {"empty": 1, "missing image": 1}
    assert lines(tmp_path / "out" / "train.en") == ["a"]


@pytest.mark.parametrize("content", ["[1", '{"images": 3}', "[]", "[" * 100000, "\ufeff{}"])
def test_json_with_a_different_shape(tmp_path: Path, content: str) -> None:
    path = write(tmp_path / "dataset_coco.json", content)
    assert str(path) in refuses("coco", "--karpathy", path, "--output", tmp_path / "out")


@pytest.mark.parametrize("name", ["a\\ud800.jpg", "a\\u001b[31m.jpg", "a b.jpg", "../a.jpg"])
@pytest.mark.parametrize("text", ["a dog", " "])
def test_invalid_image_names(tmp_path: Path, name: str, text: str) -> None:
    image = json.dumps(karpathy_image(9, "train", [text]) | {"filename": "NAME"}).replace("NAME", name)
    path = write(tmp_path / "dataset_coco.json", f'{{"images": [{image}]}}')
    said = refuses("coco", "--karpathy", path, "--output", tmp_path / "out", *FREE)
    assert "dataset_coco.json, image 1: 'a" in said or "image 1: '../a" in said
    assert "is not a valid image name" in said
    assert said.strip().isprintable()


def test_stair_follows_the_split_file(tmp_path: Path, split_file: Path) -> None:
    train = annotations(tmp_path / "stair_captions_v1.2_train.json", {9: ["犬がいる。", "２匹\u3000の犬"]})
    others = {number: [f"画像{number}"] for number in (47, 46, 45, 44, 43, 42)}
    val = annotations(tmp_path / "stair_captions_v1.2_val.json", others, first=100)
    options = ["--karpathy", split_file, "--output", tmp_path / "out", *FREE]
    works("stair", "--captions", train, val, *options)
    assert lines(tmp_path / "out" / "train.ja") == ["犬がいる。", "２匹 の犬", "画像43"]
    assert lines(tmp_path / "out" / "test.ja") == ["画像42", "画像45", "画像46", "画像47"]
    assert lines(tmp_path / "out" / "train.ja.ids")[0] == TRAIN
    assert "has no Japanese caption in --captions" in refuses("stair", "--captions", train, *options)
    more = annotations(tmp_path / "more.json", {77: ["x"]}, first=900)
    assert "the image 77 is not in" in refuses("stair", "--captions", train, val, more, *options)


def test_yj_captions(tmp_path: Path, split_file: Path) -> None:
    path = annotations(tmp_path / "yjcaptions26k_clean.json", {9: ["犬\r\nがいる"], 42: ["猫"]})
    works("yjcaptions", "--captions", path, "--output", tmp_path / "alone", *FREE)
    assert lines(tmp_path / "alone" / "train.ja") == ["犬 がいる", "猫"]
    works("yjcaptions", "--captions", path, "--karpathy", split_file, "--output", tmp_path / "out", *FREE)
    assert lines(tmp_path / "out" / "test.ja.ids") == [VAL]
    assert "train.ja: has 2 captions, but 131740" in refuses(
        "yjcaptions", "--captions", path, "--output", tmp_path / "x"
    )
    twice = write_json(path, {"annotations": [{"id": 5, "image_id": 9, "caption": "犬"}] * 2})
    error = refuses("yjcaptions", "--captions", twice, "--output", tmp_path / "x", *FREE)
    assert "annotation 2: the annotation id 5 is already at" in error


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
    assert "test.zh: has 1 images, but 1000" in refuses("coco_cn", "--folder", folder, "--output", tmp_path / "x")


@pytest.mark.parametrize(
    ("captions", "message"),
    [
        ("COCO_val2014_000000000042#0\ta\nCOCO_val2014_000000000042#0\tb\n", "line 2: the caption 'COCO_val2014_0"),
        ("COCO_val2014_000000000042 a\n", "line 1: is not of the form 'COCO_val2014_000000000042#0, tab, caption'"),
        (
            "COCO_val2014_000000000099#0\ta\n",
            "line 1: the image COCO_val2014_000000000099 is in none of",
        ),
        ("COCO_val2014_000000000042#0\t \n", "line 1: the caption of COCO_val2014_000000000042.jpg is empty"),
    ],
)
def test_coco_cn_with_a_different_shape(tmp_path: Path, captions: str, message: str) -> None:
    folder = coco_cn(tmp_path / "coco-cn", captions)
    assert message in refuses("coco_cn", "--folder", folder, "--output", tmp_path / "out", *FREE)
