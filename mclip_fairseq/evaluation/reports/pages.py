"""HTML pages that need no network, of a comparison and of a training, and the comparison in every other form."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mclip_fairseq.evaluation.published import Published, format_published
from mclip_fairseq.evaluation.reports.comparison import (
    PARTIAL,
    ReportRow,
    format_comparison,
    format_csv,
    languages_of,
    rows_by_table,
)
from mclip_fairseq.evaluation.reports.html import page, table
from mclip_fairseq.evaluation.reports.report import format_costs
from mclip_fairseq.evaluation.reports.training_log import Curves
from mclip_fairseq.evaluation.reports.training_summary import chosen_options, summary
from mclip_fairseq.storage.extras import import_extra
from mclip_fairseq.storage.files import write_bytes
from mclip_fairseq.storage.provenance import provenance

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ENGLISH = "en"
# Plots have no background; this grey reads well on white and on black.
INK = "#7f868e"
INKED = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
FEW_POINTS = 50  # a line of fewer is drawn with dots


def write_comparison(
    reports: Sequence[Mapping[str, Any]], published: Sequence[Published], folder: Path, command: Sequence[str]
) -> list[Path]:
    """Write `comparison.json`, `.csv`, `.md` and `.html` into a folder; returns their paths.

    Args:
        reports: of every model on every benchmark.
        published: numbers to compare them with.
        folder: created if missing.
        command: the command line.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = [format_comparison(reports), format_costs(reports), format_published(reports, published)]
    tables = "\n\n".join(filter(None, parts))
    source = provenance(command)
    contents = {
        "comparison.json": json.dumps({**source, "reports": list(reports)}, indent=1, ensure_ascii=False, default=str),
        "comparison.csv": format_csv(reports),
        "comparison.md": f"# Comparison\n\n{tables}\n\n```\n{source['command']}\n```",
        "comparison.html": comparison_page(reports, tables, source),
    }
    for name, content in contents.items():
        write_bytes(folder / name, (content.rstrip("\n") + "\n").encode())
    return [folder / name for name in contents]


def comparison_page(reports: Sequence[Mapping[str, Any]], tables: str, source: Mapping[str, Any]) -> str:
    """Tables and plots of a comparison in one file.

    Args:
        reports: see `write_comparison`.
        tables: the Markdown tables.
        source: `storage.provenance.provenance` of the call.
    """
    body = ["<h1>Comparison</h1>", *_html_tables(tables)]
    for title, rows in rows_by_table(reports).items():
        body.append(f"<h2>{html.escape(title)}</h2>")
        body.append(_figure(partial(_draw_languages, rows=rows), "by language"))
        if any(ENGLISH in row.results and len(row.results) > 1 for row in rows):
            body.append(_figure(partial(_draw_gaps, rows=rows), "gap to English"))
    for report in reports:
        if "curve" in report:
            part = f", {PARTIAL}" if report.get("partial") else ""
            body.append(f"<h2>{html.escape(report['benchmark'])}{part}, {html.escape(report['name'])}: ranks</h2>")
            body.append(_figure(partial(_draw_ranks, curve=report["curve"]), "ranks"))
    notes = dict.fromkeys(note for report in reports for note in report.get("notes", ()))
    body += [f"<p>{html.escape(note)}</p>" for note in notes]
    body.append(f"<pre>{html.escape(source['command'])}\n{html.escape(json.dumps(source['versions']))}</pre>")
    return page("Comparison", body)


def training_page(curves: Curves, title: str, logs: Sequence[Path], command: Sequence[str]) -> str:
    """A plot per metric of a training; each place of logging (train, valid ...) is a line of its own.

    Args:
        curves: what was logged.
        title: of the page.
        logs: the files it was read from.
        command: the command line.
    """
    body = [f"<h1>{html.escape(title)}</h1>", "<h2>Summary</h2>", table([["", ""], *summary(curves)])]
    if curves.options:
        body.append("<h2>Options</h2>" + table([["option", "value"], *chosen_options(curves.options)]))
    for metric in curves.metrics:
        series = {place: metrics[metric] for place, metrics in curves.points.items() if metric in metrics}
        plot = _figure(partial(_draw_series, metric=metric, series=series), html.escape(metric))
        body.append(f"<h2>{html.escape(metric)}</h2>{plot}")
    source = provenance(command)
    facts = {"command": source["command"], "versions": source["versions"], "logs": list(map(str, logs))}
    body.append(f"<pre>{html.escape(json.dumps(facts, indent=1))}</pre>")
    return page(title, body) + "\n"


def _html_tables(markdown: str) -> list[str]:
    """Tables of `align_table` and the lines between them, as HTML."""
    blocks: list[str] = []
    rows: list[list[str]] = []
    for line in [*markdown.splitlines(), ""]:
        if line.startswith("|"):
            cells = [cell.strip() for cell in line.strip("|").split(" | ")]
            if set("".join(cells)) - set("-: "):  # not the rule under the header
                rows.append(cells)
            continue
        if rows:
            blocks.append(table(rows))
            rows = []
        if line:
            blocks.append(f"<p>{html.escape(line)}</p>")
    return blocks


def _figure(plot: Callable[[Axes], None], alternative: str) -> str:
    """An image in HTML of what `plot` draws."""
    matplotlib = import_extra("matplotlib", "evaluate")
    stream = io.BytesIO()
    with matplotlib.rc_context(dict.fromkeys(INKED, INK)):
        figure = import_extra("matplotlib.figure", "evaluate").Figure(figsize=(10, 3.6), layout="constrained")
        plot(figure.subplots())
        figure.savefig(stream, format="png", dpi=110, transparent=True)
    data = base64.b64encode(stream.getvalue()).decode()
    return f'<img alt="{alternative}" src="data:image/png;base64,{data}">'


def _draw_series(axes: Axes, metric: str, series: Mapping[str, Mapping[int, float]]) -> None:
    """A metric over updates, a line per place of logging."""
    for name, points in series.items():
        style = "o-" if len(points) < FEW_POINTS else "-"
        axes.plot(list(points), list(points.values()), style, markersize=3, label=name)
    axes.xaxis.set_major_locator(import_extra("matplotlib.ticker", "evaluate").MaxNLocator(integer=True))
    axes.set_xlabel("updates")
    axes.set_ylabel(metric.replace("_", " "))
    axes.legend(frameon=False, fontsize="small")


def _draw_languages(axes: Axes, rows: Sequence[ReportRow]) -> None:
    """Bars of the headline metric per language, one colour a model, with intervals."""
    languages = languages_of(rows)
    width = 0.8 / len(rows)
    for number, row in enumerate(rows):
        places = [place for place, language in enumerate(languages) if language in row.results]
        values = [row.results[languages[place]][row.headline] for place in places]
        spans = [row.confidence.get(languages[place], {}).get(row.headline) for place in places]
        errors = [
            [max(0, value - span[0]) if span else 0 for value, span in zip(values, spans, strict=True)],
            [max(0, span[1] - value) if span else 0 for value, span in zip(values, spans, strict=True)],
        ]
        shifted = [place + (number - (len(rows) - 1) / 2) * width for place in places]
        axes.bar(shifted, values, width, yerr=errors, capsize=2, label=row.model)
    axes.set_xticks(range(len(languages)), languages)
    axes.set_ylabel(rows[0].headline.replace("_", " "))
    axes.legend(frameon=False, fontsize="small")


def _draw_gaps(axes: Axes, rows: Sequence[ReportRow]) -> None:
    """How far each language lies below English."""
    languages = [language for language in languages_of(rows) if language != ENGLISH]
    for row in rows:
        if ENGLISH not in row.results:
            continue
        measured = [language for language in languages if language in row.results]
        english = row.results[ENGLISH][row.headline]
        gaps = [row.results[language][row.headline] - english for language in measured]
        axes.plot([languages.index(language) for language in measured], gaps, "o", label=row.model)
    axes.axhline(0, color="grey", linewidth=1)
    axes.set_xticks(range(len(languages)), languages)
    axes.set_ylabel("points from English")
    axes.legend(frameon=False, fontsize="small")


def _draw_ranks(axes: Axes, curve: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    """Recall over the number of results looked at."""
    for language, values in curve.items():
        axes.plot(values["k"], values["t2i"], label=language)
    axes.set_xscale("log")
    axes.set_ylim(0, 100)
    axes.set_xlabel("results looked at")
    axes.set_ylabel("text to image recall (%)")
    axes.legend(frameon=False, fontsize="small", ncols=2)
