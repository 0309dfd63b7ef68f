"""Evaluation sets: XTD10, Crossmodal-3600, xFlickr&CO, WIT, Flickr30k-CN and Tatoeba; all sets from one folder."""

import importlib
import json
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from tests.downloads import (
    FREE,
    annotations,
    babel,
    karpathy,
    karpathy_image,
    lines,
    manifest,
    refuses,
    sts_files,
    touch,
    works,
    write,
    write_json_lines,
)

NAMES = ["COCO_train2014_000000061844.jpg", "COCO_val2014_000000000042.jpg"]


@pytest.fixture
def xtd10(tmp_path: Path) -> Path:
    """The repository."""
    folder = tmp_path / "xtd10"
    write(folder / "XTD10" / "test_image_names.txt", "".join(f"{name}\n" for name in NAMES))
    write(folder / "XTD10" / "test_1kcaptions_zh.txt", "一只，狗\n两\u3000只猫")
    write(folder / "MIC" / "test_1kcaptions_de.txt", "ein Hund\r\n\tzwei\tKatzen\r\n")
    write(folder / "STAIR" / "test_1kcaptions_jp.txt", "犬\n猫\n")
    return folder


def test_xtd10(tmp_path: Path, xtd10: Path) -> None:
    options = ["--folder", xtd10, "--languages", "de", "ja", "zh", "--output", tmp_path / "out"]
    works("xtd10", *options, *FREE)
    assert lines(tmp_path / "out" / "test.zh") == ["一只，狗", "两 只猫"]
    assert lines(tmp_path / "out" / "test.de") == ["ein Hund", "zwei Katzen"]
    assert lines(tmp_path / "out" / "test.ja.ids") == NAMES
    assert lines(tmp_path / "out" / "images.tsv") == [
        f"{NAMES[0]}\ttrain2014/{NAMES[0]}",
        f"{NAMES[1]}\tval2014/{NAMES[1]}",
    ]
    assert "Leak: 800 of the 1,000 images" in manifest(tmp_path / "out")["notes"][0]
    assert "test.de: has 2 captions, but 1000 were published" in refuses("xtd10", *options)
    assert "test_1kcaptions_en.txt: not found" in refuses("xtd10", "--folder", xtd10, "--output", tmp_path / "x", *FREE)
    root = touch(tmp_path / "images", [NAMES[0]])
    assert f"the image {NAMES[1]} is missing: there is no val2014" in refuses(
        "xtd10", *options, *FREE, "--images", root
    )
    write(xtd10 / "MIC" / "test_1kcaptions_de.txt", "ein Hund\n \n")
    assert "test_1kcaptions_de.txt, line 2: the caption of" in refuses("xtd10", *options, *FREE)
    write(xtd10 / "MIC" / "test_1kcaptions_de.txt", "ein Hund\n")
    assert "has 1 lines, but" in refuses("xtd10", *options, *FREE)


def xm3600_record(key: str, **captions: list[str]) -> dict[str, object]:
    """An image of `captions.jsonl`."""
    languages = {
        lang: {"caption": texts, "caption/tokenized": texts, "caption/tokenized/lowercase": texts}
        for lang, texts in captions.items()
    }
    return {"image/key": key, "image/locale": "en", **languages}


def test_xm3600(tmp_path: Path) -> None:
    records = [xm3600_record("00ab", en=["A dog", "Two\u2028dogs"], te=["కుక్క"])]
    records += [xm3600_record("01", en=["x"], te=["y"])]
    path = write_json_lines(tmp_path / "captions.jsonl", records)
    options = ["--captions", path, "--languages", "en", "te", *FREE, "--output"]
    works("xm3600", *options, tmp_path / "all")
    assert lines(tmp_path / "all" / "test.en") == ["A dog", "Two dogs", "x"]
    assert lines(tmp_path / "all" / "test.en.ids") == ["00ab.jpg", "00ab.jpg", "01.jpg"]
    works("xm3600", *options, tmp_path / "first", "--first-only")
    assert lines(tmp_path / "first" / "test.en") == ["A dog", "x"]
    names = [manifest(tmp_path / out)["name"] for out in ("all", "first")]
    assert names == ["Crossmodal-3600", "Crossmodal-3600 (first captions)"]
    assert "line 1: has no 'ar' of type dict" in refuses("xm3600", "--captions", path, "--output", tmp_path / "x")
    write_json_lines(path, [*records, records[0]])
    assert "line 3: the image '00ab' is already at" in refuses("xm3600", *options, tmp_path / "x")
    write(path, '{"image/key": 3}\n')
    assert "has no 'image/key' of type str" in refuses("xm3600", *options, tmp_path / "x")
    write(path, '{"image/key"\n')
    assert "line 1: is not JSON" in refuses("xm3600", *options, tmp_path / "x")
    write(path, "[]\n")
    assert "line 1: is not a JSON object" in refuses("xm3600", *options, tmp_path / "x")


def iglue(folder: Path) -> Path:
    """The repository's folder `datasets`."""
    test = [
        {"sentences": ["Ein\tHund"], "id": "1007129816", "img_path": "1007129816.jpg"},
        {"sentences": ["Motorrad\u2028fahrer"], "id": 42, "img_path": NAMES[1]},
    ]
    few: list[dict[str, object]] = [{"sentences": ["eins", "zwei"], "id": "7", "img_path": "7.jpg"}]
    english: list[dict[str, object]] = [
        {"sentences": ["It&#39;s a dog"], "id": "1007129816", "img_path": "1007129816.jpg"}
    ]
    write_json_lines(folder / "xFlickrCO" / "annotations_machine-translate" / "de" / "test_gmt.jsonl", english)
    write_json_lines(folder / "xFlickrCO" / "annotations" / "de" / "test.jsonl", test)
    write_json_lines(folder / "xFlickrCO" / "annotations" / "de" / "train_1.jsonl", few)
    item = {"image_idx": 43, "image_url": "http://x/a%20b.svg", "meta_url": "http://x", "page_url": "http://y"}
    wit = [
        item | {"wit_ix": "wit-test_11", "caption_reference_description": "Asend „Montanas“", "language": "et"},
        item | {"wit_ix": "wit-test_11", "caption_reference_description": "Zwei", "language": "et"},
    ]
    write_json_lines(folder / "wit" / "annotations" / "test_et.jsonl", wit)
    captioned: list[dict[str, object]] = [wit[0] | {"caption_reference_description": "Built Montanas"}]
    write_json_lines(folder / "wit" / "annotations_machine-translate" / "test_et_gmt.jsonl", captioned)
    return folder


def test_xflickrco(tmp_path: Path) -> None:
    folder = iglue(tmp_path) / "xFlickrCO" / "annotations"
    root = touch(tmp_path / "images", ["flickr30k-images/1007129816.jpg", f"val2014/{NAMES[1]}", "7.jpg"])
    options = ["--annotations", folder, "--languages", "de", "--output", tmp_path / "out"]
    works("xflickrco", *options, "--shots", 1, "--images", root, *FREE)
    assert lines(tmp_path / "out" / "test.de") == ["Ein Hund", "Motorrad fahrer"]
    assert lines(tmp_path / "out" / "test.de.ids") == ["1007129816.jpg", NAMES[1]]
    assert lines(tmp_path / "out" / "train.de.ids") == ["7.jpg", "7.jpg"]
    assert "test.de: has 2 captions, but 2000" in refuses("xflickrco", *options)
    assert "train_5.jsonl: not found" in refuses("xflickrco", *options, "--shots", 5, *FREE)


def test_machine_translated_test_sets(tmp_path: Path) -> None:
    """A split of its own beside test, in the languages that its English comes from."""
    folder, out = iglue(tmp_path), tmp_path / "out"
    for name, lang, sentence in (("xFlickrCO", "de", "It&#39;s a dog"), ("wit", "et", "Built Montanas")):
        options = ["--annotations", folder / name / "annotations", "--languages", lang, *FREE]
        translated = folder / name / "annotations_machine-translate"
        works(name.lower(), *options, "--translated", translated, "--output", out / name)
        assert lines(out / name / f"test_gmt.{lang}") == [sentence]
        assert manifest(out / name)["splits"].keys() == {"test", "test_gmt"}


def test_pictures_of_wit_from_tables(tmp_path: Path, shared_dir: Path) -> None:
    """The published tables of pixels; rows of other images are passed over."""
    source = shared_dir / "fixtures" / "ccrk" / "ccrk_formats" / "wit"
    if not source.is_dir():
        pytest.skip(f"{source} is missing")
    annotations = [json.loads(line) for line in lines(source / "annotations" / "test_en.jsonl")]
    for record in annotations:
        record["wit_ix"] = "wit-test_" + record["image_url"][-5]
    folder = tmp_path / "annotations"
    write_json_lines(folder / "test_en.jsonl", [record for record in annotations if record["wit_ix"] != "wit-test_2"])
    tables = sorted((source / "pixels").iterdir())
    options = ["--annotations", folder, "--languages", "en", *FREE]
    works("wit", *options, "--pixels", *tables, "--output", tmp_path / "out")
    listed = dict(line.split("\t") for line in lines(tmp_path / "out" / "images.tsv"))
    assert listed == {f"wit-test_{number}": f"wit-test_{number}.png" for number in (0, 1, 3)}
    for name in listed.values():
        Image.open(tmp_path / "out" / "images" / name).load()
    assert not (tmp_path / "out" / "images" / "wit-test_2.png").exists()
    said = refuses("wit", *options, "--pixels", tables[0], "--output", tmp_path / "x")
    assert "the picture of wit-test_3 is in none of --pixels" in said


def test_few_shots_of_a_file_of_ids(tmp_path: Path) -> None:
    """Training captions of the named images; every other split stays whole."""
    folder = iglue(tmp_path) / "xFlickrCO" / "annotations"
    few: list[dict[str, object]] = [
        {"sentences": [text], "id": text, "img_path": f"{text}.jpg"} for text in ("7", "8", "9")
    ]
    write_json_lines(folder / "de" / "train_3.jsonl", few)
    write(tmp_path / "ids", "9\n7.jpg\n")
    options = ["--annotations", folder, "--languages", "de", "--shots", 3, "--few-shot-ids", tmp_path / "ids", *FREE]
    works("xflickrco", *options, "--output", tmp_path / "out")
    assert lines(tmp_path / "out" / "train.de.ids") == ["7.jpg", "9.jpg"]
    assert len(lines(tmp_path / "out" / "test.de")) == 2
    write(tmp_path / "ids", "7\n1007129816\n")  # a test image
    said = refuses("xflickrco", *options, "--output", tmp_path / "x")
    assert f"{tmp_path}/ids, line 2: image '1007129816' has no training caption in de" in said
    assert "line 2: " not in said.partition("ids, line 2: ")[2]
    write(tmp_path / "ids", "\n")
    assert "ids: names no image; give one id a line" in refuses("xflickrco", *options, "--output", tmp_path / "x")


def test_wit(tmp_path: Path) -> None:
    folder = iglue(tmp_path) / "wit" / "annotations"
    root = touch(tmp_path / "images", ["wit-test_11.png"])
    works("wit", "--annotations", folder, "--languages", "et", "--images", root, "--output", tmp_path / "out")
    assert lines(tmp_path / "out" / "test.et") == ["Asend „Montanas“", "Zwei"]
    assert lines(tmp_path / "out" / "images.tsv") == ["wit-test_11\twit-test_11.png"]
    (folder / "test_et.jsonl").rename(folder / "test_en.jsonl")
    error = refuses("wit", "--annotations", folder, "--languages", "en", "--output", tmp_path / "out")
    assert "line 1: is in 'et', but the file is named for en" in error


@pytest.mark.parametrize(
    ("name", "text", "options"),
    [
        ("flickr30k_cn_test.txt", "1007129816#0\t一只狗\r\n1007129816#1\t狗，在\t这里\n", []),
        ("flickr30k_cn_test.txt", "image,caption\n1007129816.jpg,一只狗\n1007129816.jpg\t狗，在 这里\n\n", []),
        ("test.txt", "1007129816.jpg#zhm#0 一:m 只:q 狗:n\n1007129816#zhb#1 狗:n ，:w 在:p\t这里:r\n", ["--segmented"]),
        (
            "test_texts.jsonl",
            '{"text_id": 1, "text": "一只狗", "image_ids": [1007129816]}\n'
            '{"text_id": 2, "text": "狗，在\\t这里", "image_ids": [1007129816]}\n',
            [],
        ),
    ],
)
def test_flickr30k_cn(tmp_path: Path, name: str, text: str, options: list[str]) -> None:
    path = write(tmp_path / name, text)
    works("flickr30k_cn", "--test", path, "--output", tmp_path / "out", *FREE, *options)
    second = "狗，在这里" if options else "狗，在 这里"
    assert lines(tmp_path / "out" / "test.zh") == ["一只狗", second]
    assert lines(tmp_path / "out" / "test.zh.ids") == ["1007129816.jpg"] * 2


def test_flickr30k_cn_with_a_different_shape(tmp_path: Path) -> None:
    tagged = write(tmp_path / "a.txt", "100#0\t一:m 只:q 狗:n\n")
    error = refuses("flickr30k_cn", "--test", tagged, "--output", tmp_path / "out", *FREE)
    assert "line 1: has part-of-speech tags" in error
    wrong = write(tmp_path / "b.txt", "eine Zeile\n")
    assert "line 1: is not of the form" in refuses("flickr30k_cn", "--test", wrong, "--output", tmp_path / "out")
    assert "give at least one of --train" in refuses("flickr30k_cn", "--output", tmp_path / "out")


def laser(folder: Path) -> Path:
    """Two languages of LASER's Tatoeba."""
    for lang, texts in {"deu": "Hallo.\r\nTschüss.\r\n", "cmn": "你好。\n再\u3000见！\n"}.items():
        write(folder / f"tatoeba.{lang}-eng.{lang}", texts)
        write(folder / f"tatoeba.{lang}-eng.eng", "Hello.\nBye\tbye.\n")
    return folder


def test_tatoeba(tmp_path: Path) -> None:
    folder = laser(tmp_path / "v1")
    options = ["--folder", folder, "--output", tmp_path / "out"]
    assert "has 2 languages, but 112 were published" in refuses("tatoeba", *options)
    works("tatoeba", *options, *FREE)
    assert lines(tmp_path / "out" / "test.cmn-eng.cmn") == ["你好。", "再 见！"]
    assert lines(tmp_path / "out" / "test.deu-eng.eng") == ["Hello.", "Bye bye."]
    assert manifest(tmp_path / "out")["pairs"] == {"cmn-eng": 2, "deu-eng": 2}
    works("tatoeba", *options, "--languages", "deu")
    assert "has no tatoeba.xxx-eng.xxx" in refuses("tatoeba", *options, "--languages", "xxx")
    write(folder / "tatoeba.deu-eng.eng", "Hello.\n\n")
    assert "line 2: the sentence is empty" in refuses("tatoeba", *options, "--languages", "deu")
    write(folder / "tatoeba.deu-eng.eng", "Hello.\n")
    assert "has 1 lines, but" in refuses("tatoeba", *options, "--languages", "deu")
    assert "has no file tatoeba.XXX" in refuses("tatoeba", "--folder", tmp_path, "--output", tmp_path / "out")


def coco_downloads(downloads: Path, xtd10: Path) -> None:
    """Sets with COCO's images."""
    karpathy(downloads / "coco" / "dataset_coco.json", [karpathy_image(n, "test", ["a cat"]) for n in (42, 43)])
    touch(downloads / "coco", [f"val2014/COCO_val2014_{number:012d}.jpg" for number in (42, 43)])
    touch(downloads / "coco" / "train2014", [NAMES[0]])
    annotations(downloads / "stair" / "stair_captions_v1.2_val.json", {42: ["猫"], 43: ["犬"]})
    folder = downloads / "coco-cn" / "coco-cn-version1805v1.1"
    write(folder / "imageid.human-written-caption.txt", "COCO_val2014_000000000042#0\t猫\n")
    for part in ("train", "val", "test"):
        write(folder / f"coco-cn_{part}.txt", "COCO_val2014_000000000042\n" if part == "test" else "")
    for lang in ("en", "fr"):
        write(xtd10 / "MIC" / f"test_1kcaptions_{lang}.txt", "x\ny\n")
    for lang in ("es", "it", "ko", "pl", "ru", "tr"):
        write(xtd10 / "XTD10" / f"test_1kcaptions_{lang}.txt", "x\ny\n")


def flickr_downloads(downloads: Path) -> None:
    """Sets with Flickr30k's images."""
    touch(downloads / "flickr30k", ["1007129816.jpg"])
    write(downloads / "flickr30k-cn" / "flickr30k_cn_test.txt", "1007129816#0\t一只狗\n")
    for task, split, name in ((1, "test_2016_flickr", "test_2016_flickr"), (2, "test_2016", "test_2016_images")):
        folder = downloads / "multi30k" / "data" / f"task{task}"
        write(folder / "image_splits" / f"{name}.txt", "1007129816.jpg\n")
        for number in ("",) if task == 1 else (".1", ".2", ".3", ".4", ".5"):
            write(folder / "raw" / f"{split}{number}.de.gz", "Ein Mann.\n")


def other_downloads(downloads: Path) -> None:
    """The other downloads, with images where evaluation.sh expects some."""
    datasets = downloads / "iglue" / "datasets"
    for lang in importlib.import_module("xflickrco").LANGUAGES:
        record = {"sentences": ["x"], "id": 42, "img_path": NAMES[1]}
        write_json_lines(datasets / "xFlickrCO" / "annotations" / lang / "test.jsonl", [record])
    for lang in importlib.import_module("wit").LANGUAGES:
        record = {"wit_ix": "wit-test_1", "caption_reference_description": "x", "language": lang}
        write_json_lines(datasets / "wit" / "annotations" / f"test_{lang}.jsonl", [record])
    captions = {lang: ["x"] for lang in importlib.import_module("xm3600").LANGUAGES}
    write_json_lines(downloads / "xm3600" / "captions.jsonl", [xm3600_record("00ab", **captions)])
    touch(downloads / "xm3600" / "images", ["00ab.jpg"])
    babel(downloads / "babel-imagenet" / "data", {"DE": [[0], ["Schleie"]]})
    laser(downloads / "laser" / "data" / "tatoeba" / "v1")
    sts_files(downloads)


def test_all_sets_from_one_folder_of_downloads(tmp_path: Path, xtd10: Path, repository_root: Path) -> None:
    coco_downloads(tmp_path, xtd10)
    flickr_downloads(tmp_path)
    other_downloads(tmp_path)

    def make() -> str:
        command = ["preprocess/evaluation.sh", "--downloads", tmp_path, "--output", tmp_path / "sets", *FREE]
        done = subprocess.run(list(map(str, command)), cwd=repository_root, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "not downloaded" not in make()
    sets = tmp_path / "sets"
    made = {path.name for path in sets.iterdir() if not path.name.startswith(".")}
    coco = {"coco-en", "coco-ja", "coco-zh", "xtd10", "xflickrco"}
    flickr = {"flickr30k-cn", "multi30k-task1", "multi30k-task2"}
    assert made == coco | flickr | {"xm3600", "wit", "tatoeba", "sts", "babel-imagenet"}
    assert all((sets / name / "manifest.json").is_file() for name in made)
    assert manifest(sets / "xflickrco")["images"] == {"list": "images.tsv", "count": 1, "checked": True}
    assert manifest(sets / "coco-ja")["splits"]["test"]["ja"]["images"] == 2


def test_a_set_that_fails_does_not_stop_the_others(tmp_path: Path, repository_root: Path) -> None:
    sts_files(tmp_path)
    write(tmp_path / "xm3600" / "captions.jsonl", "[]\n")
    laser(tmp_path / "laser" / "data" / "tatoeba" / "v1")
    (tmp_path / "babel-imagenet").mkdir()
    command = [str(repository_root / "preprocess" / "evaluation.sh"), "--downloads", str(tmp_path)]
    command += ["--output", str(tmp_path / "sets"), *FREE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    error = "evaluation.sh: error: these sets failed (see the errors above): xm3600 babel-imagenet"
    assert done.stderr.splitlines()[-1] == error
    assert "xm3600.py: " in done.stderr
    assert "not downloaded: coco-zh (coco-cn)" in done.stdout
    assert {path.parent.name for path in (tmp_path / "sets").glob("*/manifest.json")} == {"tatoeba", "sts"}


def test_sets_without_a_download_are_listed(tmp_path: Path, repository_root: Path) -> None:
    laser(tmp_path / "laser" / "data" / "tatoeba" / "v1")
    command = [str(repository_root / "preprocess" / "evaluation.sh"), "--downloads", str(tmp_path)]
    command += ["--output", str(tmp_path / "sets"), *FREE]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert [path.name for path in (tmp_path / "sets").iterdir()] == ["tatoeba"]
    assert "not downloaded: coco-zh (coco-cn)" in done.stdout
    assert "not downloaded: sts (stsb, stsb-multi, sts2017)" in done.stdout
