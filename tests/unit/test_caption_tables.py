"""Tables of captions as other programs write them: read rightly, or refused by line."""

from __future__ import annotations

import gzip
import unicodedata
from pathlib import Path

import pytest

from mclip_fairseq.encoding.bulk import read_caption_list
from mclip_fairseq.encoding.captions import files_by_language, read_language_captions
from mclip_fairseq.encoding.galleries import IdIndex, ImageGallery
from mclip_fairseq.evaluation.benchmarks.retrieval import RetrievalBenchmark
from mclip_fairseq.storage.errors import UserError

GOOD = "1.jpg\ta dog\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (GOOD + "2.jpg\ta cat\ten\n", "line 2: has 3 columns"),
        (GOOD + '2.jpg\t"a ""red"" dog"\n', "line 2: is quoted as csv writers do"),
        (GOOD + '"2.jpg"\t"a dog"\n', "line 2: is quoted as csv writers do"),
        ('1.jpg\t"a dog"\n2.jpg\t"a cat"\n', "line 1: is quoted as csv writers do"),
        ("image\tcaption\n" + GOOD, "line 1: looks like a header; remove it"),
        ("image_id\tCaption\n" + GOOD, "line 1: looks like a header; remove it"),
        (
            GOOD + "2.jpg#0\ta dog\n",
            "line 2: the id '2.jpg#0' ends with the number of its caption; ids may not carry #N",
        ),
        ("1.jpg\ta dog\r2.jpg\ta cat\r", "line 1: has a carriage return inside"),
        (GOOD + "2.jpg\ta\0dog\n", "line 2: has a NUL character"),
        ("1.jpg\ta dog\n".encode("utf-16-le").decode("latin-1"), "line 1: has a NUL character"),
        (GOOD + "2.jpg\t\u200b\n", "line 2: is not 'image id, tab, caption'"),
        (GOOD + "2.jpg\t\u00a0\n", "line 2: is not 'image id, tab, caption'"),
        (GOOD + "\u200b\ta dog\n", "line 2: is not 'image id, tab, caption'"),
    ],
)
def test_what_is_no_table_of_captions_is_refused_by_line(tmp_path: Path, content: str, words: str) -> None:
    file = tmp_path / "xx.tsv"
    file.write_bytes(content.encode())
    with pytest.raises(UserError) as caught:
        read_language_captions("xx", file)
    assert words in str(caught.value)


@pytest.mark.parametrize("name", ["xx.csv", "xx.CSV.gz", "xx.jsonl", "xx.json"])
def test_a_table_in_another_form_is_not_one_caption_per_line(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(gzip.compress(GOOD.encode()) if name.endswith(".gz") else b"1.jpg,a dog\n")
    (tmp_path / "ids").write_text("1.jpg\n", encoding="utf-8")
    for read in (read_caption_list, lambda file: read_language_captions("xx", file, tmp_path / "ids")):
        with pytest.raises(UserError, match=r"is a table, and all of each line would become the caption; give a \.tsv"):
            read(tmp_path / name)


def test_a_language_has_a_name_that_can_be_seen() -> None:
    with pytest.raises(UserError, match="names a language that cannot be shown"):
        files_by_language(["\u200b=valid.de"], "--captions")


def test_captions_behind_their_ids_are_refused(tmp_path: Path) -> None:
    """As in results_20130124.token, with other separators than tabs."""
    (tmp_path / "ids").write_text("1.jpg\n1.jpg\n2.jpg\n", encoding="utf-8")
    (tmp_path / "xx").write_text("1.jpg| 0| a dog\n1.jpg| 1| it\n2.jpg| 0| a cat\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"xx, line 1: begins with the id of its image, as every line does, which "):
        read_language_captions("xx", tmp_path / "xx", tmp_path / "ids")
    (tmp_path / "xx").write_text("1.jpg is a good name\na dog\na cat\n", encoding="utf-8")
    assert len(read_language_captions("xx", tmp_path / "xx", tmp_path / "ids").texts) == 3
    (tmp_path / "ids").write_text("red\ngreen\n", encoding="utf-8")
    (tmp_path / "xx").write_text("red\ngreen car\n", encoding="utf-8")
    assert len(read_language_captions("xx", tmp_path / "xx", tmp_path / "ids").texts) == 2


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        ("\ufeff" + GOOD, ["a dog"]),
        ("1.jpg\ta dog\r\n2.jpg\ta cat\r\n", ["a dog", "a cat"]),
        ('1.jpg\t"Stop!" says the sign\n2.jpg\t"quoted"\n', ['"Stop!" says the sign', '"quoted"']),
        ("image\ta caption of an image\n", ["a caption of an image"]),
        ("photo#1\ta dog\n", ["a dog"]),
    ],
)
def test_what_people_write_is_read(tmp_path: Path, content: str, texts: list[str]) -> None:
    (tmp_path / "xx.tsv").write_bytes(content.encode())
    assert read_language_captions("xx", tmp_path / "xx.tsv").texts == texts


@pytest.mark.parametrize("line", ["\u200b", "a\rdog", "a\0dog", "2.jpg\ta dog"])
def test_plain_captions_are_checked_alike(tmp_path: Path, line: str) -> None:
    (tmp_path / "xx").write_bytes(f"a cat\n{line}\n".encode())
    (tmp_path / "ids").write_text("1\n2\n")
    with pytest.raises(UserError, match="xx, line 2: "):
        read_language_captions("xx", tmp_path / "xx", tmp_path / "ids")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.tsv", GOOD + "2\ta\tb\n", "line 2: has 3 columns"),
        ("x.tsv", GOOD + '2\t"a ""red"" dog"\n', "line 2: is quoted as csv writers do"),
        ("x.tsv", "id\ttext\n" + GOOD, "line 1: looks like a header"),
        ("x.tsv", "1\ta dog\r2\ta cat\r", "line 1: has a carriage return inside"),
        ("x.txt", "a dog\ra cat\r", "line 1: has a carriage return inside"),
        ("x.txt", "a dog\na\0cat\n", "line 2: has a NUL"),
        ("x.txt", GOOD, "line 1: has a tab"),
    ],
)
def test_captions_for_features_are_checked_alike(tmp_path: Path, name: str, content: str, words: str) -> None:
    (tmp_path / name).write_bytes(content.encode())
    with pytest.raises(UserError) as caught:
        read_caption_list(tmp_path / name)
    assert words in str(caught.value)


def test_ids_for_features_may_be_numbered(tmp_path: Path) -> None:
    """Every caption has its own id there."""
    (tmp_path / "x.tsv").write_text("1.jpg#0\ta dog\n1.jpg#1\ta cat\n")
    assert read_caption_list(tmp_path / "x.tsv") == [("1.jpg#0", "a dog"), ("1.jpg#1", "a cat")]


@pytest.mark.parametrize("stored", [unicodedata.normalize("NFD", "café.jpg"), "CAFÉ.JPG", "CAFÉ"])
def test_an_id_that_looks_equal_is_named(tmp_path: Path, stored: str) -> None:
    index = IdIndex(["1.jpg", stored], tmp_path)
    name = "café" if stored == "CAFÉ" else "café.jpg"
    with pytest.raises(UserError) as caught:
        index.rows_of(["1.jpg", name], tmp_path / "ids")
    assert f"but {stored!a} exists, which differs only in case or Unicode form" in str(caught.value)
    with pytest.raises(UserError) as caught:
        index.rows_of(["other.jpg"], tmp_path / "ids")
    assert "exists" not in str(caught.value)


def test_captions_of_one_image_are_not_scored_without_a_word(tmp_path: Path) -> None:
    for name in ("1.jpg", "2.jpg"):
        (tmp_path / name).touch()
    (tmp_path / "xx.tsv").write_text(GOOD + "1.jpg\ta cat\n")
    gallery = ImageGallery(tmp_path)
    (note,) = RetrievalBenchmark("x", [read_language_captions("xx", tmp_path / "xx.tsv")], [gallery]).notes
    assert note.startswith("One image: the captions of xx name only '1.jpg' of the 2")
    (tmp_path / "xx.tsv").write_text(GOOD + "2.jpg\ta cat\n")
    captions = read_language_captions("xx", tmp_path / "xx.tsv")
    assert not RetrievalBenchmark("x", [captions], [gallery]).notes
    both = [captions, read_language_captions("yy", tmp_path / "xx.tsv")]
    notes = ["The same captions in xx and yy: an average over languages counts them twice."]
    assert RetrievalBenchmark("x", both, [gallery]).notes == notes
