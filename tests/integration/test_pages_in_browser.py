"""The HTML reports in a real headless browser: nothing is cut at a phone's width, and dark is dark."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mclip_fairseq.evaluation.reports.comparison import format_comparison
from mclip_fairseq.evaluation.reports.pages import comparison_page, training_page
from mclip_fairseq.evaluation.reports.pictures import Example
from mclip_fairseq.evaluation.reports.training_log import Curves
from tests.unit.test_quickstart_corpus import load

LANGUAGES = ("en", "es", "ja", "ko", "pt", "it", "fr", "de", "fa", "id", "zh", "ru", "tr", "ar")
SOURCE = {"command": "mclip-evaluate --model a --model b", "versions": {"torch": "2"}}


def metrics() -> dict[str, float]:
    recalls = [f"{way}_R@{k}" for way in ("t2i", "i2t") for k in (1, 5, 10)]
    return dict.fromkeys([*recalls, "mean_recall"], 71.5)


def quickstart_page(folder: Path) -> str:
    """The quickstart's report with five drawings for each of three queries."""
    Image.new("RGB", (72, 72), "white").save(folder / "x.png")
    examples = [
        Example(text, language, [folder / "x.png"] * 5, [0.9, 0.8, 0.7, 0.6, 0.5], own=1, rank=1)
        for language, text in (("de", "Schmetterling"), ("ja", "機関車"), ("ar", "جمل"))
    ]
    page = load("page")
    results = {
        gallery: {system: {language: metrics() for language in LANGUAGES} for system in page.SYSTEMS}
        for gallery in page.GALLERIES
    }
    report = {
        "corpus": {"concepts": 3, "licences": {"names": "Unicode License v3"}},
        "results": results,
        "galleries": dict.fromkeys(page.GALLERIES, 3),
        **{"seconds": {"1 corpus": 4.0}, "versions": {"torch": "2"}, "seed": 1},
    }
    html: str = page.report_page(report, examples)
    return html


def comparison() -> str:
    """Two models in fourteen languages."""
    report = {
        **{"benchmark": "a benchmark", "kind": "retrieval", "headline": "t2i_R@1", "protocol": "strict"},
        **{"captions": "all", "gallery": "captioned", "confidence": {}},
        "results": {language: metrics() for language in LANGUAGES},
        "average": {"all": metrics(), "without_en": metrics()},
    }
    reports = [report | {"name": name} for name in ("a model", "another model")]
    return comparison_page(reports, format_comparison(reports), SOURCE)


def training(folder: Path) -> str:
    """A short training with a wide plot and a long option."""
    curves = Curves(
        {"valid": {"loss": {1: 3.0, 2: 2.0, 3: 2.5}}}, [75.0], {"task": {"_name": "mte", "data": "x" * 300}}
    )
    return training_page(curves, "run", [folder / "train.log"], ["mclip-report", "run"])


@pytest.mark.parametrize("kind", ["quickstart", "comparison", "training"])
def test_a_page_fits_a_phone_and_has_a_dark_mode(kind: str, browser: Any, tmp_path: Path) -> None:
    html = {"quickstart": quickstart_page, "comparison": lambda _: comparison(), "training": training}[kind](tmp_path)
    assert not re.search(r"https?:", re.sub(r'src: ?url\("data:[^"]*"\)|src="data:[^"]*"', "", html))
    context = browser.new_context(color_scheme="dark")
    page = context.new_page()
    paper = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).map(Number)"
    for width in (1040, 360):
        page.set_viewport_size({"width": width, "height": 700})
        page.set_content(html)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        if kind == "quickstart":
            boxes = [image.bounding_box() for image in page.locator(".example").first.locator("img").all()]
            assert len(boxes) == 5
            assert max(box["x"] + box["width"] for box in boxes) <= width
    assert max(page.evaluate(paper)) < 60
    page.emulate_media(color_scheme="light")
    assert min(page.evaluate(paper)) > 200
    context.close()


def test_the_training_page_begins_with_a_summary(tmp_path: Path) -> None:
    html = training(tmp_path)
    assert "update 2: loss 2 in validation" in html
    assert "1 min 15 s" in html
    assert html.index("Best checkpoint") < html.index("Options") < html.index("<img")
