#!/usr/bin/env python3
"""Collect the results of the quickstart in report.json, report.html and examples.png.

report.json    results.GALLERY.SYSTEM.LANGUAGE with t2i_R@1, i2t_R@1 and so on; summary, seconds per step, versions,
               seed, counts and licences of the corpus
report.html    the same as tables and plots, with six queries in six languages and their five nearest drawings; one
               self-contained file
examples.png   the queries as a picture

The queries search one drawing of every concept, whatever its role. They were chosen before any results.
"""

import argparse
import base64
import html
import importlib.resources
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mclip_fairseq.cli.main import Parser, run_main
from mclip_fairseq.evaluation.metrics.retrieval import retrieval_ranks, top_images
from mclip_fairseq.evaluation.reports.pictures import Example, draw_examples
from mclip_fairseq.inference import MultilingualCLIP
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.fields import Kind, check_fields
from mclip_fairseq.storage.files import read_json, read_lines
from mclip_fairseq.storage.provenance import provenance

GALLERIES = {
    "seen": "drawings that the teacher was trained on",
    "held_out_artist": "one artist's drawings of concepts whose drawing by the other artist was trained on",
    "held_out_concepts": "concepts without any drawing in the training data",
}
SYSTEMS = {"mclip": "mCLIP", "teacher": "the teacher's own text encoder"}
# Language -> concept: a guitar, a locomotive, a butterfly, a rainbow, a camel and a snowman.
QUERIES = {"es": "1f3b8", "ja": "1f682", "de": "1f98b", "zh": "1f308", "ar": "1f42a", "ru": "2603"}
SHOWN = 5
REMEDY = "run the steps of run.sh before this one"
MANIFEST: dict[str, Kind] = {
    **dict.fromkeys(("roles", "lines", "versions", "shares", "licences"), dict),
    **dict.fromkeys(("concepts", "seed"), int),
    **dict.fromkeys(("languages", "artists"), list),
}
COLUMNS = ("t2i_R@1", "t2i_R@5", "t2i_R@10", "i2t_R@1", "i2t_R@5", "i2t_R@10", "mean_recall")
COLOURS = {"mclip": "#2171b5", "teacher": "#cbc9c9"}
STYLE = """
body { font: 16px/1.5 system-ui, "Noto Sans", "Noto Sans CJK JP", "Noto Sans Arabic", sans-serif;
       max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222; background: #fff }
table { border-collapse: collapse; margin: .5rem 0 1rem; font-variant-numeric: tabular-nums }
td, th { padding: .1rem .7rem; text-align: right; border-bottom: 1px solid #ddd }
td:first-child, th:first-child { text-align: left }
tr.mean td { font-weight: 600 }
.grid td { text-align: center; border: 0; padding: .4rem }
.grid td:first-child { text-align: left; min-width: 14rem }
.grid img { width: 80px; height: 80px; border: 3px solid #eee; border-radius: 8px }
.grid img.own { border-color: #1a9850 }
.query { font-size: 1.25rem } small { color: #666 }
svg text { font: 12px system-ui, sans-serif; fill: #444 }
"""


def read_results(evaluations: Path) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """Gallery -> system -> language -> metrics, from the reports of mclip-evaluate in GALLERY.SYSTEM folders."""

    def results_of(path: Path) -> dict[str, dict[str, float]]:
        results: dict[str, dict[str, float]] = check_fields(path, read_json(path), {"results": dict}, REMEDY)["results"]
        return results

    return {
        gallery: {system: results_of(evaluations / f"{gallery}.{system}" / "report.json") for system in SYSTEMS}
        for gallery in GALLERIES
    }


def read_seconds(path: Path) -> dict[str, float]:
    """Step -> seconds, from lines `step, tab, seconds`.

    Raises:
        UserError: a line has a different form.
    """
    steps = {}
    for number, line in enumerate(read_lines(path), 1):
        step, _, seconds = line.rpartition("\t")
        if not (step and seconds.replace(".", "", 1).isdecimal()):
            raise UserError(f"{path}, line {number}: is not `step, tab, seconds`; {REMEDY}")
        steps[step] = float(seconds)
    return steps


def mean_of_others(languages: Mapping[str, Mapping[str, float]], metric: str) -> float:
    """Mean of a metric over all languages but English."""
    values = [metrics[metric] for language, metrics in languages.items() if language != "en"]
    return sum(values) / len(values)


def summarise(results: Mapping[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """Gallery -> system -> t2i R@10 in English and on average over the other languages."""
    return {
        gallery: {
            system: {
                "en": round(languages["en"]["t2i_R@10"], 1),
                "others": round(mean_of_others(languages, "t2i_R@10"), 1),
            }
            for system, languages in systems.items()
        }
        for gallery, systems in results.items()
    }


def find_examples(model: MultilingualCLIP, corpus: Path, order: Sequence[str]) -> list[Example]:
    """The nearest drawings of the queries, among one drawing of every concept; names/LANG.txt has them in `order`."""
    images = [
        name for gallery in ("seen", "held_out_concepts") for name in read_lines(corpus / "gallery" / f"{gallery}.ids")
    ]
    paths = [corpus / "images" / name for name in images]
    concepts = [path.stem for path in paths]
    texts = [
        read_lines(corpus / "names" / f"{language}.txt")[order.index(concept)] for language, concept in QUERIES.items()
    ]
    features, queries = model.encode_image(paths), model.encode_text(texts)
    own = torch.tensor([concepts.index(concept) for concept in QUERIES.values()])
    scores, nearest = top_images(queries, features, SHOWN)
    ranks = retrieval_ranks(queries, features, own).t2i.tolist()
    return [
        Example(
            text=text,
            language=language,
            images=[paths[row] for row in nearest[number].tolist()],
            scores=scores[number].tolist(),
            own=ranks[number] if ranks[number] < SHOWN else None,
            rank=ranks[number],
        )
        for number, (language, text) in enumerate(zip(QUERIES, texts, strict=True))
    ]


def cjk_fonts() -> list[Path]:
    """The font of package noto-cjk-sans-jp-regular; matplotlib's own has the other scripts."""
    try:
        folder = importlib.resources.files("noto_cjk_sans_jp_regular")
    except ModuleNotFoundError:
        return []
    return [Path(str(entry)) for entry in folder.iterdir() if entry.name.endswith(".otf")]


def html_table(systems: Mapping[str, Any], system: str) -> str:
    """Metrics per language as a table."""
    languages = systems[system]
    heads = "".join(f"<th>{column.replace('_', ' ')}</th>" for column in COLUMNS)
    rows = [
        f"<tr><td>{language}</td>{''.join(f'<td>{metrics[c]:.1f}</td>' for c in COLUMNS)}</tr>"
        for language, metrics in languages.items()
    ]
    means = "".join(f"<td>{mean_of_others(languages, column):.1f}</td>" for column in COLUMNS)
    rows.append(f'<tr class="mean"><td>all but en</td>{means}</tr>')
    return f"<table><tr><th>{html.escape(SYSTEMS[system])}</th>{heads}</tr>{''.join(rows)}</table>"


def svg_bars(systems: Mapping[str, Any], metric: str) -> str:
    """Bars per language, one colour per system."""
    languages = list(systems["mclip"])
    step, height = 52, 180
    parts = []
    for share in (0, 25, 50, 75, 100):
        y = 20 + height * (1 - share / 100)
        parts.append(f'<line x1="34" x2="{40 + step * len(languages)}" y1="{y}" y2="{y}" stroke="#e5e5e5"/>')
        parts.append(f'<text x="30" y="{y + 4}" text-anchor="end">{share}</text>')
    for number, language in enumerate(languages):
        left = 42 + step * number
        for place, system in enumerate(SYSTEMS):
            value = systems[system][language][metric]
            x, length = left + 21 * place, height * value / 100
            parts.append(
                f'<rect x="{x}" y="{20 + height - length:.1f}" width="19" height="{length:.1f}" '
                f'fill="{COLOURS[system]}"/>'
            )
            parts.append(f'<text x="{x + 9.5}" y="{16 + height - length:.1f}" text-anchor="middle">{value:.0f}</text>')
        parts.append(f'<text x="{left + 20}" y="{height + 38}" text-anchor="middle">{language}</text>')
    width = 50 + step * len(languages)
    return f'<svg viewBox="0 0 {width} {height + 48}" width="100%" role="img">{"".join(parts)}</svg>'


def html_examples(examples: Sequence[Example]) -> str:
    """The queries with their nearest drawings, which are embedded in the page."""
    rows = []
    for example in examples:
        cells = []
        for place, (image, score) in enumerate(zip(example.images, example.scores, strict=True)):
            data = base64.b64encode(Path(str(image)).read_bytes()).decode()
            kind = ' class="own"' if place == example.own else ""
            cells.append(
                f'<td><img{kind} alt="" src="data:image/png;base64,{data}"><br><small>{score:.2f}</small></td>'
            )
        query = f'<span class="query" lang="{example.language}" dir="auto">{html.escape(example.text)}</span>'
        assert example.rank is not None
        note = f"<small>{example.language}, own drawing at rank {example.rank + 1}</small>"
        rows.append(f"<tr><td>{query}<br>{note}</td>{''.join(cells)}</tr>")
    return f'<table class="grid">{"".join(rows)}</table>'


def html_page(report: Mapping[str, Any], examples: Sequence[Example]) -> str:
    """The whole page."""
    parts = [
        "<h1>mCLIP in ten minutes: emoji in 14 languages</h1>",
        "<p>Images were trained with English names only. These queries search one drawing of each of "
        f"{report['corpus']['concepts']} concepts; the right drawing has a green frame.</p>",
        html_examples(examples),
    ]
    legend = ", ".join(
        f'<span style="color:{COLOURS[system]}">&#9632;</span> {html.escape(name)}' for system, name in SYSTEMS.items()
    )
    for gallery, systems in report["results"].items():
        parts += [
            f"<h2>{gallery}</h2>",
            f"<p>{html.escape(GALLERIES[gallery])}: {report['galleries'][gallery]} drawings, one per concept. "
            f"Recall at 10 from text to image, in percent: {legend}.</p>",
            svg_bars(systems, "t2i_R@10"),
            *(html_table(systems, system) for system in SYSTEMS),
        ]
    seconds = "".join(
        f"<tr><td>{html.escape(step)}</td><td>{value:.0f}</td></tr>" for step, value in report["seconds"].items()
    )
    parts += [
        f"<h2>Seconds per step</h2><table>{seconds}<tr class='mean'><td>all</td>"
        f"<td>{sum(report['seconds'].values()):.0f}</td></tr></table>",
        "<h2>Made with</h2><p>"
        + html.escape(", ".join(f"{name} {version}" for name, version in report["versions"].items()))
        + f"; seed {report['seed']}.</p><ul>"
        + "".join(f"<li>{html.escape(licence)}</li>" for licence in report["corpus"]["licences"].values())
        + "</ul>",
    ]
    head = f'<meta charset="utf-8"><title>mCLIP quickstart</title><style>{STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>\n'


def build(options: argparse.Namespace, command: Sequence[str]) -> dict[str, Any]:
    """Write the three files; returns the report."""
    path = options.corpus / "manifest.json"
    manifest = check_fields(path, read_json(path), MANIFEST, REMEDY)
    results = read_results(options.evaluations)
    seed = manifest["seed"] if options.seed is None else options.seed
    seconds = options.seconds or options.output / "seconds.tsv"
    made = provenance(command)
    made["versions"] |= manifest["versions"]
    report = {
        "summary": summarise(results),
        **made,
        "seed": seed,
        "seeds": {"corpus": manifest["seed"], "training": seed},
        "seconds": read_seconds(seconds),
        "galleries": {gallery: manifest["lines"][f"gallery/{gallery}.ids"] for gallery in GALLERIES},
        "corpus": {key: manifest[key] for key in ("concepts", "languages", "artists", "shares", "licences")},
        "results": results,
    }
    examples = find_examples(MultilingualCLIP.from_pretrained(options.model), options.corpus, list(manifest["roles"]))
    options.output.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report, indent=1, ensure_ascii=False) + "\n"
    (options.output / "report.json").write_text(text, encoding="utf-8")
    (options.output / "report.html").write_text(html_page(report, examples), encoding="utf-8")
    draw_examples(examples, options.output / "examples.png", fonts=cjk_fonts())
    return report


def print_summary(report: Mapping[str, Any], output: Path) -> None:
    """Print the summary and where the report is."""
    for gallery, systems in report["summary"].items():
        for system, recall in systems.items():
            print(
                f"{gallery:18} {system:8} text to image R@10: English {recall['en']:5.1f}, "
                f"mean of the other {len(report['corpus']['languages']) - 1} languages {recall['others']:5.1f}"
            )
    print(f"Written: {output}/report.json, report.html, examples.png")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    add = parser.add_argument
    add("--corpus", type=Path, required=True, help="output of build_corpus.py")
    add("--evaluations", type=Path, required=True, help="folder with GALLERY.SYSTEM/report.json of mclip-evaluate")
    add("--model", type=Path, required=True, help="the trained mclip checkpoint, which answers the queries")
    add("--seconds", type=Path, help="file with lines `step, tab, seconds` (default: seconds.tsv in the output folder)")
    add("--seed", type=int, help="seed of the training (default: seed of the corpus)")
    add("--output", type=Path, required=True, help="folder for the three files")
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = parser.parse_args(arguments)
    return run_main("report.py", lambda: print_summary(build(options, ["report.py", *arguments]), options.output))


if __name__ == "__main__":
    sys.exit(main())
