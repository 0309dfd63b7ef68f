#!/usr/bin/env python3
"""How well a bank of `mclip-search calibrate --words` separates queries with an answer from others, after `make demo`.

The index holds the drawings of training, and the model has seen no other. The queries with an answer are the names of
these drawings, those without one the names of drawings that were held out. Printed per fit, for English and as the mean
of the other languages: false alarms (names without a drawing that fit well), misses (names with one that do not), and
recall with and without the correction of hubs.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mclip_fairseq import MultilingualCLIP
from mclip_fairseq.cli.search import main as mclip_search
from mclip_fairseq.search.bank import Labelled, encode_labelled, search_bank
from mclip_fairseq.search.calibration import Calibration, measure
from mclip_fairseq.search.index import SearchIndex
from mclip_fairseq.search.words import words_in
from mclip_fairseq.storage.files import read_lines

LANGUAGES = ("en", "es", "ja", "ko", "pt", "it", "fr", "de", "fa", "id", "zh", "ru", "tr", "ar")
FITS = (0.1, 0.2, 0.5, 0.8, 0.9)
COLUMNS = {"false_alarms": "false alarms", "misses": "misses", "R@1": "R@1", "hubs_R@1": "R@1, hubs corrected"}


def build(run: Path, folder: Path) -> SearchIndex:
    """An index of the drawings of training."""
    seen = set(read_lines(run / "corpus" / "gallery" / "seen.ids"))
    held_out = [name for name in read_lines(run / "features" / "image" / "ids.txt") if name not in seen]
    others = folder / "others"
    others.write_text("".join(f"{name}\n" for name in held_out), encoding="utf-8")
    model, teacher = run / "trikd" / "checkpoint_last.pt", run / "teacher"
    paths = [run / "features" / "image", "--model", model, "--teacher", teacher, "--output", folder / "index"]
    for command in (["build", *paths], ["remove", folder / "index", "--ids", others]):
        with contextlib.redirect_stdout(io.StringIO()):
            assert mclip_search([str(word) for word in command]) == 0
    return SearchIndex.open(folder / "index")


def queries_of(run: Path, gallery: str, known: bool, most: int, seed: int) -> list[Labelled]:
    """Up to `most` names of a gallery in every language, with their drawings if the index knows them."""
    folder = run / "corpus" / "gallery"
    ids = read_lines(folder / f"{gallery}.ids")
    rows = sorted(random.Random(seed).sample(range(len(ids)), min(most, len(ids))))
    return [
        Labelled(language, names[row], ids[row] if known else "")
        for language in LANGUAGES
        for names in [read_lines(folder / f"{gallery}.{language}")]
        for row in rows
    ]


def report(run: Path, most: int, seed: int) -> str:
    """The table.

    Args:
        run: output of `examples/quickstart/run.sh`.
        most: queries per language and gallery.
        seed: of their choice.
    """
    model = MultilingualCLIP.from_pretrained(str(run / "trikd" / "checkpoint_last.pt"))
    words = words_in(LANGUAGES)
    answered = queries_of(run, "seen", True, most, seed)
    unanswered = queries_of(run, "held_out_concepts", False, most, seed)
    lines = [f"| --fit | language | {' | '.join(COLUMNS.values())} |", "| --- " * (len(COLUMNS) + 2) + "|"]
    with tempfile.TemporaryDirectory() as folder:
        index = build(run, Path(folder))
        bank = search_bank(index, encode_labelled(model, words), [word.language for word in words], [""] * len(words))
        vectors = [encode_labelled(model, queries) for queries in (answered, unanswered)]
        for fit in FITS:
            right = measure(index, Calibration(bank, fit), answered, vectors[0])
            wrong = measure(index, Calibration(bank, fit), unanswered, vectors[1])
            rows = {lang: right[lang] | {"false_alarms": wrong[lang]["false_alarms"]} for lang in LANGUAGES}
            for name, languages in (("English", LANGUAGES[:1]), ("mean of the others", LANGUAGES[1:])):
                means = (np.mean([rows[language][column] for language in languages]) for column in COLUMNS)
                lines.append(f"| {fit} | {name} | {' | '.join(f'{mean:.1f}' for mean in means)} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", metavar="RUN", help="output of examples/quickstart/run.sh")
    parser.add_argument("--queries", type=int, default=100, help="per language and gallery (default 100)")
    parser.add_argument("--seed", type=int, default=0, help="of their choice (default 0)")
    options = parser.parse_args(argv)
    if options.run is None:
        print("skipped: name the folder of a run of make demo")
        return 0
    print(report(options.run, options.queries, options.seed))
    return 0


if __name__ == "__main__":
    sys.exit(main())
