"""Published numbers are complete and consistent."""

from __future__ import annotations

from typing import Any

import pytest

from mclip_fairseq.evaluation.metrics.similarity import SENTEVAL, average_sets
from mclip_fairseq.evaluation.published import Published, format_published, read_published


def test_published_numbers_are_whole() -> None:
    """Mean recall is the mean of the six recalls wherever all are given."""
    checked = 0
    for entry in read_published():
        for metrics in entry.results.values():
            recalls = [value for name, value in metrics.items() if "_R@" in name]
            assert metrics
            assert all(0 < value <= 100 for value in metrics.values())
            if recalls and "mean_recall" in metrics:
                checked += 1
                assert len(recalls) == 6
                assert metrics["mean_recall"] == pytest.approx(sum(recalls) / 6, abs=0.06)
    assert checked > 1000


def test_two_sources_of_the_same_checkpoint_agree() -> None:
    """open_clip's table and Babel-ImageNet's measured this one on XTD10, each with a program of its own."""
    of = {(entry.benchmark, entry.system): entry.results for entry in read_published()}
    ours, theirs = of["XTD10", "xlm-roberta-base-ViT-B-32 laion5b_s13b_b90k"], of["XTD10", "openclip-xlmrb-vitb32"]
    both = ours.keys() & theirs.keys()
    assert len(both) >= 10
    for language in both:
        assert ours[language]["mean_recall"] == pytest.approx(theirs[language]["mean_recall"], abs=0.3)


def own_report(languages: list[str]) -> dict[str, Any]:
    """A report of XM3600 in which every recall is 50 per cent."""
    recalls = [f"{way}_R@{k}" for way in ("t2i", "i2t") for k in (1, 5, 10)]
    values = dict.fromkeys([*recalls, "mean_recall"], 50.0)
    return {
        **{"benchmark": "Crossmodal-3600", "name": "own", "kind": "retrieval", "headline": "t2i_R@1"},
        **{"protocol": "strict", "captions": "all", "gallery": "own"},
        **{"results": {lang: dict(values) for lang in languages}, "average": dict(values), "confidence": {}},
    }


def test_published_means_over_languages_are_beside_an_own_mean_over_as_many() -> None:
    """Independent runs of M-CLIP and jina-clip-v2, of which only four languages and the mean are known."""
    entries = [entry for entry in read_published() if entry.is_of("Crossmodal-3600") and entry.mean]
    assert {entry.mean for entry in entries} == {"mean of 36"}
    assert len(entries) == 5
    others = [f"x{number}" for number in range(32)]
    table = format_published([own_report(["en", "de", "fr", "cs", *others])], entries)
    rows = {
        row.split("|")[1].strip(): [cell.strip() for cell in row.split("|")[2:-1]] for row in table.split("\n")[2:10]
    }
    assert rows["model"] == ["en", "de", "fr", "cs", "average", "mean of 36"]
    assert rows["own"] == ["50.0"] * 6
    (jina,) = (cells for name, cells in rows.items() if name.startswith("jina-clip-v2"))
    assert jina == [
        "53.4",
        "71.9",
        "70.1",
        "49.5",
        "61.2",
        "52.5",
    ]
    few = format_published([own_report(["en", "de", "fr", "cs"])], entries)
    assert "| own" in few
    assert [cell.strip() for cell in few.split("| own")[1].split("|")[5:7]] == ["50.0", ""]


def test_what_differs_is_a_footnote_and_english_stays() -> None:
    protocols = {"theirs": "another", "same": "strict, all captions", "third": "another"}
    entries = [
        Published("Crossmodal-3600", system, protocol, "a paper", {"de": {"t2i_R@1": 40.0}})
        for system, protocol in protocols.items()
    ]
    table = format_published([own_report(["en", "de", "fr"])], entries)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.split("\n") if line.startswith("|")]
    assert rows[0] == ["model", "en", "de", "average"]
    assert rows[2:] == [
        ["own", "50.0", "50.0", "50.0"],
        ["theirs ¹", "–", "40.0", "40.0"],
        ["same", "–", "40.0", "40.0"],
        ["third ¹", "–", "40.0", "40.0"],
    ]
    assert "¹ Another protocol: another." in table
    assert "Average over the languages that every row has: de." in table


def similarity_report(name: str, missing: int = 0) -> dict[str, Any]:
    """A report of SentEval's tables, the first ones missing; Spearman is 10 for STS-B, 30 for others, Pearson 20."""
    tables = [f"{task}.test.set{n}" for task, count in SENTEVAL.items() if count > 1 for n in range(count)]
    tables = [*tables[missing:], "stsb.test.en", "sick.test.en", "sts2017.test.en-de"]
    results = {table: {"spearman": 10.0 if table == "stsb.test.en" else 30.0, "pearson": 20.0} for table in tables}
    results["sts16.test.set0"]["spearman"] = 80.0
    pairs = {table: 100 if table == "sts16.test.set0" else 25 for table in tables}
    averages = {"all": {"spearman": 0.0, "pearson": 0.0}} | average_sets(results, pairs)
    return {
        **{"benchmark": "STS", "name": name, "kind": "similarity", "headline": "spearman"},
        **{"results": results, "average": averages, "confidence": {}},
    }


def cells(table: str) -> dict[str, list[str]]:
    """Row name -> cells of a Markdown table."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.split("\n") if line[:1] == "|"]
    return {name: values for name, *values in lines}


def test_similarity_is_the_table_of_senteval_with_both_averages() -> None:
    """By hand: STS16 is (80 + 4 x 30) / 5 = 40, or with four times the pairs in its first set (4 x 80 + 4 x 30) / 8."""
    entries = [entry for entry in read_published() if entry.is_of("STS")]
    spearman, pearson = format_published([similarity_report("own")], entries).split("STS, pearson")
    rows = cells(spearman)
    assert rows["model"] == ["STS12", "STS13", "STS14", "STS15", "STS16", "STS-B", "SICK-R", "average"]
    assert rows["own, mean"] == [*["30.0"] * 4, "40.0", "10.0", "30.0", f"{200 / 7:.1f}"]
    assert rows["own, wmean"] == [*["30.0"] * 4, "55.0", "10.0", "30.0", f"{215 / 7:.1f}"]
    assert rows["BERT-Distil-CT"] == [*["–"] * 5, "77.9", "–", "75.0"]
    assert rows["CT with in-batch negatives"][5:] == ["78.5", "–", "–"]
    assert "does not say which one it reports" in spearman
    rows = cells(pearson)
    assert rows["own"] == ["20.0"] * 8  # both averages are equal
    assert rows["BERT-Distil-CT"][5:] == ["78.6", "–", "75.1"]
    assert "CT with in-batch negatives" not in rows


def test_a_task_with_a_missing_set_has_no_value_and_no_part_in_the_average() -> None:
    entries = [entry for entry in read_published() if entry.is_of("STS")]
    rows = cells(format_published([similarity_report("own", missing=1)], entries).split("STS, pearson")[0])
    assert rows["model"] == ["STS13", "STS14", "STS15", "STS16", "STS-B", "SICK-R", "average"]
    assert rows["own, mean"][-3:] == ["10.0", "30.0", "–"]
    report = similarity_report("own")
    report["results"] = {"sts2017.test.en-de": report["results"]["sts2017.test.en-de"]}
    assert format_published([report], entries) == ""
