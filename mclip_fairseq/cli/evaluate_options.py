"""The options of `mclip-evaluate`: parser, help, and which of them contradict each other."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from mclip_fairseq.cli.main import Parser
from mclip_fairseq.cli.options import DTYPES
from mclip_fairseq.evaluation.benchmarks.settings import CAPTIONS, GALLERIES
from mclip_fairseq.evaluation.metrics.protocols import PROTOCOLS
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import check_folder
from mclip_fairseq.storage.images import MAX_PIXELS, check_max_pixels

PROGRAM = "mclip-evaluate"
DEFAULT_QUERIES = 6
NOTHING = "-"
PER_MODEL = ("name", "text_encoder", "teacher")  # one value for each of --model
EPILOG = """\
BENCHMARK is a directory written by a script of preprocess/, or DIR:SPLIT for a split other than test. Without one,
--captions and --features or --images name the data.

Captions are one per line with --ids (one image id per line), or 'id, tab, caption' lines in a .tsv file; .gz files
are read too. An image id is the name in the feature directory, or the path relative to the image folder; the
extension may be omitted. Every caption is evaluated; a missing image is an error.

examples:
  mclip-evaluate --model checkpoints/mclip.pt --features features/valid --ids valid.ids \\
      --captions en=valid.en de=valid.de --output runs/valid
  mclip-evaluate data/xtd10 data/tatoeba --model mclip-base M-CLIP/XLM-Roberta-Large-Vit-B-32 \\
      --teacher - openai/clip-vit-base-patch32 --images-root coco --output runs/compared --published

A repeated call evaluates only what is missing in its output folder.
"""
Rules = list[tuple[bool, str]]


def check_options(options: argparse.Namespace) -> None:
    """Refuse options that contradict each other, before anything is read.

    Raises:
        UserError: the sentence of the first rule that applies.
    """
    rules = translation_rules(options) if options.hypotheses else [*data_rules(options), *model_rules(options)]
    for applies, sentence in rules:
        if applies:
            raise UserError(sentence)
    check_max_pixels(options.max_pixels)
    check_folder("--output", options.output)
    check_folder("--cache", options.cache)
    for font in options.font:
        if not font.is_file():
            raise UserError(f"--font {font}: not found; give a font file")


def translation_rules(options: argparse.Namespace) -> Rules:
    """(whether it applies, what is wrong; what to do) for `--hypotheses`."""
    return [
        (
            bool(options.model or options.benchmark or options.captions),
            "--hypotheses are scored by themselves; omit models, benchmarks and captions",
        ),
    ]


def data_rules(options: argparse.Namespace) -> Rules:
    """(whether it applies, what is wrong; what to do) for models and the data they are evaluated on."""
    own_data = bool(options.captions or options.ids or options.images)
    roots, benchmarks = len(options.images_root or ()), len(options.benchmark)
    return [
        (not options.model, "nothing to evaluate; give --model, or --hypotheses with --references"),
        (
            bool(benchmarks and own_data),
            "--captions, --ids and --images name data of your own; omit them beside benchmarks",
        ),
        (
            not benchmarks and not options.captions,
            "nothing to evaluate on; name benchmarks, or give --captions with --features or --images",
        ),
        (
            not benchmarks and not (options.images or options.features),
            "--captions need something to search; give --features or --images",
        ),
        (bool(options.images and options.features), "--images and --features exclude each other; give one of the two"),
        (
            bool(options.images_root and options.images),
            "--images-root goes with --features; --images already names the pictures",
        ),
        (
            not benchmarks and bool(options.languages),
            "--languages chooses from the languages of benchmarks; with --captions, name the files you want",
        ),
        (
            roots not in (0, 1, benchmarks or 1),
            f"--images-root: {roots} given for {benchmarks or 1} benchmarks; give one for all, or one each",
        ),
        (
            bool(options.rerank) and options.protocol != "strict",
            "--rerank counts as the strict protocol does; leave out --protocol",
        ),
        (
            bool(options.hub_ids and not options.hub_captions),
            "--hub-ids names the images of --hub-captions; give these too",
        ),
        (
            bool(options.hub_captions and options.rerank),
            "--hub-captions corrects features, and --rerank does not use them alone; give one of the two",
        ),
        (
            options.hash_images and not (options.output and (options.images or (benchmarks and options.images_root))),
            "--hash-images compares images with those of a report; give --output, and the images instead of --features",
        ),
        (options.published and not benchmarks, "--published compares benchmarks; name one"),
    ]


def model_rules(options: argparse.Namespace) -> Rules:
    """(whether it applies, what is wrong; what to do) for options per model and for pictures."""
    rules: Rules = [
        (
            options.output is None and bool(options.queries is not None or options.font),
            "--queries and --font shape the pictures in the output folder; give --output too",
        ),
    ]
    for name in PER_MODEL:
        values, option = getattr(options, name) or options.model, "--" + name.replace("_", "-")
        counts = f"{len(values)} given for {len(options.model)} models"
        rules.append((len(values) != len(options.model), f"{option}: {counts}; give one each, {NOTHING} for none"))
    return rules


def parser() -> argparse.ArgumentParser:
    """The parser of `mclip-evaluate`."""
    made = Parser(
        prog=PROGRAM,
        description="Retrieval, translation matching, similarity and classification in many languages.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument(
        "benchmark", nargs="*", metavar="BENCHMARK", help="directory written by a script of preprocess/, or DIR:SPLIT"
    )
    _add_models(made.add_argument_group("models"))
    _add_data(made.add_argument_group("data"))
    _add_protocol(made.add_argument_group("protocol"))
    _add_output(made.add_argument_group("output"))
    return made


def _add_models(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    models = "training checkpoint, exported directory or name of a published model; several models are compared"
    add("--model", nargs="+", default=[], help=models)
    add("--name", nargs="+", help="name of each model in tables and reports (default: its own)")
    moved = f"where the text encoder of each model is now, if it has moved ({NOTHING} = unchanged)"
    add("--text-encoder", nargs="+", metavar="DIR", help=moved)
    teacher = "image tower of each model, if it has moved or the model has none"
    add("--teacher", nargs="+", metavar="NAME", help=f"{teacher} ({NOTHING} = its own)")
    add("--device", help="for example cpu or cuda:0 (default: a GPU if available)")
    add("--dtype", choices=DTYPES, help="type to compute in (default: float32)")
    add("--batch-size", type=_positive, default=256, metavar="N", help="captions or images at once (default 256)")
    add("--cache", type=_path, metavar="DIR", help="keep features here, recognised by content, and reuse them")


def _add_data(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--languages", nargs="+", metavar="LANG", help="languages of the benchmarks to evaluate (default: all)")
    add("--captions", nargs="+", default=[], metavar="LANG=FILE", help="captions of each language")
    ids = "image id of each caption line, one file for all languages or one per language"
    add("--ids", nargs="+", default=[], metavar="[LANG=]FILE", help=ids)
    add("--features", type=_path, nargs="+", default=[], metavar="DIR", help="feature directories of mclip-features")
    add("--images", type=_path, metavar="PATH", help="folder of pictures, or a list of paths")
    hidden = "of the folder --images, also take hidden images, and those of recycle bins and thumbnail folders"
    add("--hidden", action="store_true", help=hidden)
    hashed = "of a report in --output, notice edited images by their hashes (default: by size and time of change)"
    add("--hash-images", action="store_true", help=hashed)
    roots = f"image folder: one for all benchmarks, or one per benchmark ({NOTHING} = none)"
    with_features = "with --features, where the original images are"
    add("--images-root", nargs="+", type=_path, metavar="DIR", help=f"{roots}; {with_features}")
    pixels = f"refuse pictures with more pixels (default {MAX_PIXELS})"
    add("--max-pixels", type=_positive, default=MAX_PIXELS, metavar="N", help=pixels)
    hypotheses = "translations to score with BLEU and chrF, plain lines or the output of fairseq-generate"
    direction = "LANG may be a direction, such as en-de"
    add("--hypotheses", nargs="+", default=[], metavar="LANG=FILE", help=f"{hypotheses}; {direction}")
    add("--references", nargs="+", default=[], metavar="LANG=FILE", help="reference translations for --hypotheses")


def _add_protocol(group: argparse._ArgumentGroup) -> None:
    for option, meanings, default in (
        ("--protocol", PROTOCOLS, "strict"),
        ("--gallery", GALLERIES, "captioned"),
        ("--captions-per-image", CAPTIONS, "all"),
    ):
        texts = "; ".join(f"{name}: {meaning}" for name, meaning in meanings.items())
        group.add_argument(option, choices=tuple(meanings), default=default, help=texts)
    again = "also put the nearest K of every query in the order of the model's matching scores (ccrk; published: 128)"
    add = group.add_argument
    add("--rerank", type=_positive, default=0, metavar="K", help=again)
    bank = (
        "correct hubs, as a protocol of its own, with these captions that are not evaluated, such as training captions"
    )
    add("--hub-captions", nargs="+", default=[], metavar="LANG=FILE", help=bank)
    images = "image id of each line of --hub-captions, one file for all languages or one per language"
    add("--hub-ids", nargs="+", default=[], metavar="[LANG=]FILE", help=images)
    scale = "factor of the cosine in the correction of hubs (default 20)"
    add("--hub-scale", type=_scale, default=20.0, metavar="X", help=scale)


def _add_output(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    output = "write reports and pictures here, and a comparison of benchmarks or of several models"
    add("--output", type=_path, metavar="DIR", help=output)
    add("--queries", type=_count, metavar="N", help=f"rows of examples.png (default {DEFAULT_QUERIES}; 0 = none)")
    add("--font", type=_path, action="append", default=[], metavar="FILE", help="font for captions; repeatable")
    costs = "also measure what each model costs: parameters, memory, texts and images per second on this machine"
    add("--costs", action="store_true", help=costs)
    add("--published", action="store_true", help="also compare with published numbers of the same benchmarks")


def _path(value: str) -> Path:
    return Path(value).expanduser()


def _count(value: str) -> int:
    number = int(value)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{value} is negative")
    return number


def _scale(value: str) -> float:
    number = float(value)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{value} is not positive")
    return number


def _positive(value: str) -> int:
    number = int(value)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{value} is not positive")
    return number
