"""`preprocess/ccrk.py`: the published files of CCRK as aligned captions."""

import base64
import io
import json
from pathlib import Path

import pytest
from PIL import Image

from mclip_fairseq.data.tokenizer import XLMRTokenizer
from tests.ccrk_models import archive, fixture_folder
from tests.downloads import lines, manifest, refuses, works

LANGUAGES = ["cs", "de", "en", "es", "fr", "id", "ja", "ru", "tr", "zh"]


def record(**changes: object) -> dict[str, object]:
    return {"caption": {"en": "A dog!", "de": "Ein Hund."}, "image_path": "images/a.png"} | changes


def json_lines(path: Path, *records: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(each, ensure_ascii=False) + "\n" for each in records), encoding="utf-8")
    return path


def test_the_published_files_become_aligned_captions(shared_dir: Path, tmp_path: Path) -> None:
    """All part files of a directory but its marker, and the released cleaning."""
    source = fixture_folder(shared_dir) / "ccrk_formats"
    works("ccrk", "--train", source / "pretrain", "--clean", "released", "--output", tmp_path, "--images", source)
    assert manifest(tmp_path)["splits"]["train"].keys() == set(LANGUAGES)
    assert lines(tmp_path / "train.en")[0] == "a red dog sits on the green grass"
    images = [line.split("\t")[0] for line in lines(tmp_path / "train.en.ids")]
    assert len(images) == 6
    for language in LANGUAGES:
        assert [line.split("\t")[0] for line in lines(tmp_path / f"train.{language}.ids")] == images
        assert len(lines(tmp_path / f"train.{language}")) == 6


def test_cleaned_captions_become_the_recorded_ids(shared_dir: Path, tmp_path: Path) -> None:
    source = fixture_folder(shared_dir) / "ccrk_formats"
    works("ccrk", "--train", source / "pretrain", "--clean", "released", "--output", tmp_path / "text")
    tokenizer = XLMRTokenizer(archive(shared_dir, tmp_path / "xlmr"), max_tokens=40)
    expected = json.loads((source / "expected.json").read_text(encoding="utf-8"))["pretrain"]["first_text_ids"]
    for language, ids in zip(LANGUAGES, expected, strict=True):
        own = tokenizer(lines(tmp_path / "text" / f"train.{language}")[0])[0].tolist()
        assert own + [1] * (40 - len(own)) == ids, language


def test_pictures_in_base64_are_written_beside_the_captions(shared_dir: Path, tmp_path: Path) -> None:
    source = fixture_folder(shared_dir) / "ccrk_formats" / "pretrain_base64.data"
    works("ccrk", "--train", source, "--languages", "en", "de", "--output", tmp_path)
    name = lines(tmp_path / "train.de.ids")[0]
    content = base64.b64decode(json.loads(source.read_text(encoding="utf-8").splitlines()[0])["image"])
    assert (tmp_path / "images" / name).read_bytes() == content
    Image.open(io.BytesIO(content)).load()


def test_tables_of_translations_become_aligned_captions(tmp_path: Path) -> None:
    """As mclip-translate writes them: the same ids in each language."""
    for language, rows in (("en", "b.png\ta dog\na.png\ta cat\n"), ("de", "a.png\teine Katze\nb.png\tein Hund\n")):
        (tmp_path / f"{language}.tsv").write_text(rows, encoding="utf-8")
    tables = [f"train.{language}={tmp_path / language}.tsv" for language in ("en", "de")]
    works("ccrk", "--tables", *tables, "--output", tmp_path / "out")
    assert lines(tmp_path / "out" / "train.de") == ["ein Hund", "eine Katze"]
    assert [line.split("\t")[0] for line in lines(tmp_path / "out" / "train.en.ids")] == ["b.png", "a.png"]
    (tmp_path / "de.tsv").write_text("a.png\teine Katze\n", encoding="utf-8")
    message = refuses("ccrk", "--tables", *tables, "--output", tmp_path / "other")
    assert "1 images of train, such as b.png, have no caption in some language" in message


def test_a_record_without_one_of_its_languages_is_an_error(shared_dir: Path, tmp_path: Path) -> None:
    """The released code passes over such records; here the file and line are named."""
    source = fixture_folder(shared_dir) / "ccrk_formats" / "pretrain_bad.data"
    said = refuses("ccrk", "--train", source, "--output", tmp_path / "out")
    assert "pretrain_bad.data, line 2: has no caption in tr; add it, leave the record out" in said
    without = [language for language in LANGUAGES if language != "tr"]
    said = refuses(
        "ccrk", "--train", source, "--languages", *without, "--clean", "released", "--output", tmp_path / "out"
    )
    assert "line 3: the caption of" in said
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"caption": {"en": "A dog!"}}, "has no caption in de"),
        ({"caption": ["A dog!"]}, "has no 'caption' of type dict"),
        ({"image_path": 3}, "has no 'image_path' of type str"),
        ({"image_path": "../a.png"}, "is not a valid image name"),
    ],
)
def test_bad_records_are_named(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    source = json_lines(tmp_path / "train.data", record(), record(**changes))
    assert message in refuses("ccrk", "--train", source, "--output", tmp_path / "out")


def test_pictures_that_are_none(tmp_path: Path) -> None:
    bad = record(image="%%%")
    del bad["image_path"]
    source = json_lines(tmp_path / "train.data", bad)
    assert "image is not base64" in refuses("ccrk", "--train", source, "--output", tmp_path / "out")
    source = json_lines(tmp_path / "train.data", bad | {"image": base64.b64encode(b"text").decode()})
    assert "is in no known format" in refuses("ccrk", "--train", source, "--output", tmp_path / "out")


def test_retrieval_files_and_prefixes(shared_dir: Path, tmp_path: Path) -> None:
    folder = fixture_folder(shared_dir) / "ccrk_formats"
    train, test = folder / "retrieval_train.json", folder / "retrieval_test.json"
    works("ccrk", "--retrieval", f"train.en={train}", f"test.en={test}", "--strip", "coco/", "--output", tmp_path)
    assert len(lines(tmp_path / "train.en")) == 5
    assert len(lines(tmp_path / "test.en")) == 12
    assert lines(tmp_path / "test.en.ids")[0] == "COCO_val2014_000000000000.png"
    assert "write it as SPLIT.LANG=FILE" in refuses("ccrk", "--retrieval", str(train), "--output", tmp_path / "x")
