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
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from page import GALLERIES, SYSTEMS, mean_of_others, report_page

from mclip_fairseq.cli.main import Parser, run_main
from mclip_fairseq.evaluation.metrics.retrieval import retrieval_ranks, top_images
from mclip_fairseq.evaluation.reports.pictures import Example, draw_examples
from mclip_fairseq.inference import MultilingualCLIP
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.fields import Kind, check_fields
from mclip_fairseq.storage.files import read_json, read_lines
from mclip_fairseq.storage.provenance import provenance

# Language -> concept: a guitar, a locomotive, a butterfly, a rainbow, a camel and a snowman.
QUERIES = {"es": "1f3b8", "ja": "1f682", "de": "1f98b", "zh": "1f308", "ar": "1f42a", "ru": "2603"}
SHOWN = 5
REMEDY = "run the steps of run.sh before this one"
MANIFEST: dict[str, Kind] = {
    **dict.fromkeys(("roles", "lines", "versions", "shares", "licences"), dict),
    **dict.fromkeys(("concepts", "seed"), int),
    **dict.fromkeys(("languages", "artists"), list),
}


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
    (options.output / "report.html").write_text(report_page(report, examples), encoding="utf-8")
    draw_examples(examples, options.output / "examples.png")
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
