"""The quickstart's report as one HTML file: queries with their drawings, plots, tables, times."""

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mclip_fairseq.evaluation.reports.fonts import font_faces
from mclip_fairseq.evaluation.reports.html import page, table
from mclip_fairseq.evaluation.reports.pictures import Example

# Gallery -> its heading and what is in it.
GALLERIES = {
    "seen": ("Drawings seen in training", "drawings that the teacher was trained on"),
    "held_out_artist": (
        "Drawings by the other artist",
        "one artist's drawings of concepts whose drawing by the other artist was trained on",
    ),
    "held_out_concepts": ("Concepts never drawn in training", "concepts without any drawing in the training data"),
}
SYSTEMS = {"mclip": "mCLIP", "teacher": "the teacher's own text encoder"}
LANGUAGES = {
    **{"en": "English", "es": "Spanish", "ja": "Japanese", "ko": "Korean", "pt": "Portuguese", "it": "Italian"},
    **{"fr": "French", "de": "German", "fa": "Persian", "id": "Indonesian", "zh": "Chinese", "ru": "Russian"},
    **{"tr": "Turkish", "ar": "Arabic"},
}
COLUMNS = {
    **{f"t2i_R@{k}": f"text to image R@{k}" for k in (1, 5, 10)},
    **{f"i2t_R@{k}": f"image to text R@{k}" for k in (1, 5, 10)},
    "mean_recall": "mean recall",
}
STYLE = """
.example { margin: 0 0 1.2rem }
.example ol {
  display: grid; grid-template-columns: repeat(5, minmax(0, 5.5rem)); gap: .5rem; margin: .4rem 0; padding: 0;
  list-style: none; text-align: center;
}
.example img { width: 72px; max-width: 100%; border: 3px solid transparent; border-radius: .5rem; background: #fff }
.example .own img { border-color: var(--right) }
.query { font-size: 1.25rem }
.mclip { fill: var(--first); color: var(--first) }
.teacher { fill: var(--second); color: var(--second) }
.bars { min-width: 42rem }
.bars text { font: 12px system-ui, sans-serif; fill: var(--ink) }
.bars line { stroke: var(--line) }
"""


def mean_of_others(languages: Mapping[str, Mapping[str, float]], metric: str) -> float:
    """Mean of a metric over all languages but English."""
    values = [metrics[metric] for language, metrics in languages.items() if language != "en"]
    return sum(values) / len(values)


def report_page(report: Mapping[str, Any], examples: Sequence[Example]) -> str:
    """The whole page.

    Args:
        report: the content of report.json.
        examples: queries with image files.
    """
    parts = [
        "<h1>mCLIP in ten minutes: emoji in 14 languages</h1>",
        "<p>Images were trained with English texts only. These queries search one drawing of each of "
        f"{report['corpus']['concepts']} concepts; the right drawing has a green frame.</p>",
        *map(example_html, examples),
    ]
    legend = ", ".join(f'<span class="{system}">&#9632;</span> {html.escape(name)}' for system, name in SYSTEMS.items())
    for gallery, systems in report["results"].items():
        heading, content = GALLERIES[gallery]
        parts += [
            f"<h2>{html.escape(heading)}</h2>",
            f"<p>{report['galleries'][gallery]} {html.escape(content)}, one per concept. "
            f"Recall at 10 from text to image, in per cent: {legend}.</p>",
            svg_bars(systems, "t2i_R@10"),
            *(metrics_table(systems, system) for system in SYSTEMS),
        ]
    seconds = [[step, f"{value:.0f}"] for step, value in report["seconds"].items()]
    total = ["all", f"{sum(report['seconds'].values()):.0f}"]
    parts += [
        "<h2>Seconds per step</h2>",
        table([["step", "seconds"], *seconds, total], sums=1),
        "<h2>Made with</h2><p>"
        + html.escape(", ".join(f"{name} {version}" for name, version in report["versions"].items()))
        + f"; seed {report['seed']}.</p><ul>"
        + "".join(f"<li>{html.escape(licence)}</li>" for licence in report["corpus"]["licences"].values())
        + "</ul>",
    ]
    return page("mCLIP quickstart", parts, STYLE + font_faces(example.text for example in examples)) + "\n"


def example_html(example: Example) -> str:
    """A query with its nearest drawings, which are embedded in the page."""
    items = []
    for place, (image, score) in enumerate(zip(example.images, example.scores, strict=True)):
        data = base64.b64encode(Path(str(image)).read_bytes()).decode()
        kind = ' class="own"' if place == example.own else ""
        items.append(f'<li{kind}><img alt="" src="data:image/png;base64,{data}"><br><small>{score:.2f}</small></li>')
    query = f'<span class="query" lang="{example.language}" dir="auto">{html.escape(example.text)}</span>'
    assert example.rank is not None
    note = f"<small>{LANGUAGES[example.language]}, own drawing at rank {example.rank + 1}</small>"
    return f'<section class="example">{query} {note}<ol>{"".join(items)}</ol></section>'


def metrics_table(systems: Mapping[str, Any], system: str) -> str:
    """Metrics per language."""
    languages = systems[system]
    heads = [
        column.replace("_", " ").replace("t2i", "text to image").replace("i2t", "image to text") for column in COLUMNS
    ]
    rows = [
        [LANGUAGES[language], *(f"{metrics[column]:.1f}" for column in COLUMNS)]
        for language, metrics in languages.items()
    ]
    means = ["mean without English", *(f"{mean_of_others(languages, column):.1f}" for column in COLUMNS)]
    return table([[SYSTEMS[system], *heads], *rows, means], sums=1)


def svg_bars(systems: Mapping[str, Any], metric: str) -> str:
    """Bars per language, one colour per system."""
    languages = list(systems["mclip"])
    step, height = 52, 180
    parts = []
    for share in (0, 25, 50, 75, 100):
        y = 20 + height * (1 - share / 100)
        parts.append(f'<line x1="34" x2="{40 + step * len(languages)}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="30" y="{y + 4}" text-anchor="end">{share}</text>')
    for number, language in enumerate(languages):
        left = 42 + step * number
        for place, system in enumerate(SYSTEMS):
            value = systems[system][language][metric]
            x, length = left + 21 * place, height * value / 100
            y = 20 + height - length
            parts.append(f'<rect class="{system}" x="{x}" y="{y:.1f}" width="19" height="{length:.1f}"/>')
            parts.append(f'<text x="{x + 9.5}" y="{y - 4:.1f}" text-anchor="middle">{value:.0f}</text>')
        parts.append(f'<text x="{left + 20}" y="{height + 38}" text-anchor="middle">{language}</text>')
    width = 50 + step * len(languages)
    drawing = f'<svg class="bars" viewBox="0 0 {width} {height + 48}" width="100%" role="img">{"".join(parts)}</svg>'
    return f'<div class="wide">{drawing}</div>'
