"""Published sets as they really are: other layouts, empty captions, odd line ends, invisible text, Unicode names."""

import sys
import unicodedata
from pathlib import Path

import pytest

from tests.downloads import FREE, lines, manifest, refuses, touch, works, write, write_json_lines

IMAGES = ["COCO_val2014_000000000101.jpg", "COCO_train2014_000000000202.jpg"]
LANGUAGES = ("de", "en", "es", "fr", "it", "ja", "ko", "pl", "ru", "tr", "zh")


def xtd10(folder: Path, english: str) -> Path:
    """XTD10's repository with its English captions in a folder."""
    write(folder / "XTD10" / "test_image_names.txt", "".join(f"{name}\n" for name in IMAGES))
    places = {"STAIR": ["jp"], "MIC": ["de", "fr"], "XTD10": ["es", "it", "ko", "pl", "ru", "tr", "zh"]}
    for name, languages in places.items():
        for lang in languages:
            write(folder / name / f"test_1kcaptions_{lang}.txt", f"one {lang}\ntwo {lang}\n")
    write(folder / english / "test_1kcaptions_en.txt", f"one of {english}\ntwo of {english}\n")
    return folder


@pytest.mark.parametrize("english", ["XTD10", "MIC"])
def test_xtd10_of_any_snapshot(tmp_path: Path, english: str) -> None:
    works("xtd10", "--folder", xtd10(tmp_path / "repo", english), "--output", tmp_path / "out", *FREE)
    splits = manifest(tmp_path / "out")["splits"]["test"]
    assert sorted(splits) == sorted(LANGUAGES)
    assert {(it["lines"], it["images"]) for it in splits.values()} == {(2, 2)}
    assert lines(tmp_path / "out" / "test.en") == [f"one of {english}", f"two of {english}"]


def test_xtd10_prefers_the_newest_english_captions(tmp_path: Path) -> None:
    folder = xtd10(tmp_path / "repo", "MIC")
    works("xtd10", "--folder", xtd10(folder, "XTD10"), "--output", tmp_path / "out", *FREE)
    assert lines(tmp_path / "out" / "test.en") == ["one of XTD10", "two of XTD10"]


def wit(folder: Path, lang: str, captions: dict[str, str]) -> Path:
    records = [{"wit_ix": k, "caption_reference_description": text, "language": lang} for k, text in captions.items()]
    write_json_lines(folder / f"test_{lang}.jsonl", records)
    return folder


@pytest.mark.parametrize(("lang", "image"), [("el", "wit-test_6139"), ("id", "wit-test_7639")])
def test_wit_leaves_out_the_captions_that_are_empty_as_published(tmp_path: Path, lang: str, image: str) -> None:
    folder = wit(tmp_path, lang, {"wit-test_901": "one", image: "\u00a0", "wit-test_903": "three"})
    said = works("wit", "--annotations", folder, "--languages", lang, "--output", tmp_path / "out")
    facts = manifest(tmp_path / "out")
    assert lines(tmp_path / "out" / f"test.{lang}.ids") == ["wit-test_901", "wit-test_903"]
    assert facts["splits"]["test"][lang]["lines"] == facts["images"]["count"] == 2
    assert facts["published_empty"] == [f"test.{lang} {image}"]
    assert facts["left_out"]["empty in the published file"][0] == 1
    assert "left out, empty in the published file: 1; first" in said
    assert f"test_{lang}.jsonl, line 2: the caption of {image}" in said


def test_any_other_empty_caption_is_an_error_unless_it_is_named(tmp_path: Path) -> None:
    folder = wit(tmp_path, "el", {"wit-test_901": "one", "wit-test_902": "\u00a0", "wit-test_6139": ""})
    command = ["--annotations", folder, "--languages", "el", "--output", tmp_path / "out"]
    said = refuses("wit", *command)
    assert "line 2: the caption of wit-test_902 is empty; if the published file has it empty" in said
    assert "give --known-empty el:wit-test_902" in said
    said = works("wit", *command, "--known-empty", "el:wit-test_902")
    assert manifest(tmp_path / "out")["published_empty"] == ["test.el wit-test_902", "test.el wit-test_6139"]
    assert "left out, empty in the published file: test.el wit-test_6139" in said
    assert "--known-empty wit-test_902: write it as LANG:IMAGE" in refuses(
        "wit", *command, "--known-empty", "wit-test_902"
    )
    # The name belongs to Greek: in another language the same row is an error.
    wit(tmp_path, "id", {"wit-test_6139": " "})
    assert "line 1: the caption of wit-test_6139 is empty" in refuses(
        "wit", "--annotations", folder, "--languages", "id", "--output", tmp_path / "id"
    )


def xflickrco(folder: Path, lang: str, captions: dict[str, str]) -> Path:
    records = [{"sentences": [text], "id": 0, "img_path": image} for image, text in captions.items()]
    write_json_lines(folder / lang / "test.jsonl", records)
    return folder


@pytest.mark.parametrize(("lang", "image"), [("de", "COCO_val2014_000000122239.jpg"), ("id", "6312211170.jpg")])
@pytest.mark.parametrize("text", ["", "fixed"])
def test_xflickrco_counts_the_caption_that_is_empty_as_published(
    tmp_path: Path, lang: str, image: str, text: str
) -> None:
    captions = {f"{number}.jpg": f"caption {number}" for number in range(1999)} | {image: text}
    folder = xflickrco(tmp_path, lang, captions)
    works("xflickrco", "--annotations", folder, "--languages", lang, "--output", tmp_path / "out")
    facts = manifest(tmp_path / "out")
    assert facts["splits"]["test"][lang]["lines"] == (2000 if text else 1999)
    assert ("published_empty" in facts) == (not text)
    assert any("are left out" in note for note in facts["notes"])
    # One caption less is an error all the same.
    xflickrco(tmp_path, lang, dict(list(captions.items())[1:]))
    said = refuses("xflickrco", "--annotations", folder, "--languages", lang, "--output", tmp_path / "out")
    assert f"test.{lang}: has {1999 if text else 1998} captions, but 2000 were published" in said


@pytest.mark.parametrize("text", ["\u200b", "\u200d\ufe0f", "\u3164", "\u2060\u00a0", "\x7f"])
def test_a_caption_of_invisible_characters_is_empty(tmp_path: Path, text: str) -> None:
    folder = wit(tmp_path, "en", {"wit-test_1": text})
    said = refuses("wit", "--annotations", folder, "--languages", "en", "--output", tmp_path / "out")
    assert "the caption of wit-test_1 is empty" in said


@pytest.mark.parametrize("text", [".", "\U0001f469\u200d\U0001f680", "e\u0301", "می\u200cشود"])
def test_a_caption_of_visible_characters_is_kept_whole(tmp_path: Path, text: str) -> None:
    works(
        "wit",
        "--annotations",
        wit(tmp_path, "en", {"wit-test_1": text}),
        "--languages",
        "en",
        "--output",
        tmp_path / "o",
    )
    assert lines(tmp_path / "o" / "test.en") == [text]


def test_a_null_character_is_named_with_its_line(tmp_path: Path) -> None:
    folder = wit(tmp_path, "en", {"wit-test_1": "a dog", "wit-test_2": "a\0cat"})
    said = refuses("wit", "--annotations", folder, "--languages", "en", "--output", tmp_path / "out")
    assert "test_en.jsonl, line 2: holds a null character, as UTF-16 does" in said


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"1.jpg#0\ta dog\r2.jpg#0\ta cat\r", "line 1: has carriage returns but no line feeds; convert"),
        ("1.jpg#0\ta dog\n".encode("utf-16"), "line 1: is not UTF-8 but UTF-16; convert the file"),
        ("1.jpg#0\ta dog\n".encode("utf-16-le"), "line 1: is not of the form"),
    ],
)
def test_tables_of_other_line_ends_and_encodings(tmp_path: Path, content: bytes, message: str) -> None:
    path = write(tmp_path / "flickr30k_cn_test.txt", content)
    assert message in refuses("flickr30k_cn", "--test", path, "--output", tmp_path / "out", *FREE)


def test_quotes_of_a_csv_writer_are_undone(tmp_path: Path) -> None:
    path = write(tmp_path / "test.txt", 'image,caption\n1.jpg,"一只""狗"", 在这里"\n2.jpg,"猫\n3.jpg\t"猫"\n')
    works("flickr30k_cn", "--test", path, "--output", tmp_path / "out", *FREE)
    assert lines(tmp_path / "out" / "test.zh") == ['一只"狗", 在这里', '"猫', '"猫"']


@pytest.mark.parametrize("there", [unicodedata.normalize("NFD", "café.jpg"), "CAFÉ.jpg"])
def test_an_image_whose_name_differs_in_unicode_form_or_case_is_named(tmp_path: Path, there: str) -> None:
    folder = xflickrco(tmp_path / "annotations", "en", {"café.jpg": "a café"})
    root = touch(tmp_path / "images", [there])
    command = ["--annotations", folder, "--languages", "en", "--images", root, "--output", tmp_path / "out", *FREE]
    said = refuses("xflickrco", *command)
    assert (
        f"there is no café.jpg below {root}, but {there!a}, which differs only in case or Unicode form"
        in said.replace("\\\\", "\\")
    )


def test_cleaning_without_ftfy_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ftfy", None)
    monkeypatch.setitem(sys.modules, "ftfy.badness", None)
    path = write(tmp_path / "Train_GCC-training.tsv", "Tom &amp; Jerry\tx\n")
    said = refuses("cc3m", "--tsv", path, "--output", tmp_path / "out", *FREE)
    assert "ftfy is not installed; run pip install 'mclip_fairseq[prepare]'" in said
