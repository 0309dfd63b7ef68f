"""Several reports side by side: tables for people, CSV for programs."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mclip_fairseq.evaluation.reports.report import align_table

Report = Mapping[str, Any]
PARTIAL = "a part of the published set"
CSV_COLUMNS = ("benchmark", "part", "protocol", "model", "language", "metric", "value", "low", "high", "set")


@dataclass(frozen=True)
class ReportRow:
    """What a report says of one model on all images of a benchmark, or on the mean over its folds: a row of a table.

    Attributes:
        benchmark: its name.
        part: "all images" or "mean of ... folds ..."; empty where a benchmark has no folds.
        headline: the metric that stands for a language.
        protocol: how it was measured.
        model: name of the model.
        results: language -> metrics.
        confidence: language -> metric -> interval.
        average: see `average_languages`.
        is_partial: whether it was measured on a part of the published set.
    """

    benchmark: str
    part: str
    headline: str
    protocol: str
    model: str
    results: Mapping[str, Mapping[str, float]]
    confidence: Mapping[str, Mapping[str, Sequence[float]]]
    average: Mapping[str, Mapping[str, float]]
    is_partial: bool = False

    @property
    def title(self) -> str:
        """Of a table of the headline metric."""
        return self.title_of(self.headline) + (f", {PARTIAL}" if self.is_partial else "")

    def title_of(self, metric: str) -> str:
        """Of a table of any metric."""
        words = [self.benchmark, self.part, metric.replace("_", " "), self.protocol]
        return ", ".join(word for word in words if word)


def rows_by_table(reports: Sequence[Report]) -> dict[str, list[ReportRow]]:
    """Title -> the rows that belong in one table, one per model."""
    tables: dict[str, list[ReportRow]] = {}
    for report in reports:
        for part, values in _all_images_and_folds(report):
            row = ReportRow(
                benchmark=report["benchmark"],
                part=part,
                headline=report["headline"],
                protocol=protocol_words(report),
                model=report["name"],
                results=values["results"],
                confidence=values["confidence"],
                average=values["average"],
                is_partial=bool(report.get("partial")),
            )
            tables.setdefault(row.title, []).append(row)
    return tables


def languages_of(rows: Sequence[ReportRow]) -> list[str]:
    """The languages of all rows, in the order of their first appearance."""
    return list(dict.fromkeys(language for row in rows for language in row.results))


def protocol_words(report: Report) -> str:
    """The protocol of a report; numbers may be compared where the words are the same."""
    if report["kind"] != "retrieval":
        return ""
    captions = {"all": "all captions", "first": "one caption an image"}[report["captions"]]
    distractors = ", all images as distractors" if report["gallery"] == "all" else ""
    hubs = ", hubs corrected" if report.get("hubs") else ""
    return f"{report['protocol']}, {captions}{distractors}{hubs}"


def _all_images_and_folds(report: Report) -> Iterator[tuple[str, Mapping[str, Any]]]:
    folds = report.get("folds")
    yield "all images" if folds else "", report
    if folds:
        yield f"mean of {folds['number']} folds of {folds['images']} images", folds


def format_comparison(reports: Sequence[Report]) -> str:
    """Markdown tables that read well on a terminal: one per benchmark and part, a row per model."""
    blocks = []
    for title, rows in rows_by_table(reports).items():
        languages = languages_of(rows)
        several = len(languages) > 1
        without_en = several and all("without_en" in row.average for row in rows)
        table = [["model", *languages, *(["average"] if several else []), *(["without en"] if without_en else [])]]
        for row in rows:
            values = [row.results.get(language, {}).get(row.headline) for language in languages]
            values += [row.average["all"][row.headline]] if several else []
            values += [row.average["without_en"][row.headline]] if without_en else []
            table.append([row.model, *("" if value is None else f"{value:.1f}" for value in values)])
        blocks.append(f"{title}\n\n{align_table(table)}")
    return "\n\n".join(blocks)


def format_csv(reports: Sequence[Report]) -> str:
    """Every number: a line per benchmark, part, model, language and metric."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for rows in rows_by_table(reports).values():
        for row in rows:
            for language, metrics in row.results.items():
                for metric, value in metrics.items():
                    low, high = row.confidence.get(language, {}).get(metric, ("", ""))
                    words = (row.benchmark, row.part, row.protocol, row.model, language, metric)
                    writer.writerow([*words, value, low, high, PARTIAL if row.is_partial else ""])
    return stream.getvalue()
