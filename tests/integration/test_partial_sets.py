"""A part of a published set is recognised and marked wherever its numbers stand."""

from __future__ import annotations

import csv
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from mclip_fairseq.cli import evaluate as cli
from mclip_fairseq.evaluation import published
from mclip_fairseq.evaluation.published import MEASURED_ON_PART, missing_from_published
from mclip_fairseq.evaluation.reports.comparison import PARTIAL
from mclip_fairseq.export.card import index_entries
from tests.grey_benchmarks import ALL, GreyModel, report, write

Counts = dict[str, dict[str, int]]


def captions(images: int, number: int) -> dict[str, int]:
    return {"images": images, "captions": number}


@pytest.mark.parametrize(
    ("benchmark", "counts", "missing"),
    [
        ("XTD10", {"de": captions(1000, 1000)}, {}),
        ("WIT (IGLUE)", {"el": captions(2, 2), "id": captions(800, 900)}, {"el": "2 of 569 captions"}),
        ("XTD10", {"de": captions(950, 1000), "fr": captions(1000, 1000)}, {"de": "950 of 1000 images"}),
        (
            "MSCOCO (Karpathy split)",
            {"en": captions(4999, 25000)},
            {"en": "4999 of 5000 images and 25000 of 25010 captions"},
        ),
        ("MSCOCO (Karpathy split) (valid)", {"en": captions(5000, 25010)}, {}),
        (
            "xFlickr&CO (IGLUE)",
            {"de": captions(1999, 1999), "en": captions(1999, 1999)},
            {"en": "1999 of 2000 images and 1999 of 2000 captions"},
        ),
        ("Crossmodal-3600", {"bn": captions(3600, 3600)}, {}),
        ("captions", {"de": captions(3, 3)}, {}),
        ("STS", {"stsb.test.en": {"pairs": 1379}, "sts12.test.surprise.OnWN": {"pairs": 750}}, {}),
        ("STS (valid)", {"stsb.valid.de": {"pairs": 1499}}, {"stsb.valid.de": "1499 of 1500 pairs"}),
        ("STS", {"sts2017.test.ko-ko": {"pairs": 7}}, {}),
        ("Babel-ImageNet", {"de": {"images": 49999}}, {"de": "49999 of 50000 images"}),
    ],
)
def test_a_part_of_a_published_set_is_recognised(benchmark: str, counts: Counts, missing: dict[str, str]) -> None:
    assert missing_from_published(benchmark, counts) == missing


def test_sizes_of_similarity_are_those_of_the_script(repository_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(repository_root / "preprocess")
    spec = importlib.util.spec_from_file_location("sts_script", repository_root / "preprocess/sts.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    sizes = {f"stsb.{split}.en": number for split, number in script.STSB.items()}
    sizes |= {f"sts2017.test.{pair}": number for pair, number in script.STS2017.items()}
    sizes |= {f"sts{year}.test.{name}": n for year, sets in script.YEARS.items() for name, n in sets.items()}
    sizes |= {f"sick.{split}.en": number for split, number in script.SICK.values()}
    assert len(sizes) == 42
    for table, number in sizes.items():
        assert missing_from_published("STS", {table: {"pairs": number}}) == {}
        assert missing_from_published("STS", {table: {"pairs": number - 1}}) == {
            table: f"{number - 1} of {number} pairs"
        }


def sizes_of(counts: Counts) -> list[str]:
    """The table of published sizes, for sets of exactly these counts."""
    what = ("images", "captions", "pairs")
    rows = [["*", language, *(str(own.get(name, 0)) for name in what)] for language, own in counts.items()]
    return ["\t".join(row) for row in [["benchmark", "language", *what], *rows]]


def evaluated() -> dict[str, str]:
    """What `mclip-evaluate --published` prints for, and writes of, all benchmarks."""
    assert cli.main([*ALL, "--published"]) == 0
    return {name: Path("out", name).read_text(encoding="utf-8") for name in ("comparison.html", "comparison.md")}


def test_a_part_is_marked_in_every_form(
    benchmark_folder: Path, grey_models: dict[str, GreyModel], capsys: pytest.CaptureFixture[str]
) -> None:
    write(benchmark_folder / "sts/stsb.test.en.tsv", ["5\tgrey a\tgrey a", "3\tgrey a\tgrey b", "0\tgrey a\tgrey d"])
    manifest = {"name": "STS", "tables": {"stsb.test.de": 4, "stsb.test.en": 3}}
    write(benchmark_folder / "sts/manifest.json", [json.dumps(manifest)])
    pages = evaluated()
    printed = capsys.readouterr().out
    sentence = "A part of the published set, not comparable with published numbers:"
    assert report("XTD10", "first")["partial"]["de"] == "4 of 1000 images and 8 of 1000 captions"
    assert report("STS", "first")["partial"] == {"stsb.test.de": "4 of 1379 pairs", "stsb.test.en": "3 of 1379 pairs"}
    for name in ("Tatoeba", "Babel"):
        assert "partial" not in report(name, "first")
    for text in (printed, pages["comparison.html"]):
        assert f"{sentence} en has 4 of 1000 images and 8 of 1000 captions" in text
        assert f"{sentence} stsb.test.de has 4 of 1379 pairs" in text
    for line in pages["comparison.md"].splitlines():
        if line.startswith(("XTD10, ", "STS, ")) and "beside published" not in line:
            assert line.endswith(PARTIAL), line
    rows = list(csv.DictReader(Path("out/comparison.csv").read_text(encoding="utf-8").splitlines()))
    assert {(row["benchmark"], row["set"]) for row in rows} == {
        *(("XTD10", PARTIAL), ("STS", PARTIAL), ("Tatoeba", ""), ("Babel", ""))
    }
    for table in tables_beside_published(pages["comparison.md"]):
        assert MEASURED_ON_PART in table.lower()
        own = [line for line in table.splitlines() if line.startswith(("| first", "| second"))]
        assert own
        assert all(any(mark in line.split("|")[1] for mark in "¹²³⁴") for line in own), table
    check_card(report("XTD10", "first"))


def check_card(measured: dict[str, Any]) -> None:
    """A model card lists a part of a set as one, and not under the name of the set."""
    of_part = [entry["dataset"] for entry in index_entries(measured)]
    assert of_part == [
        {"type": "custom", "name": f"{language}, {PARTIAL}", "args": {"language": language}}
        for language in ("en", "de")
    ]
    del measured["partial"]
    assert [entry["dataset"]["type"] for entry in index_entries(measured)] == ["XTD10", "XTD10"]


def tables_beside_published(markdown: str) -> list[str]:
    """The tables with published numbers, each with the lines below it."""
    parts = [part for part in markdown.split("beside published numbers")[1:] if "|" in part]
    assert len(parts) >= 3
    return parts


def test_a_whole_set_has_no_mark(
    benchmark_folder: Path, grey_models: dict[str, GreyModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control: the same numbers, of sets that are published in this size."""
    counts = {"de": captions(4, 8), "en": captions(4, 8), "stsb.test.de": {"pairs": 4}}
    original = published._rows
    sizes = sizes_of(counts)

    def rows(table: str) -> Any:
        return csv.DictReader(sizes, delimiter="\t") if table == published.SIZES else original(table)

    monkeypatch.setattr(published, "_rows", rows)
    pages = evaluated()
    for text in (*pages.values(), Path("out/comparison.csv").read_text(encoding="utf-8")):
        assert PARTIAL not in text
