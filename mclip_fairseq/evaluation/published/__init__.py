"""Published numbers of the benchmarks, with their protocol and source, to be put beside one's own."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from importlib import resources
from itertools import chain
from typing import Any

from mclip_fairseq.evaluation.reports.comparison import Part, parts_of
from mclip_fairseq.evaluation.reports.report import align_table

TABLES = ("retrieval.tsv", "similarity.tsv")


@dataclass
class Published:
    """What a paper reports of a system on a benchmark.

    Attributes:
        benchmark: as in reports; `*` stands for splits and variants of it.
        system: as in the source.
        protocol: in the words of ``comparison.protocol_words``, and whatever else sets the numbers apart.
        source: where they are printed.
        results: language -> metric -> value in percent.
    """

    benchmark: str
    system: str
    protocol: str
    source: str
    results: dict[str, dict[str, float]] = field(default_factory=dict)

    def is_of(self, benchmark: str) -> bool:
        """Whether it was measured on a benchmark of a report."""
        return fnmatchcase(benchmark, self.benchmark)

    def metric(self, headline: str) -> str:
        """The headline where it is published, and otherwise what is."""
        metrics = next(iter(self.results.values()))
        return headline if headline in metrics else next(iter(metrics))


def read_published() -> list[Published]:
    """All published numbers of this package."""
    here = resources.files(__package__)
    sources = json.loads((here / "sources.json").read_text(encoding="utf-8"))
    found: dict[tuple[str, str, str], Published] = {}
    for row in chain.from_iterable(map(_rows, TABLES)):
        benchmark, system, protocol, source, language = (
            row.pop(name) for name in ("benchmark", "system", "protocol", "source", "language")
        )
        key = (benchmark, system, protocol)
        entry = found.setdefault(key, Published(benchmark, system, protocol, sources[source]))
        entry.results[language] = {name: float(value) for name, value in row.items() if value}
    return list(found.values())


def _rows(table: str) -> csv.DictReader[str]:
    text = (resources.files(__package__) / table).read_text(encoding="utf-8")
    return csv.DictReader(text.splitlines(), delimiter="\t")


def published_beside(reports: Sequence[Mapping[str, Any]]) -> list[Published]:
    """The published numbers of the benchmarks of some reports."""
    benchmarks = {report["benchmark"] for report in reports}
    return [entry for entry in read_published() if any(map(entry.is_of, benchmarks))]


def format_published(reports: Sequence[Mapping[str, Any]], published: Sequence[Published]) -> str:
    """Markdown tables: own rows, then published ones, each saying whether its protocol is that of the own rows.

    What is published without the headline metric has a table per metric of its own.
    """
    blocks = []
    for parts in parts_of(reports).values():
        known = [entry for entry in published if entry.is_of(parts[0].benchmark)]
        if parts[0].part.startswith("mean of"):
            continue
        headline = parts[0].headline
        for metric in dict.fromkeys([headline, *(entry.metric(headline) for entry in known)]):
            entries = [entry for entry in known if entry.metric(headline) == metric]
            if entries:
                blocks.append(_beside(metric, parts, entries))
    return "\n\n".join(blocks)


def _beside(metric: str, parts: Sequence[Part], known: Sequence[Published]) -> str:
    """One table; averages are over the languages that all rows have."""
    own = set.intersection(*(set(part.results) for part in parts))
    languages = [lang for lang in parts[0].results if lang in own and all(lang in e.results for e in known)]
    rows = [["model", *languages, "average", "same protocol"]]
    for part in parts:
        rows.append([part.model, *_cells(part.results, languages, metric), "own"])
    for entry in known:
        same = "yes" if entry.protocol == parts[0].protocol else f"no: {entry.protocol}"
        rows.append([entry.system, *_cells(entry.results, languages, metric), same])
    sources = "\n".join(f"Source: {source}." for source in dict.fromkeys(entry.source for entry in known))
    return f"{parts[0].title_of(metric)}, beside published numbers\n\n{align_table(rows)}\n\n{sources}"


def _cells(results: Mapping[str, Mapping[str, float]], languages: Sequence[str], headline: str) -> list[str]:
    values = [results[language][headline] for language in languages]
    shown = [f"{value:.1f}" for value in values]
    return [*shown, f"{sum(values) / len(values):.1f}" if values else ""]
