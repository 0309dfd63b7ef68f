"""Several reports side by side: tables for people, CSV and JSON for programs."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mclip_fairseq.evaluation.reports.report import align_table

Report = Mapping[str, Any]
CSV_COLUMNS = ("benchmark", "part", "protocol", "model", "language", "metric", "value", "low", "high")


@dataclass(frozen=True)
class Part:
    """What of a report is compared: all images of a benchmark, or the mean over its folds.

    Attributes:
        benchmark: its name.
        part: in words; empty where there is only one.
        headline: the metric that stands for a language.
        protocol: how it was measured.
        model: name of the model.
        results: language -> metrics.
        confidence: language -> metric -> interval.
        average: see ``average_languages``.
    """

    benchmark: str
    part: str
    headline: str
    protocol: str
    model: str
    results: Mapping[str, Mapping[str, float]]
    confidence: Mapping[str, Mapping[str, Sequence[float]]]
    average: Mapping[str, Mapping[str, float]]

    @property
    def title(self) -> str:
        """Of a table of the headline metric."""
        return self.title_of(self.headline)

    def title_of(self, metric: str) -> str:
        """Of a table of any metric."""
        words = [self.benchmark, self.part, metric.replace("_", " "), self.protocol]
        return ", ".join(word for word in words if word)


def parts_of(reports: Sequence[Report]) -> dict[str, list[Part]]:
    """Title -> the parts that belong into one table, a row per model."""
    tables: dict[str, list[Part]] = {}
    for report in reports:
        for name, values in _values(report):
            part = Part(
                benchmark=report["benchmark"],
                part=name,
                headline=report["headline"],
                protocol=protocol_words(report),
                model=report["name"],
                results=values["results"],
                confidence=values["confidence"],
                average=values["average"],
            )
            tables.setdefault(part.title, []).append(part)
    return tables


def protocol_words(report: Report) -> str:
    """The protocol of a report, so that two numbers of the same words may be compared."""
    if report["kind"] != "retrieval":
        return ""
    captions = {"all": "all captions", "first": "one caption an image"}[report["captions"]]
    distractors = ", all images as distractors" if report["gallery"] == "all" else ""
    return f"{report['protocol']}, {captions}{distractors}"


def _values(report: Report) -> Iterator[tuple[str, Mapping[str, Any]]]:
    folds = report.get("folds")
    yield "all images" if folds else "", report
    if folds:
        yield f"mean of {folds['number']} folds of {folds['images']} images", folds


def format_comparison(reports: Sequence[Report]) -> str:
    """Markdown tables that read well on a terminal: one per benchmark and part, a row per model."""
    blocks = []
    for title, parts in parts_of(reports).items():
        languages = list(dict.fromkeys(language for part in parts for language in part.results))
        several = len(languages) > 1
        without_en = several and all("without_en" in part.average for part in parts)
        header = ["model", *languages, *(["average"] if several else []), *(["without en"] if without_en else [])]
        rows = [header]
        for part in parts:
            found = [part.results.get(language, {}).get(part.headline) for language in languages]
            found += [part.average["all"][part.headline]] if several else []
            found += [part.average["without_en"][part.headline]] if without_en else []
            rows.append([part.model, *("" if value is None else f"{value:.1f}" for value in found)])
        blocks.append(f"{title}\n\n{align_table(rows)}")
    return "\n\n".join(blocks)


def format_csv(reports: Sequence[Report]) -> str:
    """Every number: a line per benchmark, part, model, language and metric."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for parts in parts_of(reports).values():
        for part in parts:
            for language, metrics in part.results.items():
                for metric, value in metrics.items():
                    low, high = part.confidence.get(language, {}).get(metric, ("", ""))
                    words = (part.benchmark, part.part, part.protocol, part.model, language, metric)
                    writer.writerow([*words, value, low, high])
    return stream.getvalue()
