"""Write a trained model as one directory that works offline elsewhere, and as ONNX."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mclip_fairseq.cli.main import Parser, run_main
from mclip_fairseq.storage.errors import UserError

PROGRAM = "mclip-export"
# Options that the other formats have no use for.
ONLY_DIRECTORY = ("license", "data", "report", "onnx", "int8", "captions", "ids", "features", "images", "push")
EPILOG = """\
The directory holds safetensors, configuration, tokenizer, image processor and a model card, but no pickle.
MultilingualCLIP.from_pretrained(DIR) and sentence_transformers.SentenceTransformer(DIR) read it.

examples:
  mclip-export checkpoints/mclip.pt --teacher openai/clip-vit-base-patch32 --output mclip-base \\
      --license mit --data "CC3M, English captions" --report results/report.json
  mclip-export checkpoints/mclip.pt --output mclip-base --onnx --int8 \\
      --captions en=valid.en de=valid.de --ids valid.ids --features features/valid
  mclip-export checkpoints/altclip.pt --teacher openai/clip-vit-large-patch14 --format altclip --output altclip
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = _parser().parse_args(argv)
    return run_main(PROGRAM, lambda: run(options))


def run(options: argparse.Namespace) -> None:
    """Write what the options ask for, and say where it is."""
    unused = [name for name in ONLY_DIRECTORY if getattr(options, name)]
    if options.format != "directory" and unused:
        raise UserError(f"--{unused[0]} is for --format directory; leave it out with --format {options.format}")
    if options.int8 and not (options.captions and (options.features or options.images)):
        raise UserError("--int8 needs --captions, and --features or --images, to measure how much recall it loses")
    from mclip_fairseq.export.card import CardFacts, read_report
    from mclip_fairseq.export.publish import ONNX, load_exportable, upload, write_model, write_onnx, write_published

    tower = load_exportable(options.model, options.text_encoder, options.teacher, options.language)
    if options.format != "directory":
        written = write_published(tower, options.format, options.output)
        print(f"Written: {options.output}" if written else f"{options.output}: holds this model already")
        return
    reports = [read_report(file) for file in options.report]
    facts = CardFacts(options.output.name, options.license, options.data, reports)
    written = write_model(tower, options.output, facts)
    print(f"Written: {options.output}" if written else f"{options.output}: holds this model already")
    if options.onnx or options.int8:
        from mclip_fairseq.export.onnx import RecallData

        data = RecallData(options.captions, options.ids, options.features, options.images) if options.int8 else None
        _print_onnx(options.output / ONNX, write_onnx(tower, options.output / ONNX, data))
    if options.push:
        print(f"Uploaded: {upload(options.output, options.push)}")


def _print_onnx(folder: Path, report: Mapping[str, Any]) -> None:
    differences = ", ".join(f"{name} {value:.1e}" for name, value in report["largest_difference"].items())
    print(f"Written: {folder}; largest difference from torch: {differences}")
    for language, row in report.get("int8", {}).items():
        print(f"int8 text tower, {language}: mean recall {row['float32']:.1f} -> {row['int8']:.1f}")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=PROGRAM, description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="training checkpoint, or exported directory")
    parser.add_argument("--output", type=Path, required=True, help="directory to make; its name is the model's")
    parser.add_argument(
        "--text-encoder", default="", help="current path of the text encoder's archive (default: the checkpoint's)"
    )
    parser.add_argument(
        "--teacher", default="", help="current Hub name or directory of the teacher (default: the checkpoint's)"
    )
    parser.add_argument(
        "--format",
        choices=["directory", "m-clip", "altclip", "sentence-transformers", "immich"],
        default="directory",
        help="directory (default): what this project and sentence-transformers read; m-clip: a text encoder for "
        "M-CLIP's class; altclip: a directory for transformers' AltCLIPModel; sentence-transformers: the sentence "
        "encoder of contrastive_tension; immich: both towers as ONNX for immich's machine-learning server",
    )
    parser.add_argument(
        "--language", default="", help="the one language to export, of a model that reads each in its own way (mla)"
    )
    parser.add_argument("--license", default="", help="licence identifier for the model card, such as mit")
    parser.add_argument(
        "--data", nargs="+", default=[], help="training data for the model card, one sentence per dataset"
    )
    parser.add_argument(
        "--report", type=Path, nargs="+", default=[], help="results for the model card: report.json of mclip-evaluate"
    )
    parser.add_argument("--onnx", action="store_true", help="also write both towers as ONNX, checked against torch")
    parser.add_argument(
        "--int8", action="store_true", help="also write an int8 text tower and measure how much recall it loses"
    )
    parser.add_argument(
        "--captions", nargs="+", default=[], metavar="LANG=FILE", help="captions for --int8, as in mclip-evaluate"
    )
    parser.add_argument(
        "--ids", nargs="+", default=[], metavar="[LANG=]FILE", help="image ids for --int8, as in mclip-evaluate"
    )
    parser.add_argument("--features", type=Path, help="feature directory of the images for --int8")
    parser.add_argument(
        "--images",
        type=Path,
        metavar="FOLDER",
        help="the images for --int8, instead of --features (for ccrk)",
    )
    parser.add_argument(
        "--push", default="", metavar="USER/NAME", help="also upload the directory to the Hub, as a private repository"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
