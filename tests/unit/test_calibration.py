"""The fit of hits, QB-Norm's order, and how often the judgement is wrong, on hand-made vectors."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("faiss", reason="faiss is not installed (pip install mclip_fairseq[search])")

from benchmarks.search_calibration import FITS, report
from mclip_fairseq.search.bank import Bank, Labelled
from mclip_fairseq.search.calibration import SCALE, Calibration, format_measures, measure
from mclip_fairseq.search.engine import Hit


class Images:
    """An index of unit vectors, one row each."""

    path = "made"

    def __init__(self, vectors: np.ndarray[Any, Any], kept: bool = True) -> None:
        self.all, self.kept = vectors, kept

    def vectors(self, rows: list[int]) -> np.ndarray[Any, Any] | None:
        return self.all[rows] if self.kept else None

    def hits(self, queries: np.ndarray[Any, Any], k: int) -> list[list[Hit]]:
        cosines = queries @ self.all.T
        orders = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
        return [
            [Hit(int(row), f"image {row}", float(cosines[number, row])) for row in order]
            for number, order in enumerate(orders)
        ]


def unit(*angles: float) -> np.ndarray[Any, Any]:
    """Vectors at these angles, in degrees."""
    radians = np.radians(angles)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def bank_of(best: list[float], languages: list[str], nearest: str = "image 0", angle: float = 0.0) -> Bank:
    count = len(best)
    return Bank(unit(*[angle] * count), np.array(languages), [""] * count, [nearest] * count, np.array(best))


def test_fit_is_the_share_of_the_bank_that_is_less_near() -> None:
    scores = [number / 100 for number in range(40)]
    calibration = Calibration(bank_of(scores, ["en"] * 20 + ["de"] * 20))
    assert calibration.fit(-1) == 0
    assert calibration.fit(2) == 1
    assert calibration.fit(0.10) == 10 / 40  # an equal score is no better
    assert calibration.fit(0.10, "en") == 10 / 20
    assert calibration.fit(0.10, "de") == 0
    few = Calibration(bank_of(scores, ["en"] * 21 + ["de"] * 19))
    assert few.fit(0.10, "de") == few.fit(0.10, "unheard") == 10 / 40


def test_a_query_fits_if_its_best_hit_does() -> None:
    calibration = Calibration(bank_of([number / 100 for number in range(20)], ["en"] * 20), least=0.5)
    images = Images(unit(0, 90))
    judged = calibration.judge(images, [Hit(0, "image 0", 0.101), Hit(1, "image 1", 0.02)])  # type: ignore[arg-type]
    assert [hit.fit for hit in judged] == [11 / 20, 2 / 20]
    assert calibration.fits(judged)
    assert not calibration.fits(judged[1:])
    assert not calibration.fits([])


def test_hubs_are_lowered_as_the_formula_says() -> None:
    images = Images(unit(0, 30))
    # The bank lies on image 0, which is therefore a hub; the query is a little nearer to it than to image 1.
    calibration = Calibration(bank_of([1.0] * 20, ["en"] * 20), hubs=True)
    query = unit(14)
    (hits,) = images.hits(query, 2)
    assert [hit.id for hit in hits] == ["image 0", "image 1"]
    assert [hit.id for hit in calibration.judge(images, hits)] == ["image 1", "image 0"]  # type: ignore[arg-type]
    cosine = [math.cos(math.radians(angle)) for angle in (14, 16, 0, 30)]
    slow = [
        math.exp(SCALE * cosine[0]) / (20 * math.exp(SCALE * cosine[2])),
        math.exp(SCALE * cosine[1]) / (20 * math.exp(SCALE * cosine[3])),
    ]
    fast = np.array([hit.score for hit in hits]) - calibration.crowd(images.all)
    np.testing.assert_allclose(np.exp(SCALE * fast), slow, rtol=1e-5)


def test_only_queries_that_find_what_the_bank_finds_are_corrected() -> None:
    images = Images(unit(0, 30))
    (hits,) = images.hits(unit(14), 2)
    elsewhere = Calibration(bank_of([1.0] * 20, ["en"] * 20, nearest="image 1"), hubs=True)
    assert [hit.id for hit in elsewhere.judge(images, hits)] == ["image 0", "image 1"]  # type: ignore[arg-type]
    off = Calibration(bank_of([1.0] * 20, ["en"] * 20))
    assert [hit.id for hit in off.judge(images, hits)] == ["image 0", "image 1"]  # type: ignore[arg-type]
    without = Images(unit(0, 30), kept=False)
    on = Calibration(bank_of([1.0] * 20, ["en"] * 20), hubs=True)
    with pytest.raises(ValueError, match="made: keeps no exact vectors to correct hubs with; leave out --hubs"):
        on.judge(without, hits)  # type: ignore[arg-type]


def test_measures_by_hand() -> None:
    index: Any = Images(unit(0, 30, 80))
    bank = bank_of([0.9] * 20, ["en"] * 20)  # all found image 0
    vectors = unit(0, 14, 80, 55)
    queries = [
        Labelled("en", "right and near", "image 0"),  # without image 0: cos 30 = 0.87, no false alarm
        Labelled("en", "nearer to a hub", "image 1"),  # without image 1: cos 14 = 0.97, a false alarm
        Labelled("de", "right", "image 2"),  # without image 2: cos 50, none
        Labelled("de", "about nothing"),  # cos 25 = 0.906 of the bank's 0.9: a false alarm
    ]
    table = measure(index, Calibration(bank, 0.5), queries, vectors)
    assert table["en"] == {
        "queries": 2,
        "false_alarms": 50,
        "misses": 0,
        "R@1": 50,
        "R@10": 100,
        "hubs_R@1": 50,  # the second is right now; the first lies on the hub, and is wrong
        "hubs_R@10": 100,
    }
    assert table["de"] == {"queries": 2, "false_alarms": 50, "misses": 0} | dict.fromkeys(
        ("R@1", "R@10", "hubs_R@1", "hubs_R@10"), 100
    )
    strict = measure(index, Calibration(bank_of([0.99] * 20, ["en"] * 20), 0.5), queries, vectors)
    assert (strict["en"]["false_alarms"], strict["en"]["misses"]) == (0, 50)
    lines = format_measures(table).splitlines()
    assert lines[2] == "| en | 2 | 50.0 | 0.0 | 50.0 | 100.0 | 50.0 | 100.0 |"


def test_the_benchmark_measures_a_folder(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for folder in ("images", "features"):
        (tmp_path / folder).mkdir()
    for split, count in (("train", 60), ("valid", 12)):
        (tmp_path / "images" / f"{split}.ids").write_text("".join(f"{split}{n}.jpg\n" for n in range(count)))
        rows = rng.normal(size=(count, 6))
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        for side in ("image", "text_en"):  # a caption lies on its image
            np.save(tmp_path / "features" / f"{split}.{side}.npy", rows.astype(np.float16))
    lines = report(tmp_path, size=30, distractors=20, seed=0).splitlines()
    assert len(lines) == 2 + len(FITS)
    cells = lines[-1].split(" | ")
    assert (cells[0], cells[1]) == ("| en, fit 0.9, 32 images", "12")
    assert float(cells[3]) == 0  # no misses: a caption is at its image
    assert float(cells[4]) == 100
    assert 0 <= float(cells[2]) < 50
