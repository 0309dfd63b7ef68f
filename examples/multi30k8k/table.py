#!/usr/bin/env python3
"""Print one Markdown table of the runs of run.sh: a row per variant and stage, over the seeds that have finished.

Each figure is the mean over seeds and the largest deviation from it. Retrieval is the mean recall, strict; MRV the mean
rank variance from texts to images; who and where are top-1 accuracies, English and the mean of the other languages;
bitext is the accuracy over both directions and all languages; similar is Spearman's correlation times 100.
"""

import argparse
import re
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mclip_fairseq.cli.main import Parser, run_main
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import read_json

LANGS = ("en", "de", "fr", "cs")
RUN = re.compile(r"(.+)-(\d+)")
# The end of a folder's name -> what the row is called besides its variant.
STAGES = {"": "", "-teach": ", stage 1", "-nlt": ", stage 1", "-start": ", before"}
TEST = ("test", "classes-test")
COLUMNS = (*LANGS, "MRV", "who en", "who others", "where en", "where others", "bitext", "similar")
ABSENT = "–"
Figures = dict[str, float]


def languages(report: Mapping[str, Any], metric: str) -> dict[str, float]:
    """Language -> one of its results."""
    return {lang: result[metric] for lang, result in report["results"].items()}


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean."""
    return sum(values) / len(values)


def split_english(name: str, values: Mapping[str, float]) -> Figures:
    """English, and the mean of the other languages."""
    return {f"{name} en": values["en"], f"{name} others": mean([values[lang] for lang in values if lang != "en"])}


def figures_of(report: Mapping[str, Any]) -> Figures:
    """The columns that a report of `mclip-evaluate` fills."""
    values = languages(report, report["headline"])
    if report["kind"] == "retrieval":
        return {**values, "MRV": report["mean_rank_variance"]["variance"]["t2i"]}
    if report["kind"] == "classification":
        return split_english(report["benchmark"].rpartition(": ")[2], values)
    if report["kind"] == "bitext":
        return {"bitext": mean(list(values.values()))}
    return {"similar": mean(list(values.values()))}


def read_runs(folder: Path) -> dict[str, list[Figures]]:
    """Row -> the figures of every seed. The test split is left out, because choices are made by this table.

    Raises:
        UserError: there are none.
    """
    rows: dict[str, dict[str, Figures]] = defaultdict(lambda: defaultdict(dict))
    for path in sorted(folder.glob("*/evaluation*/**/report.json")):
        name, evaluation, split = path.relative_to(folder).parts[:3]
        run, stage = RUN.fullmatch(name), STAGES.get(evaluation.removeprefix("evaluation"))
        if run is None or stage is None or split in TEST:
            continue
        report = read_json(path)
        rows[run[1] + stage][run[2]] |= figures_of(report)
        if "reranked" in report:
            rows[f"{run[1]}{stage}, re-ranked"][run[2]] |= figures_of({**report, **report["reranked"]})
    if not rows:
        raise UserError(f"{folder}: holds no evaluated run; give the OUTPUT of run.sh")
    return {row: list(seeds.values()) for row, seeds in rows.items()}


def cell(values: Sequence[float]) -> str:
    """A mean with the largest deviation from it."""
    if not values:
        return ABSENT
    middle = mean(values)
    spread = max(abs(value - middle) for value in values)
    return f"{middle:.1f} ± {spread:.1f}" if len(values) > 1 else f"{middle:.1f}"


def table(rows: Mapping[str, Sequence[Figures]]) -> str:
    """The table in Markdown."""
    lines = ["| " + " | ".join(("variant", "seeds", *COLUMNS)) + " |", "| --- |" + " ---: |" * (1 + len(COLUMNS))]
    for name, seeds in rows.items():
        cells = [cell([figures[column] for figures in seeds if column in figures]) for column in COLUMNS]
        lines.append("| " + " | ".join((name, str(len(seeds)), *cells)) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="OUTPUT of run.sh")
    args = parser.parse_args(argv)
    return run_main("table.py", lambda: print(table(read_runs(args.runs))))


if __name__ == "__main__":
    sys.exit(main())
