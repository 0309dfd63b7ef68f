"""The report of an evaluation: table, notes, files, and reading it again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mclip_fairseq.evaluation.metrics.languages import COUNTS
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.fields import check_fields, has_type
from mclip_fairseq.storage.files import write_bytes

NAMES = {"name": str, "benchmark": str, "kind": str, "headline": str, "partial": dict | None, "model": dict | None}
MIB = 2**20
COSTS = {
    "dim": int,
    "parameters": int,
    "memory": int,
    "texts_per_second": float,
    "images_per_second": float | None,
    "machine": str,
}
CHOICES = {
    "protocol": str,
    "captions": str,
    "gallery": str,
    "hubs": dict | None,
}  # of retrieval
FOLDS = {"number": int, "images": int}


def format_table(evaluation: Mapping[str, Any]) -> str:
    """A Markdown table, aligned so that it reads well on a terminal: a row per language and average.

    Args:
        evaluation: `results` and `average` as a benchmark returns them.
    """
    averages = {"all": "average", "without_en": "average without en"}
    first = next(iter(evaluation["results"].values()))
    columns = [key for key in first if key not in COUNTS]
    rows = [["language", *(key.replace("_R@", " R@").replace("_", " ") for key in columns)]]
    rows += [[language, *_cells(metrics, columns)] for language, metrics in evaluation["results"].items()]
    rows += [[averages.get(key, key), *_cells(metrics, columns)] for key, metrics in evaluation["average"].items()]
    return align_table(rows)


def format_tables(report: Mapping[str, Any]) -> str:
    """The table and, where the report has re-ranked results, their own, with what each is."""
    reranked = report.get("reranked")
    if not reranked:
        return format_table(report)
    titles = ("Features alone:", f"The nearest {reranked['k']} of every query re-ranked by matching scores:")
    tables = (format_table(report), format_table(reranked))
    return "\n\n".join(f"{title}\n\n{table}" for title, table in zip(titles, tables, strict=True))


def align_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows, the header first, as a Markdown table; the first column to the left, the others to the right."""
    widths = [max(3, *map(len, column)) for column in zip(*rows, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(f"| {' | '.join(_align(row, widths))} |" for row in [rows[0], rule, *rows[1:]])


def format_costs(reports: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table with a row per model whose report has `costs`; empty if none has.

    Args:
        reports: of an evaluation.
    """
    known = {report["name"]: report["model"]["costs"] for report in reports if (report.get("model") or {}).get("costs")}
    if not known:
        return ""
    rows = [["model", "dimensions", "parameters", "memory MiB", "texts/s", "images/s", "machine"]]
    for name, costs in known.items():
        speeds = [costs["texts_per_second"], costs["images_per_second"]]
        rows.append(
            [
                name,
                str(costs["dim"]),
                f"{costs['parameters'] / 1e6:.1f} M",
                f"{costs['memory'] / MIB:.0f}",
                *("-" if speed is None else f"{speed:.1f}" for speed in speeds),
                costs["machine"],
            ]
        )
    return align_table(rows)


def format_notes(report: Mapping[str, Any]) -> str:
    """The sentences under the table: protocol, gallery, ties, consistency over languages, warnings."""
    notes = []
    if "gallery" in report:
        gallery = {"captioned": "the images that the language's captions name", "all": "all images"}[report["gallery"]]
        notes.append(f"Recall in percent, {report['protocol']} protocol, searched in {gallery}.")
        if hubs := report.get("hubs"):
            count = sum(language["captions"] for language in hubs["bank"].values())
            notes.append(
                f"Hubs are corrected with a bank of {count} captions and their images, scale {hubs['scale']:g}."
            )
    ties = {language: int(metrics.get("ties", 0)) for language, metrics in report["results"].items()}
    if any(ties.values()):
        counts = ", ".join(f"{language} {count}" for language, count in ties.items() if count)
        notes.append(f"Queries whose best own item ties with a foreign one, counted against them: {counts}.")
    for title, measured in (("", report), (", re-ranked", report.get("reranked") or {})):
        if spread := measured.get("mean_rank_variance"):
            variance, std = spread["variance"], spread["std"]
            notes.append(
                f"Mean rank variance over languages{title}: t2i {variance['t2i']:.2f}, i2t {variance['i2t']:.2f} "
                f"(standard deviation {std['t2i']:.2f}, {std['i2t']:.2f})."
            )
    return "\n".join([*notes, *report.get("notes", ())])


def format_markdown(report: Mapping[str, Any]) -> str:
    """The table, the sentences under it and the command, as in a Markdown file."""
    parts = [format_tables(report), format_costs([report]), format_notes(report), f"```\n{report['command']}\n```"]
    return "\n\n".join(filter(None, parts)) + "\n"


def write_report(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write `report.json` and `report.md` into a folder, created if missing; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    json_path, markdown_path = folder / "report.json", folder / "report.md"
    write_bytes(markdown_path, f"# {report['name']}\n\n{format_markdown(report)}".encode())
    # Last: an earlier report is up to date where this file says so.
    write_bytes(json_path, (json.dumps(report, indent=2, ensure_ascii=False, default=str) + "\n").encode())
    return [json_path, markdown_path]


def check_comparable(file: Path, report: Any, remedy: str) -> dict[str, Any]:
    """Check every field of a report that a comparison reads.

    Args:
        file: where it was read, for messages.
        report: the value of the file.
        remedy: what to do, for messages.

    Returns:
        `report`.

    Raises:
        UserError: a field is missing or has a wrong type.
    """
    check_fields(file, report, NAMES, remedy)
    if (costs := (report.get("model") or {}).get("costs")) is not None:
        check_fields(file, costs, COSTS, remedy)
    if report["kind"] == "retrieval":
        check_fields(file, report, CHOICES, remedy)
    _check_values(file, report, report["headline"], remedy)
    if report.get("folds"):
        _check_values(file, check_fields(file, report["folds"], FOLDS, remedy), report["headline"], remedy)
    for curve in check_fields(file, report.get("curve", {}), {}, remedy).values():
        check_fields(file, curve, {"k": list, "t2i": list}, remedy)
    return report


def _check_values(file: Path, values: Mapping[str, Any], headline: str, remedy: str) -> None:
    """Check the numbers of a report, or of its mean over folds."""
    check_fields(file, values, {"results": dict, "confidence": dict, "average": dict}, remedy)
    check_fields(file, values["average"], {"all": dict}, remedy)
    for metrics in [*values["results"].values(), *values["average"].values()]:
        check_fields(file, metrics, {headline: float}, remedy)
        check_fields(file, metrics, dict.fromkeys(metrics, float), remedy)
    for intervals in values["confidence"].values():
        for metric, interval in check_fields(file, intervals, {}, remedy).items():
            if not (isinstance(interval, list) and [has_type(bound, float) for bound in interval] == [True, True]):
                raise UserError(f"{file}: the interval of {metric} is not [low, high]; {remedy}")


def _cells(metrics: Mapping[str, float], columns: Sequence[str]) -> list[str]:
    return [f"{metrics[key]:.1f}" for key in columns]


def _align(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [
        row[0].ljust(widths[0]),
        *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
    ]
