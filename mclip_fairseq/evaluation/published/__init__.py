"""Published numbers of the benchmarks, with their protocol and source, to compare one's own with."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from importlib import resources
from itertools import chain
from typing import Any

from mclip_fairseq.evaluation.published.senteval import SENTEVAL_NOTE, senteval_table
from mclip_fairseq.evaluation.reports.comparison import ReportRow, languages_of, rows_by_table
from mclip_fairseq.evaluation.reports.report import align_table

TABLES = ("retrieval.tsv", "similarity.tsv")
MEAN = "mean of "  # and a number of languages, in the place of a language
SUPERSCRIPT = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
SIZES = "sizes.tsv"  # of whole sets; more exact lines come first, and 0 means any number
MEASURED_ON_PART = "measured on a part of the published set"


@dataclass
class Published:
    """What a paper reports of a system on a benchmark.

    Attributes:
        benchmark: as in reports; `*` stands for splits and variants of it.
        system: as in the source.
        protocol: in the words of `comparison.protocol_words`, and whatever else distinguishes the numbers.
        source: where they are printed.
        results: language -> metric -> value in percent.
    """

    benchmark: str
    system: str
    protocol: str
    source: str
    results: dict[str, dict[str, float]] = field(default_factory=dict)

    def is_of(self, benchmark: str) -> bool:
        """Whether it was measured on a benchmark of this name."""
        return fnmatchcase(benchmark, self.benchmark)

    @property
    def mean(self) -> str | None:
        """The entry of `results` that is a mean over languages, such as `mean of 36`; None where there is none."""
        return next((language for language in self.results if language.startswith(MEAN)), None)

    def metric(self, headline: str) -> str:
        """The headline where it is published, otherwise the first metric that is."""
        metrics = next(iter(self.results.values()))
        return headline if headline in metrics else next(iter(metrics))


def read_published() -> list[Published]:
    """All published numbers of this package."""
    sources = json.loads((resources.files(__package__) / "sources.json").read_text(encoding="utf-8"))
    entries: dict[tuple[str, str, str], Published] = {}
    for row in chain.from_iterable(map(_rows, TABLES)):
        benchmark, system, protocol, source, language = (
            row.pop(name) for name in ("benchmark", "system", "protocol", "source", "language")
        )
        key = (benchmark, system, protocol)
        entry = entries.setdefault(key, Published(benchmark, system, protocol, sources[source]))
        entry.results[language] = {name: float(value) for name, value in row.items() if value}
    return list(entries.values())


def _rows(table: str) -> csv.DictReader[str]:
    text = (resources.files(__package__) / table).read_text(encoding="utf-8")
    return csv.DictReader(text.splitlines(), delimiter="\t")


def missing_from_published(benchmark: str, counts: Mapping[str, Mapping[str, int]]) -> dict[str, str]:
    """What a set lacks of the published one: language -> "950 of 1000 images"; empty where nothing is missing.

    Args:
        benchmark: its name, as in reports.
        counts: language, or table of sentence pairs -> its number of `images`, `captions` or `pairs`.
    """
    missing = {}
    for language, own in counts.items():
        size = next((row for row in _rows(SIZES) if _is_size_of(row, benchmark, language)), None)
        if size is None:
            continue
        lacking = [f"{count} of {size[what]} {what}" for what, count in own.items() if count < int(size[what])]
        if lacking:
            missing[language] = " and ".join(lacking)
    return missing


def _is_size_of(row: Mapping[str, str], benchmark: str, language: str) -> bool:
    return fnmatchcase(benchmark, row["benchmark"]) and fnmatchcase(language, row["language"])


def published_beside(reports: Sequence[Mapping[str, Any]]) -> list[Published]:
    """The published numbers of the benchmarks of some reports."""
    benchmarks = {report["benchmark"] for report in reports}
    return [entry for entry in read_published() if any(map(entry.is_of, benchmarks))]


def format_published(reports: Sequence[Mapping[str, Any]], published: Sequence[Published]) -> str:
    """Markdown tables: own rows, then published ones, each saying whether its protocol is that of the own rows.

    Entries that lack the headline metric are in tables of their own, one per metric, and so are those of which a mean
    over languages is published beside single languages.
    """
    blocks = []
    for rows in rows_by_table(reports).values():
        if rows[0].part.startswith("mean of"):  # nobody publishes these
            continue
        comparable = [entry for entry in published if entry.is_of(rows[0].benchmark)]
        headline = rows[0].headline
        if headline == "spearman":
            blocks += _similarity_beside(rows, comparable)
            continue
        for metric in dict.fromkeys([headline, *(entry.metric(headline) for entry in comparable)]):
            entries = [entry for entry in comparable if entry.metric(headline) == metric]
            means = dict.fromkeys(entry.mean for entry in entries)
            for mean in means:
                blocks.append(_table_beside(metric, rows, [entry for entry in entries if entry.mean == mean], mean))
    return "\n\n".join(blocks)


def _similarity_beside(own: Sequence[ReportRow], published: Sequence[Published]) -> list[str]:
    """A table per correlation in the shape that papers print: a column per task of SentEval, and the average."""
    blocks, mark = [], f" {superscript(1)}"
    marked = [replace(row, model=row.model + mark) if row.is_partial else row for row in own]
    notes = [f"{mark.strip()} {MEASURED_ON_PART.capitalize()}."] if marked != list(own) else []
    for metric in ("spearman", "pearson"):
        entries = [entry for entry in published if any(metric in values for values in entry.results.values())]
        table = senteval_table(metric, marked, {entry.system: entry.results for entry in entries})
        if entries and table is not None:
            below = [
                *notes,
                SENTEVAL_NOTE,
                *(f"Source: {source}." for source in dict.fromkeys(each.source for each in entries)),
            ]
            title = f"{own[0].title_of(metric)}, beside published numbers"
            blocks.append("\n\n".join([title, align_table(table), "\n".join(below)]))
    return blocks


def _table_beside(
    metric: str, own: Sequence[ReportRow], published: Sequence[Published], mean: str | None = None
) -> str:
    """One table with its notes; `mean` is over the languages of the source.

    A language is shown if an own row and a published one have it, and English always; averages are over the languages
    that all rows have, which a note names where they are fewer.
    """
    measured = languages_of(own)
    results = [row.results for row in own] + [entry.results for entry in published]
    languages = [
        language for language in measured if language == "en" or any(language in entry.results for entry in published)
    ]
    everywhere = [language for language in languages if all(language in each for each in results)]
    extra = [] if mean is None else [mean]
    notes: dict[str, str] = {}  # text -> mark

    def mark(note: str) -> str:
        return "" if not note else " " + notes.setdefault(note, superscript(len(notes) + 1))

    table = [["model", *languages, "average", *extra]]
    for row in own:
        whole = [_mean(row.results, metric) if mean == f"{MEAN}{len(row.results)}" else "" for mean in extra]
        partial = mark(f"{row.model}: {MEASURED_ON_PART}" if row.is_partial else "")
        table.append([row.model + partial, *_cells(row.results, languages, everywhere, metric), *whole])
    for entry in published:
        other = "" if entry.protocol == own[0].protocol else f"Another protocol: {entry.protocol}"
        whole = [f"{entry.results[mean][metric]:.1f}" for mean in extra]
        table.append([entry.system + mark(other), *_cells(entry.results, languages, everywhere, metric), *whole])
    below = [f"{sign} {note}." for note, sign in notes.items()]
    if len(everywhere) < len(languages):
        below.append(f"Average over the languages that every row has: {', '.join(everywhere) or 'none'}.")
    below += [f"Source: {source}." for source in dict.fromkeys(entry.source for entry in published)]
    title = f"{own[0].title_of(metric)}, beside published numbers"
    return "\n\n".join([title, align_table(table), "\n".join(below)])


def superscript(number: int) -> str:
    """A number as a footnote mark."""
    return str(number).translate(SUPERSCRIPT)


def _cells(
    results: Mapping[str, Mapping[str, float]], languages: Sequence[str], everywhere: Sequence[str], metric: str
) -> list[str]:
    """A value per language, a dash where there is none, and the mean over the languages that every row has."""
    known = {language: results[language][metric] for language in languages if metric in results.get(language, {})}
    values = [f"{known[language]:.1f}" if language in known else "–" for language in languages]
    return [*values, _mean({language: results[language] for language in everywhere}, metric) or "–"]


def _mean(results: Mapping[str, Mapping[str, float]], metric: str) -> str:
    return f"{sum(values[metric] for values in results.values()) / len(results):.1f}" if results else ""
