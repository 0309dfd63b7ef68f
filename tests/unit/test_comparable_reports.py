"""Reports that are read again for a comparison: wrong fields are named, whatever they are."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from mclip_fairseq.evaluation.reports.comparison import format_comparison, format_csv
from mclip_fairseq.evaluation.reports.report import check_comparable
from mclip_fairseq.storage.errors import UserError

VALUES = {
    "results": {"en": {"mean_recall": 50.0, "ties": 1}},
    "confidence": {"en": {"mean_recall": [40.0, 60]}},
    "average": {"all": {"mean_recall": 50.0}},
}
REPORT: dict[str, Any] = {
    **{"name": "m", "benchmark": "b", "kind": "retrieval", "headline": "mean_recall"},
    **{"protocol": "strict", "captions": "all", "gallery": "captioned"},
    **VALUES,
    "curve": {"en": {"k": [1], "t2i": [50.0], "i2t": [50.0]}},
    "folds": {"number": 2, "images": 4, **VALUES},
}
WRONG = {
    "no headline": ("headline", None),
    "a language without the headline": ("results.en", {"ties": 1}),
    "results that are a number": ("results", 3),
    "a language that is a list": ("results.en", [1]),
    "a metric that is a word": ("results.en.mean_recall", "much"),
    "no average": ("average", {}),
    "an interval of three": ("confidence.en.mean_recall", [1.0, 2.0, 3.0]),
    "an interval of words": ("confidence.en.mean_recall", ["low", "high"]),
    "an interval that is a number": ("confidence.en.mean_recall", 3),
    "no protocol": ("protocol", None),
    "a curve that is a list": ("curve.en", []),
    "folds without a number": ("folds.number", None),
    "folds that are a list": ("folds", [1]),
    "folds with wrong results": ("folds.results.en", 1),
}


def test_a_sound_report_is_compared() -> None:
    assert check_comparable(Path("report.json"), REPORT, "remove it") is REPORT
    assert format_comparison([REPORT]).count("| m ") == 2
    assert len(format_csv([REPORT]).splitlines()) == 5


@pytest.mark.parametrize("what", WRONG)
def test_wrong_fields_are_refused(what: str) -> None:
    path, value = WRONG[what]
    report = copy.deepcopy(REPORT)
    *parents, name = path.split(".")
    place = report
    for parent in parents:
        place = place[parent]
    place[name] = value
    with pytest.raises(UserError, match=r"^report\.json: .*; remove it$"):
        check_comparable(Path("report.json"), report, "remove it")
