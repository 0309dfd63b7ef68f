"""`mclip-search calibrate`: a bank of queries that says which hits fit, on the command line and on the page."""

from __future__ import annotations

import base64
import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mclip_fairseq.search.bank import read_bank
from mclip_fairseq.search.bank_files import FILE
from mclip_fairseq.search.index import SearchIndex
from mclip_fairseq.search.presenting import Extras
from tests.colours import COLOURS, ColourModel
from tests.search_cli import BUILD, Run
from tests.search_page import ask, running

PAIRS = [" ".join(pair) for pair in itertools.combinations(COLOURS, 2)]  # between two images, on none of them
NO_BANK = "index: has no bank of queries"


@pytest.fixture
def calibrated(mclip_search: Run) -> Run:
    mclip_search(*BUILD)
    write("bank.tsv", [f"en\t{pair}" for pair in PAIRS])
    assert mclip_search("calibrate", "index", "--bank", "bank.tsv") == "index/bank.json: 28 queries (en 28)\n"
    return mclip_search


def write(name: str, lines: list[str]) -> None:
    Path(name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def answer(run: Run, *arguments: object) -> dict[str, Any]:
    (only,) = json.loads(run("query", "index", *arguments, "--json"))["answers"]
    return dict(only)


def test_a_colour_fits_and_a_mixture_does_not(calibrated: Run) -> None:
    red = answer(calibrated, "red", "-k", 2)
    assert red["fits"] is True
    assert red["results"][0]["fit"] == 1.0
    mixed = answer(calibrated, "black red", "-k", 2)
    assert (mixed["fits"], mixed["results"][0]["fit"] < 0.5) == (False, True)
    assert answer(calibrated, "black red", "--fit", 0.01)["fits"] is True
    table = calibrated("query", "index", "red", "black red", "-k", 1).splitlines()
    assert table[1].split() == ["rank", "score", "fit", "id"]
    assert table[2].split()[2:] == ["1.00", "red.png"]
    assert table[5] == "(nothing in the index fits this query well)"


def test_names_of_countries_are_a_bank(mclip_search: Run) -> None:
    pytest.importorskip("babel", reason="needs the extra search")
    mclip_search(*BUILD)
    printed = mclip_search("calibrate", "index", "--words", "de", "ja", "de")
    bank = read_bank(SearchIndex.open("index"))
    assert bank is not None
    counts = Counter[str](bank.languages.tolist())
    assert printed == f"index/bank.json: {counts.total()} queries (de {counts['de']}, ja {counts['ja']})\n"
    assert min(counts["de"], counts["ja"]) > 200
    write("test.tsv", [f"de\t{colour}\t{colour}.png" for colour in COLOURS for _ in range(3)] + ["de\tJapan"])
    calibrate = ("calibrate", "index", "--test", "test.tsv", "--words")
    assert "1 queries of --test are in the bank, too, such as 'Japan'" in mclip_search(*calibrate, "de", status=2)
    assert "| de | 25 |" in mclip_search(*calibrate, "ja")


def test_images_are_not_judged(calibrated: Run, capsys: pytest.CaptureFixture[str]) -> None:
    plain = answer(calibrated, "--image", "photos/red.png")
    assert "fits" not in plain
    assert "fit" not in plain["results"][0]
    calibrated("query", "index", "--image", "photos/red.png", "--fit", 0.5, status=2)
    calibrated("query", "index", "red", "--hubs", "--rerank", 5, status=2)


def test_a_bank_is_needed(mclip_search: Run, capsys: pytest.CaptureFixture[str]) -> None:
    mclip_search(*BUILD)
    assert "fits" not in answer(mclip_search, "red")
    for option in (("--hubs",), ("--fit", 0.5)):
        mclip_search("query", "index", "red", *option, status=2)


def test_a_changed_index_is_searched_again(calibrated: Run) -> None:
    before = read_bank(SearchIndex.open("index"))
    calibrated("remove", "index", "red.png", "orange.png")
    after = read_bank(SearchIndex.open("index"))
    assert before is not None
    assert after is not None
    assert "red.png" in before.nearest
    assert "red.png" not in after.nearest
    assert (after.best <= before.best + 1e-6).all()
    assert after.best.min() < before.best.min()


def test_languages_of_a_bank_are_printed_without_control_characters(calibrated: Run) -> None:
    write("bank.tsv", [f"e\x1b[2Jn\t{pair}" for pair in PAIRS])
    write("test.tsv", [f"d\x1b[2Je\t{colour}\t{colour}.png" for colour in COLOURS for _ in range(3)])
    printed = calibrated("calibrate", "index", "--bank", "bank.tsv", "--test", "test.tsv")
    assert "28 queries (e\\x1b[2Jn 28)" in printed
    assert "| d\\x1b[2Je | 24 |" in printed
    assert "\x1b" not in printed


def test_measures_are_printed_and_queries_kept_apart(calibrated: Run) -> None:
    write("test.tsv", [f"de\t{colour}\t{colour}.png" for colour in COLOURS for _ in range(3)])
    printed = calibrated("calibrate", "index", "--bank", "bank.tsv", "--test", "test.tsv", "--fit", "0.9")
    assert "false alarms and misses at a fit of 0.9, in percent:" in printed
    assert printed.splitlines()[-1].startswith("| de | 24 | ")
    cells = printed.splitlines()[-1].split(" | ")
    assert cells[3:6] == ["0.0", "100.0", "100.0"]  # no misses; every colour finds its image
    assert "--fit is for what --test measures" in calibrated(
        "calibrate", "index", "--bank", "bank.tsv", "--fit", "0.9", status=2
    )
    write("same.tsv", [f"en\t{pair}" for pair in PAIRS])
    calibrated("calibrate", "index", "--bank", "bank.tsv", "--test", "same.tsv", status=2)


@pytest.mark.parametrize(
    "lines",
    [
        ["en"] * 20,
        ["en\tred\tred.png\tmore"] * 20,
        ["en\tred\tgone.png"] * 20,
        ["en\t "] * 20,
        ["en\tred"] * 19,
    ],
)
def test_bad_banks_are_refused(mclip_search: Run, lines: list[str]) -> None:
    mclip_search(*BUILD)
    write("bank.tsv", lines)
    mclip_search("calibrate", "index", "--bank", "bank.tsv", status=2)
    assert not Path("index", FILE).exists()


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"best": [0.5]},
        {"best": ["high"] * 28},
        *({"best": [value] * 28} for value in (float("nan"), float("inf"), 10**400)),
        {"vectors": base64.b64encode(np.full((28, 5), np.nan, np.float32).tobytes()).decode()},
        {"vectors": "AAAA"},
        {"vectors": "not base64"},
        {"dim": 10**9},
        {"fingerprint": "1" * 64},
    ],
)
def test_a_damaged_bank_is_refused(calibrated: Run, change: dict[str, Any]) -> None:
    path = Path("index", FILE)
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | change), encoding="utf-8")
    calibrated("query", "index", "red", status=2)


def test_the_page_says_that_nothing_fits(calibrated: Run, colour_model: ColourModel) -> None:
    index = SearchIndex.open("index")
    with running(index, colour_model, Extras(hubs=True)) as port:

        def search(text: str) -> Any:
            body = json.dumps({"query": text, "k": 3})
            status, _, content = ask(port, "POST", "/search", body, {"Content-Type": "application/json"})
            assert status == 200
            return json.loads(content)

        assert search("red")["results"][0]["fit"] == 1.0
        assert "warning" not in search("red")
        assert search("black red")["warning"] == "nothing in the index fits this query well"
