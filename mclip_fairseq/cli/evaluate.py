"""``mclip-evaluate``: retrieval in every language of a caption set, as a table, JSON and pictures."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mclip_fairseq.data.images import MAX_PIXELS, check_max_pixels
from mclip_fairseq.evaluation.captions import Captions, read_caption_files
from mclip_fairseq.evaluation.galleries import (
    Encoder,
    FeatureGallery,
    Gallery,
    ImageGallery,
    encode_in_chunks,
)
from mclip_fairseq.evaluation.languages import evaluate_languages, gallery_of_captions
from mclip_fairseq.evaluation.report import format_notes, format_table, provenance, write_report
from mclip_fairseq.evaluation.retrieval import PROTOCOLS, retrieval_ranks, top_images

PROGRAM = "mclip-evaluate"
SHOWN_IMAGES = 5
DEFAULT_QUERIES = 6
GALLERIES = {
    "captioned": "search the images that the captions of a language name (default)",
    "all": "search all images that are there, the others as distractors",
}
EPILOG = """\
captions: one per line with --ids (an image id per line), or 'id, tab, caption' lines in a .tsv file; .gz is
read too. An image id is the name in the feature directory, or the path relative to the image folder; the
extension may be left out. Every caption is evaluated; an image that is not there is an error.

example:
  mclip-evaluate --model checkpoints/mclip.pt --features features/valid --ids valid.ids \\
      --captions en=valid.en de=valid.de --output runs/valid
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``mclip-evaluate``; returns 0, or 2 after one sentence on stderr when something cannot be used."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = _parser().parse_args(arguments)
    try:
        evaluate(options, [PROGRAM, *arguments])
    except (ValueError, OSError) as error:
        print(f"{PROGRAM}: error: {error}", file=sys.stderr)
        return 2
    return 0


@dataclass(frozen=True)
class Encoded:
    """Everything that is compared.

    Attributes:
        captions: the captions of each language.
        gallery: what they are searched in.
        used: (I,) int64, the rows of the gallery that are encoded.
        image: (I, D) their features.
        text: language -> (T, D) caption features.
        own: language -> (T,) int64, index into ``image`` of each caption's own image.
        captioned_only: whether a language is searched only in the images that its captions name.
    """

    captions: Sequence[Captions]
    gallery: Gallery
    used: np.ndarray
    image: Tensor
    text: Mapping[str, Tensor]
    own: Mapping[str, Tensor]
    captioned_only: bool


def evaluate(options: argparse.Namespace, command: Sequence[str]) -> dict[str, Any]:
    """Evaluate, print the table, write the files; returns the report.

    Args:
        options: as the parser of this script makes them.
        command: what the user typed, for the report.

    Raises:
        ValueError: in one sentence, when an option or a file cannot be used.
    """
    _refuse_contradictions(options)
    start = time.monotonic()
    captions = read_caption_files(options.captions, options.ids)
    gallery = open_gallery(options)
    rows = {part.language: gallery.index.rows(part) for part in captions}  # before the model: errors come early
    model = load_model(options)
    encoded = encode(model, captions, gallery, rows, options)
    report: dict[str, Any] = {
        "name": options.name or str(getattr(model, "name", options.model)),
        **provenance(command),
        "model": _describe_model(model, options),
        "protocol": options.protocol,
        "gallery": options.gallery,
        "data": {
            "captions": {part.language: part.describe() for part in captions},
            "gallery": gallery.describe() | {"searched": len(encoded.used)},
        },
        **evaluate_languages(
            encoded.text, encoded.image, encoded.own, options.protocol, captioned_only=encoded.captioned_only
        ),
        "seconds": round(time.monotonic() - start, 1),
    }
    print(f"{report['name']}\n\n{format_table(report)}\n\n{format_notes(report)}")
    if options.output is not None:
        _write(report, encoded, options)
    return report


def encode(
    model: Encoder,
    captions: Sequence[Captions],
    gallery: Gallery,
    rows: Mapping[str, np.ndarray],
    options: argparse.Namespace,
) -> Encoded:
    """Encode every caption, and each image once.

    Args:
        model: the dual encoder.
        captions: the captions of each language.
        gallery: what they are searched in.
        rows: language -> (T,) the gallery row of each caption.
        options: ``batch_size`` and ``gallery`` of the command line.
    """
    everything = options.gallery == "all"
    used = np.arange(len(gallery.index.names)) if everything else np.unique(np.concatenate(list(rows.values())))
    image = gallery.encode(model, used, options.batch_size)
    text = {
        part.language: encode_in_chunks(
            model.encode_text, part.texts, options.batch_size, f"captions ({part.language})"
        )
        for part in captions
    }
    own = {language: torch.from_numpy(np.searchsorted(used, found)) for language, found in rows.items()}
    return Encoded(captions, gallery, used, image, text, own, captioned_only=not everything)


def load_model(options: argparse.Namespace) -> Any:
    """The model that ``--model`` names, on the device and in the type asked for."""
    from mclip_fairseq.inference import MultilingualCLIP

    dtype = None if options.dtype is None else getattr(torch, options.dtype)
    return MultilingualCLIP.from_pretrained(
        options.model,
        device=options.device,
        dtype=dtype,
        text_encoder=options.text_encoder,
        teacher=options.teacher,
    )


def open_gallery(options: argparse.Namespace) -> Gallery:
    """What ``--features`` or ``--images`` names."""
    if options.images is not None:
        return ImageGallery(options.images, options.max_pixels)
    from mclip_fairseq.data.features import FeatureStore

    return FeatureGallery(FeatureStore.open(options.features), options.features, options.images_root)


def _describe_model(model: Any, options: argparse.Namespace) -> dict[str, Any]:
    described = {"path": options.model, "identity": getattr(model, "identity", None)}
    return described | {"device": options.device, "dtype": options.dtype, "batch_size": options.batch_size}


def _write(report: Mapping[str, Any], encoded: Encoded, options: argparse.Namespace) -> None:
    """Write report and pictures into the output folder and say so."""
    from mclip_fairseq.evaluation.pictures import draw_examples, draw_recalls

    written = write_report(report, options.output)
    averages = {"average": report["average"]["all"]} if len(report["results"]) > 1 else {}
    written.append(options.output / "recall.png")
    draw_recalls(report["results"] | averages, written[-1], title=report["name"])
    queries = DEFAULT_QUERIES if options.queries is None else options.queries
    if not encoded.gallery.has_pictures:
        print("No examples.png: a feature directory holds no pictures; --images-root says where they are.")
    elif queries:
        written.append(options.output / "examples.png")
        draw_examples(_examples(encoded, queries), written[-1], title=report["name"], fonts=options.font)
    print("Written: " + ", ".join(map(str, written)))


def _examples(encoded: Encoded, number: int) -> list[Any]:
    """The nearest images of a few queries, searched as the numbers were."""
    from mclip_fairseq.evaluation.pictures import Example, pick_queries

    texts = {part.language: part.texts for part in encoded.captions}
    everything = torch.arange(len(encoded.image))
    examples = []
    for language, row in pick_queries({key: len(value) for key, value in texts.items()}, number):
        searched, own = gallery_of_captions(everything, encoded.own[language], encoded.captioned_only)
        query, target, image = encoded.text[language][row, None], own[row, None], encoded.image[searched]
        scores, found = top_images(query, image, min(SHOWN_IMAGES, len(image)))
        hits = (found[0] == target).nonzero()
        examples.append(
            Example(
                text=texts[language][row],
                language=language,
                images=[encoded.gallery.picture(int(encoded.used[searched[place]])) for place in found[0]],
                scores=scores[0].tolist(),
                own=int(hits[0]) if len(hits) else None,
                rank=int(retrieval_ranks(query, image, target).t2i),
            )
        )
    return examples


def _refuse_contradictions(options: argparse.Namespace) -> None:
    if options.images_root is not None and options.features is None:
        raise ValueError("--images-root goes with --features: with --images the pictures are known already.")
    if options.max_pixels is not None:
        if options.images is None:
            raise ValueError("--max-pixels goes with --images: a feature directory holds no pictures.")
        check_max_pixels(options.max_pixels)
    if options.output is None and (options.queries is not None or options.font):
        raise ValueError("--queries and --font shape the pictures in the output folder: give --output too.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Image-text retrieval in many languages: recall both ways, per language and on average.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_model(parser)
    _add_inputs(parser)
    _add_outputs(parser)
    return parser


def _add_inputs(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--captions", required=True, nargs="+", metavar="LANG=FILE", help="captions of each language")
    add(
        "--ids",
        nargs="+",
        default=[],
        metavar="[LANG=]FILE",
        help="image id per caption line, for all or per language",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--features", type=_path, metavar="DIR", help="directory that mclip-features made")
    source.add_argument("--images", type=_path, metavar="PATH", help="folder of pictures, or a list of paths")
    add("--images-root", type=_path, metavar="DIR", help="pictures behind --features, to draw examples.png")
    add("--max-pixels", type=_positive, metavar="N", help=f"refuse a picture of more pixels (default {MAX_PIXELS})")
    galleries = "; ".join(f"{name}: {meaning}" for name, meaning in GALLERIES.items())
    add("--gallery", choices=tuple(GALLERIES), default="captioned", help=galleries)
    add(
        "--protocol",
        choices=PROTOCOLS,
        default="strict",
        help="strict (default), or the released mCLIP script's",
    )


def _add_model(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", required=True, help="training checkpoint, exported directory or name of a model")
    add("--text-encoder", metavar="DIR", help="where the model's text encoder is now, if it has moved")
    add("--teacher", metavar="NAME", help="where the model's teacher is now, if it has moved")
    add("--device", help="for example cpu or cuda:0 (default: a GPU when there is one)")
    add("--dtype", choices=("float32", "float16", "bfloat16"), help="type it computes in (default: float32)")
    add(
        "--batch-size",
        type=_positive,
        default=256,
        metavar="N",
        help="captions or images at once (default 256)",
    )


def _add_outputs(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--output",
        type=_path,
        metavar="DIR",
        help="write report.json, report.md, recall.png, examples.png here",
    )
    add(
        "--queries",
        type=_count,
        metavar="N",
        help=f"rows of examples.png (default {DEFAULT_QUERIES}; 0: none)",
    )
    add(
        "--font",
        type=_path,
        action="append",
        default=[],
        metavar="FILE",
        help="font for captions; repeatable",
    )
    add("--name", help="name of this run in table, report and pictures (default: the model's)")


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
