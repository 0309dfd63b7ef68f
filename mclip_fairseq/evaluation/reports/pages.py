"""The comparison of several models as files: JSON, CSV, Markdown, and one HTML page that needs no network."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mclip_fairseq.evaluation.published import Published, format_published
from mclip_fairseq.evaluation.reports.comparison import Part, format_comparison, format_csv, parts_of
from mclip_fairseq.storage.provenance import provenance

STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; }
td, th { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid #8884; }
td:first-child, th:first-child { text-align: left; }
img { max-width: 100%; background: white; }
pre { white-space: pre-wrap; }
"""
ENGLISH = "en"


def write_comparison(
    reports: Sequence[Mapping[str, Any]], known: Sequence[Published], folder: Path, command: Sequence[str]
) -> list[Path]:
    """Write `comparison.json`, `.csv`, `.md` and `.html` into a folder; returns their paths.

    Args:
        reports: of every model on every benchmark.
        known: published numbers to put beside them.
        folder: made when needed.
        command: what the user typed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tables = "\n\n".join(filter(None, [format_comparison(reports), format_published(reports, known)]))
    made = provenance(command)
    contents = {
        "comparison.json": json.dumps({**made, "reports": list(reports)}, indent=1, ensure_ascii=False, default=str),
        "comparison.csv": format_csv(reports),
        "comparison.md": f"# Comparison\n\n{tables}\n\n```\n{made['command']}\n```",
        "comparison.html": html_page(reports, tables, made),
    }
    for name, content in contents.items():
        (folder / name).write_text(content.rstrip("\n") + "\n", encoding="utf-8")
    return [folder / name for name in contents]


def html_page(reports: Sequence[Mapping[str, Any]], tables: str, made: Mapping[str, Any]) -> str:
    """Tables and plots in one file.

    Args:
        reports: see ``write_comparison``.
        tables: the Markdown tables.
        made: ``report.provenance``.
    """
    body = ["<h1>Comparison</h1>", *_html_tables(tables)]
    for title, parts in parts_of(reports).items():
        body.append(f"<h2>{html.escape(title)}</h2>")
        body.append(_figure(lambda axes, parts=parts: _draw_languages(axes, parts), "by language"))  # type: ignore[misc]
        if any(ENGLISH in part.results and len(part.results) > 1 for part in parts):
            body.append(_figure(lambda axes, parts=parts: _draw_gaps(axes, parts), "gap to English"))  # type: ignore[misc]
    for report in reports:
        if "curve" in report:
            body.append(f"<h2>{html.escape(report['benchmark'])}, {html.escape(report['name'])}: ranks</h2>")
            body.append(_figure(lambda axes, curve=report["curve"]: _draw_ranks(axes, curve), "ranks"))  # type: ignore[misc]
    notes = dict.fromkeys(note for report in reports for note in report.get("notes", ()))
    body += [f"<p>{html.escape(note)}</p>" for note in notes]
    body.append(f"<pre>{html.escape(made['command'])}\n{html.escape(json.dumps(made['versions']))}</pre>")
    head = f'<meta charset="utf-8"><title>Comparison</title><style>{STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(body)}</body></html>'


def _html_tables(markdown: str) -> list[str]:
    parts: list[str] = []
    rows: list[str] = []
    for line in [*markdown.splitlines(), ""]:
        if line.startswith("|"):
            cells = [cell.strip() for cell in line.strip("|").split(" | ")]
            if set("".join(cells)) - set("-: "):
                kind = "td" if rows else "th"
                rows.append("<tr>" + "".join(f"<{kind}>{html.escape(cell)}</{kind}>" for cell in cells) + "</tr>")
            continue
        if rows:
            parts.append(f"<table>{''.join(rows)}</table>")
            rows = []
        if line:
            parts.append(f"<p>{html.escape(line)}</p>")
    return parts


def _figure(draw: Callable[[Axes], None], alternative: str) -> str:
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    draw(figure.subplots())
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    data = base64.b64encode(stream.getvalue()).decode()
    return f'<img alt="{alternative}" src="data:image/png;base64,{data}">'


def embed_figure(metric: str, series: Mapping[str, Mapping[int, float]]) -> str:
    """A metric over updates as an image in HTML.

    Args:
        metric: its name.
        series: name of a line -> update -> value; a line of few points is drawn with dots.
    """

    def draw(axes: Axes) -> None:
        for name, points in series.items():
            axes.plot(list(points), list(points.values()), "o-" if len(points) < 50 else "-", markersize=3, label=name)
        axes.set_xlabel("updates")
        axes.set_ylabel(metric.replace("_", " "))
        axes.legend(frameon=False, fontsize="small")

    return _figure(draw, html.escape(metric))


def _draw_languages(axes: Axes, parts: Sequence[Part]) -> None:
    """Bars of the headline metric per language, one colour a model, with intervals."""
    languages = list(dict.fromkeys(language for part in parts for language in part.results))
    width = 0.8 / len(parts)
    for number, part in enumerate(parts):
        places = [place for place, language in enumerate(languages) if language in part.results]
        values = [part.results[languages[place]][part.headline] for place in places]
        spans = [part.confidence.get(languages[place], {}).get(part.headline) for place in places]
        errors = [
            [max(0, value - span[0]) if span else 0 for value, span in zip(values, spans, strict=True)],
            [max(0, span[1] - value) if span else 0 for value, span in zip(values, spans, strict=True)],
        ]
        shifted = [place + (number - (len(parts) - 1) / 2) * width for place in places]
        axes.bar(shifted, values, width, yerr=errors, capsize=2, label=part.model)
    axes.set_xticks(range(len(languages)), languages)
    axes.set_ylabel(parts[0].headline.replace("_", " "))
    axes.legend(frameon=False, fontsize="small")


def _draw_gaps(axes: Axes, parts: Sequence[Part]) -> None:
    """How far each language lies below English."""
    languages = list(dict.fromkeys(lang for part in parts for lang in part.results if lang != ENGLISH))
    for part in parts:
        if ENGLISH not in part.results:
            continue
        there = [language for language in languages if language in part.results]
        english = part.results[ENGLISH][part.headline]
        gaps = [part.results[language][part.headline] - english for language in there]
        axes.plot([languages.index(language) for language in there], gaps, "o", label=part.model)
    axes.axhline(0, color="grey", linewidth=1)
    axes.set_xticks(range(len(languages)), languages)
    axes.set_ylabel("points from English")
    axes.legend(frameon=False, fontsize="small")


def _draw_ranks(axes: Axes, curve: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    """Recall against how many results are looked at."""
    for language, values in curve.items():
        axes.plot(values["k"], values["t2i"], label=language)
    axes.set_xscale("log")
    axes.set_ylim(0, 100)
    axes.set_xlabel("results looked at")
    axes.set_ylabel("text to image recall (%)")
    axes.legend(frameon=False, fontsize="small", ncols=2)
