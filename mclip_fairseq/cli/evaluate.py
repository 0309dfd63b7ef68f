"""``mclip-evaluate``: any number of models on any number of benchmarks, as tables, JSON, CSV and pictures."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mclip_fairseq.encoding.cache import CachedEncoder
from mclip_fairseq.encoding.captions import files_by_language, read_caption_files
from mclip_fairseq.encoding.galleries import FeatureGallery, Gallery, ImageGallery
from mclip_fairseq.evaluation.benchmarks.base import CAPTIONS, Benchmark, Settings
from mclip_fairseq.evaluation.benchmarks.open import Places, open_benchmark
from mclip_fairseq.evaluation.benchmarks.retrieval import RetrievalBenchmark
from mclip_fairseq.evaluation.metrics.retrieval import PROTOCOLS
from mclip_fairseq.evaluation.reports.comparison import format_comparison
from mclip_fairseq.evaluation.reports.report import format_notes, format_table, write_report
from mclip_fairseq.evaluation.runner import Candidate, Pictures, Report, run, slug
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import shown
from mclip_fairseq.storage.images import MAX_PIXELS, check_max_pixels

PROGRAM = "mclip-evaluate"
DEFAULT_QUERIES = 6
NOTHING = "-"
GALLERIES = {
    "captioned": "search the images that the captions of a language name (default)",
    "all": "search all images that are there, the others as distractors",
}
EPILOG = """\
BENCHMARK is a directory that a script of preprocess/ wrote, or DIR:SPLIT for another split than test. Without one,
--captions and --features or --images name the data.

captions: one per line with --ids (an image id per line), or 'id, tab, caption' lines in a .tsv file; .gz is
read too. An image id is the name in the feature directory, or the path relative to the image folder; the
extension may be left out. Every caption is evaluated; an image that is not there is an error.

examples:
  mclip-evaluate --model checkpoints/mclip.pt --features features/valid --ids valid.ids \\
      --captions en=valid.en de=valid.de --output runs/valid
  mclip-evaluate data/xtd10 data/tatoeba --model mclip-base M-CLIP/XLM-Roberta-Large-Vit-B-32 \\
      --teacher - openai/clip-vit-base-patch32 --images-root coco --output runs/compared --published

A call that is repeated evaluates only what its output folder does not hold yet.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``mclip-evaluate``; returns 0, or 2 after one sentence on stderr when something cannot be used."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = _parser().parse_args(arguments)
    try:
        evaluate(options, [PROGRAM, *arguments])
    except (ValueError, OSError) as error:
        print(f"{PROGRAM}: error: {shown(str(error))}", file=sys.stderr)
        return 2
    return 0


def evaluate(options: argparse.Namespace, command: Sequence[str]) -> list[Report]:
    """Evaluate every model on every benchmark, print tables, write files; returns the reports.

    Args:
        options: as the parser of this script makes them.
        command: what the user typed, for the reports.

    Raises:
        UserError: in one sentence, when an option or a file cannot be used.
    """
    _refuse_contradictions(options)
    check_max_pixels(options.max_pixels)
    if options.hypotheses:
        return [score_translations(options, command)]
    benchmarks = open_benchmarks(options)
    for note in dict.fromkeys(note for benchmark in benchmarks for note in benchmark.notes if note.startswith("Leak")):
        print(f"{PROGRAM}: warning: {note}", file=sys.stderr)
    settings = Settings(options.batch_size, options.protocol, options.gallery, options.captions_per_image)
    pictures = Pictures(DEFAULT_QUERIES if options.queries is None else options.queries, options.font)
    alone = len(options.model) == 1 and not options.benchmark
    reports: list[Report] = []
    names: list[str] = []
    for number in range(len(options.model)):
        candidate = candidate_of(options, number)
        names.append(candidate.name)
        _refuse_same("models", names)
        for benchmark in benchmarks:
            folder = options.output
            if folder is not None and not alone:
                folder = folder / slug(benchmark.name) / slug(candidate.name)
            reports.append(run(candidate, benchmark, settings, folder, pictures, command))
    if not alone:
        compare(reports, options, command)
    return reports


def compare(reports: Sequence[Report], options: argparse.Namespace, command: Sequence[str]) -> None:
    """Print the tables of all models and write them in every form."""
    from mclip_fairseq.evaluation.published import format_published, published_beside
    from mclip_fairseq.evaluation.reports.pages import write_comparison

    known = published_beside(reports) if options.published else []
    print("\n\n".join(filter(None, ["", format_comparison(reports), format_published(reports, known)])))
    if options.output is not None:
        print("\nWritten: " + ", ".join(map(str, write_comparison(reports, known, options.output, command))))


def score_translations(options: argparse.Namespace, command: Sequence[str]) -> Report:
    """BLEU and chrF of translations that are there already."""
    from mclip_fairseq.evaluation.benchmarks.translation import translation_report

    hypotheses = files_by_language(options.hypotheses, "--hypotheses")
    references = files_by_language(options.references, "--references")
    report = translation_report(hypotheses, references, command)
    print(f"{format_table(report)}\n\n{format_notes(report)}")
    if options.output is not None:
        print("Written: " + ", ".join(map(str, write_report(report, options.output))))
    return report


def open_benchmarks(options: argparse.Namespace) -> list[Benchmark]:
    """What the positional arguments or ``--captions`` name."""
    if options.benchmark:
        roots = [None if root == Path(NOTHING) else root for root in options.images_root or [None]]
        roots = roots * len(options.benchmark) if len(roots) == 1 else roots
        benchmarks = [
            open_benchmark(source, Places(root, options.features, options.languages))
            for source, root in zip(options.benchmark, roots, strict=True)
        ]
        _refuse_same("benchmarks", [benchmark.name for benchmark in benchmarks])
        return benchmarks
    captions = read_caption_files(options.captions, options.ids)
    return [RetrievalBenchmark("captions", captions, open_galleries(options))]


def open_galleries(options: argparse.Namespace) -> list[Gallery]:
    """What ``--features`` or ``--images`` names."""
    if options.images is not None:
        return [ImageGallery(options.images)]
    from mclip_fairseq.storage.features import FeatureStore

    root = options.images_root[0] if options.images_root else None
    return [FeatureGallery(FeatureStore.open(path), path, root) for path in options.features]


def candidate_of(options: argparse.Namespace, number: int) -> Candidate:
    """Load one of the models."""
    model = load_model(options, number)
    name = options.name[number] if options.name else str(getattr(model, "name", options.model[number]))
    same = [row for row, path in enumerate(options.model) if Path(path).name == Path(options.model[number]).name]
    if not options.name and len(same) > 1:
        name = options.model[number]
    facts = {"path": options.model[number], "identity": getattr(model, "identity", None)}
    facts |= {"device": options.device, "dtype": options.dtype, "batch_size": options.batch_size}
    cache = options.cache
    return Candidate(name, model if cache is None else CachedEncoder(model, cache, model.fingerprint), facts)


def load_model(options: argparse.Namespace, number: int) -> Any:
    """One of ``--model``, on the device and in the type asked for."""
    from mclip_fairseq.inference import MultilingualCLIP

    dtype = None if options.dtype is None else getattr(torch, options.dtype)
    beside = {
        name: values[number]
        for name, values in (("text_encoder", options.text_encoder), ("teacher", options.teacher))
        if values and values[number] != NOTHING
    }
    model = MultilingualCLIP.from_pretrained(options.model[number], device=options.device, dtype=dtype, **beside)
    model.max_pixels = options.max_pixels
    return model


def _refuse_contradictions(options: argparse.Namespace) -> None:
    if options.hypotheses:
        if options.model or options.benchmark or options.captions:
            raise UserError("--hypotheses are scored by themselves: leave models, benchmarks and captions out.")
        return
    if not options.model:
        raise UserError("nothing to evaluate: give --model, or --hypotheses with --references.")
    if options.benchmark and (options.captions or options.ids or options.images):
        raise UserError("--captions, --ids and --images name data of your own: leave them out beside benchmarks.")
    if not options.benchmark and not options.captions:
        raise UserError("nothing to evaluate on: name benchmarks, or give --captions with --features or --images.")
    if not options.benchmark and not (options.images or options.features):
        raise UserError("--captions need something to search: give --features or --images.")
    if options.images and options.features:
        raise UserError("--images and --features: give one of the two.")
    if options.images_root is not None and options.images is not None:
        raise UserError("--images-root goes with --features: with --images the pictures are known already.")
    if not options.benchmark and options.languages:
        raise UserError("--languages chooses among those of benchmarks: with --captions, name the files you want.")
    if options.output is None and (options.queries is not None or options.font):
        raise UserError("--queries and --font shape the pictures in the output folder: give --output too.")
    if options.published and not options.benchmark:
        raise UserError("--published compares benchmarks: name one.")
    roots, sets = len(options.images_root or ()), len(options.benchmark) or 1
    if roots not in (0, 1, sets):
        raise UserError(f"--images-root: {roots} given for {sets} benchmarks: give one for all, or one each.")
    _refuse_same("models", options.name or ())
    for name in ("name", "text_encoder", "teacher"):
        values = getattr(options, name)
        if values and len(values) != len(options.model):
            option = "--" + name.replace("_", "-")
            raise UserError(
                f"{option}: {len(values)} given for {len(options.model)} models: give one each, {NOTHING} for none."
            )


def _refuse_same(what: str, names: Sequence[str]) -> None:
    """Their reports would lie in one place, and one row of a table looks like the other."""
    for number, name in enumerate(names):
        if slug(name) in map(slug, names[:number]):
            raise UserError(f"two {what} are called {name!r}: evaluate them in two calls, or give --name for models.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Retrieval, translation matching, similarity and classification in many languages.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("benchmark", nargs="*", metavar="BENCHMARK", help="directory of preprocess/, or DIR:SPLIT")
    _add_model(parser)
    _add_inputs(parser)
    _add_outputs(parser)
    return parser


def _add_inputs(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--captions", nargs="+", default=[], metavar="LANG=FILE", help="captions of each language")
    add(
        "--ids", nargs="+", default=[], metavar="[LANG=]FILE", help="image id per caption line, for all or per language"
    )
    add("--features", type=_path, nargs="+", default=[], metavar="DIR", help="directories that mclip-features made")
    add("--images", type=_path, metavar="PATH", help="folder of pictures, or a list of paths")
    roots = f"pictures of the benchmarks, of all or one each ({NOTHING} for none), or those behind --features"
    add("--images-root", nargs="+", type=_path, metavar="DIR", help=roots)
    add(
        "--max-pixels",
        type=_positive,
        default=MAX_PIXELS,
        metavar="N",
        help=f"refuse a picture of more pixels (default {MAX_PIXELS})",
    )
    add("--languages", nargs="+", metavar="LANG", help="which of the benchmarks' languages (all)")
    galleries = "; ".join(f"{name}: {meaning}" for name, meaning in GALLERIES.items())
    add(
        "--hypotheses",
        nargs="+",
        default=[],
        metavar="LANG=FILE",
        help="translations, plain or of fairseq-generate; LANG may be a direction, en-de",
    )
    add("--references", nargs="+", default=[], metavar="LANG=FILE", help="of --hypotheses, for BLEU and chrF")
    add("--gallery", choices=tuple(GALLERIES), default="captioned", help=galleries)
    add("--protocol", choices=PROTOCOLS, default="strict", help="strict (default), or the released mCLIP script's")
    captions = "; ".join(f"{name}: {meaning}" for name, meaning in CAPTIONS.items())
    add("--captions-per-image", choices=tuple(CAPTIONS), default="all", help=captions)


def _add_model(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--model",
        nargs="+",
        default=[],
        help="training checkpoint, exported directory or name of a model; several are compared",
    )
    add("--text-encoder", nargs="+", metavar="DIR", help="where the models' text encoders are now, if they have moved")
    add("--teacher", nargs="+", metavar="NAME", help="the models' image towers, if they have moved or have none (-)")
    add("--device", help="for example cpu or cuda:0 (default: a GPU when there is one)")
    add("--dtype", choices=("float32", "float16", "bfloat16"), help="type it computes in (default: float32)")
    add("--batch-size", type=_positive, default=256, metavar="N", help="captions or images at once (default 256)")
    add("--cache", type=_path, metavar="DIR", help="keep features here, by content, and compute none twice")


def _add_outputs(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--output",
        type=_path,
        metavar="DIR",
        help="write reports and pictures here; of several models or of benchmarks also a comparison",
    )
    add("--queries", type=_count, metavar="N", help=f"rows of examples.png (default {DEFAULT_QUERIES}; 0: none)")
    add("--font", type=_path, action="append", default=[], metavar="FILE", help="font for captions; repeatable")
    add("--name", nargs="+", help="names of the models in tables and reports (default: their own)")
    add("--published", action="store_true", help="also compare with published numbers of the same benchmarks")


def _path(value: str) -> Path:
    return Path(value).expanduser()


def _count(value: str) -> int:
    number = int(value)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{value} is negative")
    return number


def _positive(value: str) -> int:
    number = int(value)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{value} is not positive")
    return number


if __name__ == "__main__":
    sys.exit(main())
