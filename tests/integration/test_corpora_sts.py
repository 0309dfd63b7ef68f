"""Semantic textual similarity: STS-B, its translations, STS2017, STS12 to STS16 and SICK-R."""

from pathlib import Path

import pytest

from tests.downloads import FREE, lines, manifest, refuses, sts_files, works, write


def test_sts(tmp_path: Path) -> None:
    folder = sts_files(tmp_path)
    options: list[object] = ["--stsb", folder / "stsb", "--stsb-multi", folder / "stsb-multi"]
    options += ["--sts2017", folder / "sts2017", "--sts2017-tracks", folder / "tracks", "--output", tmp_path / "out"]
    assert "stsb.train.en: has 2 pairs, but 5749 were published" in refuses("sts", *options)
    works("sts", *options, *FREE)
    assert lines(tmp_path / "out" / "stsb.test.en.tsv") == [
        '5\tA "plane" is.\tAn air plane',
        '0.25\tA "plane" is.\tAn air plane',
    ]
    assert lines(tmp_path / "out" / "stsb.test.de.tsv") == ['5\tEin "Flug", ja\tEin Flugzeug', "1\ta\tb"]
    assert lines(tmp_path / "out" / "stsb.valid.zh.tsv") == ["2.5\t飞机， 在\t一架"]
    assert lines(tmp_path / "out" / "sts2017.test.en-de.tsv") == ["3.8\tA plane\tEin Flug"]
    assert lines(tmp_path / "out" / "sts2017.test.en-en.tsv") == ["0.2\tA plane\tA car"]
    facts = manifest(tmp_path / "out")
    assert facts["tables"]["stsb.test.de"] == facts["tables"]["stsb.test.en"] == 2
    assert "stsb-en-test.csv" not in [source["file"] for source in facts["sources"]]
    assert any("the copy in stsb-multi-mt is skipped" in note for note in facts["notes"])
    works("sts", "--stsb-multi", folder / "stsb-multi", "--output", tmp_path / "translated", *FREE)
    assert lines(tmp_path / "translated" / "stsb.test.en.tsv") == ["1\ta\tb"]
    (folder / "sts2017" / "STS.en-de.txt").rename(folder / "sts2017" / "STS.ko-ko.txt")
    works("sts", "--sts2017", folder / "sts2017", "--output", tmp_path / "ko")
    write(folder / "sts2017" / "STS.en-en.txt", "a\tb\t1\n")
    assert "sts2017.test.en-en: comes from two of the folders" in refuses("sts", *options, *FREE)


def test_sts_of_five_years_and_sick(tmp_path: Path) -> None:
    """From the layouts of the organisers; pairs without a score are left out and counted."""
    years = tmp_path / "years"
    write(years / "STS12-en-test" / "STS.input.MSRpar.txt", "A plane.\tA car.\nA dog.\tA cat.\n")
    write(years / "STS12-en-test" / "STS.gs.MSRpar.txt", "1.500\n4\n")
    write(years / "STS12-en-test" / "STS.input.ALL.txt", "not\ta set\n")
    write(years / "2015" / "STS.input.belief.txt", "one\ttwo\nthree\tfour\nfive\tsix\n")
    write(years / "2015" / "STS.gs.belief.txt", "2\n\n0.6\n")
    write(years / "sts2016-english" / "STS2016.input.plagiarism.txt", "a\tb\thttp://x\thttp://y\n")
    write(years / "sts2016-english" / "STS2016.gs.plagiarism.txt", "5\n")
    head = "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment\n"
    write(tmp_path / "sick" / "SICK_test_annotated.txt", head + "6\tA man\tA person\t4.7\tENTAILMENT\n")
    options: list[object] = ["--sts-years", years, "--sick", tmp_path / "sick", "--output", tmp_path / "out"]
    assert "sts12.test.MSRpar: has 2 pairs, but 750 were published" in refuses("sts", *options)
    works("sts", *options, *FREE)
    assert lines(tmp_path / "out" / "sts12.test.MSRpar.tsv") == ["1.5\tA plane.\tA car.", "4\tA dog.\tA cat."]
    assert lines(tmp_path / "out" / "sts15.test.belief.tsv") == ["2\tone\ttwo", "0.6\tfive\tsix"]
    assert lines(tmp_path / "out" / "sts16.test.plagiarism.tsv") == ["5\ta\tb"]
    assert lines(tmp_path / "out" / "sick.test.en.tsv") == ["4.7\tA man\tA person"]
    tables = ["sts12.test.MSRpar", "sts15.test.belief", "sts16.test.plagiarism", "sick.test.en"]
    assert list(manifest(tmp_path / "out")["tables"]) == tables


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b,6\n", "line 1: '6' is not a score from 0 to 5"),
        ("a,b,nan\n", "line 1: 'nan' is not a score"),
        ("a,,1\n", "line 1: a sentence is empty"),
        ("a,b\n", "line 1: has 2 columns; 3 are expected"),
        ('a,"b,1\n', "unexpected end of data"),
    ],
)
def test_sts_with_a_different_shape(tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path / "multi" / "stsb-de-test.csv", text)
    assert message in refuses("sts", "--stsb-multi", tmp_path / "multi", "--output", tmp_path / "out", *FREE)
    assert "give at least one of --stsb," in refuses("sts", "--output", tmp_path / "out")
    assert "has no file of STS2017" in refuses("sts", "--sts2017", tmp_path, "--output", tmp_path / "out")
