"""`mclip-features`: encode images or captions with a CLIP-like dual encoder into a feature directory."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mclip_fairseq.cli.main import Parser, run_main
from mclip_fairseq.cli.options import count, pick_device, positive
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.feature_files import DTYPES
from mclip_fairseq.storage.images import MAX_PIXELS, check_max_pixels, find_images
from mclip_fairseq.storage.projection import SPACES

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mclip_fairseq.encoding.bulk import Source
    from mclip_fairseq.models.teacher import DualEncoderTeacher

PROGRAM = "mclip-features"
# `tf32` is float32 whose products have 10 bits of mantissa.
COMPUTE = ("float32", "tf32", "float16", "bfloat16")
PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "pillow")
EPILOG = """\
ids:
  --images FOLDER   the path below the folder
  --images LIST     each line is 'id, tab, path', or a path, which is then also the id
  --captions FILE   the line number, from 0: row n of the features is line n of the file (.gz works too)
  --captions X.tsv  each line is 'id, tab, caption' (.tsv.gz works too)

Run the same command again to continue a run that was stopped: finished shards are kept. If captions, images or the
model have changed since, the command is refused: old and new rows are never mixed. Machines that share the
output directory can share the work: give --machines 4 to all four, --machine 0 to the first, ... --machine 3 to the
last. The one that finishes last writes the manifest.

examples:
  mclip-features --model openai/clip-vit-base-patch32 --images photos --output features/image --dtype bfloat16
  mclip-features --model openai/clip-vit-base-patch32 --captions en.tsv --space pooled --output features/text
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `mclip-features`; returns its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = build_parser().parse_args(arguments)
    # A tokenizer with threads must not be used before decoding processes are forked.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false" if options.images else "true")
    return run_main(
        PROGRAM,
        lambda: print(make_features(options, [PROGRAM, *arguments])),
        when_interrupted="run the same command again to continue",
    )


def make_features(options: argparse.Namespace, command: Sequence[str]) -> str:
    """Run the command; returns the line to print."""
    check_options(options)
    import torch

    from mclip_fairseq.encoding.bulk import BulkSettings, compute, read_caption_list
    from mclip_fairseq.models.settings import digest
    from mclip_fairseq.models.teacher import DualEncoderTeacher
    from mclip_fairseq.storage.feature_writer import FeatureWriter

    device = pick_device(options.device, options.dtype)
    # Inputs are listed before the model is loaded, so that a wrong list fails at once.
    captions = read_caption_list(options.captions) if options.captions else []
    images, skip_budget = listed_images(options) if options.images else ([], options.skip_budget)
    if options.dtype == "tf32":
        torch.set_float32_matmul_precision("high")
    teacher = DualEncoderTeacher.from_pretrained(options.model, options.revision).to(device)
    encoder, dim = encoder_of(options, teacher)
    source = open_source(options, teacher, captions, images, encoder)
    projection = teacher.projection(source.modality) if options.space == "pooled" else None
    writer = FeatureWriter(
        options.output,
        source.ids,
        teacher=teacher.identity,
        dim=dim,
        modality=source.modality,
        normalized=options.normalize,
        preprocessing=source.preprocessing,
        dtype=options.store_dtype,
        shard_rows=options.shard_rows,
        settings={
            "compute_dtype": options.dtype,
            "inputs_content": source.content,
            "model_settings": digest(teacher.text_settings if captions else teacher.image_settings),
        }
        | ({"text_layers": options.text_layers} if options.text_layers else {}),
        projection=projection,
    )
    settings = BulkSettings(
        options.batch_size,
        "float32" if options.dtype == "tf32" else options.dtype,
        options.normalize,
        skip_budget,
        options.machine,
        options.machines,
    )
    compute(source, writer, settings, device)
    if not writer.finalize(made_by(command, device)):
        missing = len(writer.pending())
        return f"{options.output}: {missing} of {writer.shards} shards are left to other machines"
    skipped = len(writer.skipped())
    return f"{options.output}: {len(source.ids) - skipped} rows of {dim} columns, {skipped} skipped"


def listed_images(options: argparse.Namespace) -> tuple[list[tuple[str, Path]], int | None]:
    """The images that the command line names, and what awkward names leave of the skip budget."""
    folder = options.images.is_dir()
    listing = find_images(
        options.images if folder else options.root, None if folder else options.images, options.hidden
    )
    skip_budget = listing.check_names(options.images, options.skip_budget)
    for note in [*listing.skipped(options.images), *listing.notes(options.images)]:
        print(f"{PROGRAM}: {note}", file=sys.stderr)
    return listing.images, skip_budget


def encoder_of(options: argparse.Namespace, teacher: DualEncoderTeacher) -> tuple[Callable[..., Tensor], int]:
    """What encodes the inputs, and the columns it gives."""
    if options.text_layers:
        from mclip_fairseq.models.text_layers import LayerStates

        states = LayerStates(teacher, options.text_layers)
        return states, states.dim
    modality = "text" if options.captions else "image"
    encoder = teacher.encoder(modality, options.space)
    return encoder, teacher.dim if options.space == "joint" else teacher.projection(modality).weight.shape[1]


def open_source(
    options: argparse.Namespace,
    teacher: DualEncoderTeacher,
    captions: list[tuple[str, str]],
    images: list[tuple[str, Path]],
    encoder: Callable[..., Tensor],
) -> Source:
    """The captions or images that the command line names, with the teacher's encoder for them."""
    from mclip_fairseq.encoding.bulk import CaptionSource, ImageSource

    if not captions:
        return ImageSource(images, teacher.transform, encoder, options.workers, options.max_pixels, options.hash_images)
    preprocessing = f"{type(teacher.tokenizer).__name__}, at most {teacher.max_tokens} tokens"
    return CaptionSource(
        *(captions, options.captions, teacher.tokenize, teacher.token_mask),
        *(encoder, preprocessing),
    )


def made_by(command: Sequence[str], device: torch.device) -> dict[str, object]:
    """How features are made, for their manifest: command, versions and kind of device."""
    import importlib.metadata
    import platform

    import torch

    import mclip_fairseq
    from mclip_fairseq.storage.provenance import shareable

    versions = {"mclip_fairseq": mclip_fairseq.__version__, "python": platform.python_version()}
    versions |= {name: importlib.metadata.version(name) for name in PACKAGES}
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {"command": [shareable(word) for word in command], "versions": versions, "device": hardware}


def check_options(options: argparse.Namespace) -> None:
    """Refuse options that contradict each other."""
    if options.machine >= options.machines:
        raise UserError(f"--machine must be 0 to {options.machines - 1} with --machines {options.machines}")
    check_max_pixels(options.max_pixels)
    if options.hash_images and options.images is None:
        raise UserError("--hash-images is for images, texts are always compared by their hash; leave it out")
    if options.text_layers and (options.captions is None or options.space != "joint"):
        raise UserError("--text-layers is for --captions, and comes with features of the joint space; leave it out")
    if options.root is not None and (options.images is None or options.images.is_dir()):
        raise UserError("--root is the folder of a list's relative paths; give it with --images LIST only")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = Parser(
        prog=PROGRAM, description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", required=True, help="transformers dual encoder: Hub name or directory")
    add("--revision", help="branch, tag or commit of a Hub name")
    inputs = parser.add_mutually_exclusive_group(required=True)
    inputs.add_argument("--images", type=Path, metavar="PATH", help="folder (searched recursively) or list of images")
    inputs.add_argument("--captions", type=Path, metavar="FILE", help="captions, one per line, or .tsv with ids")
    add("--root", type=Path, metavar="DIR", help="folder of a list's relative paths (default: the list's folder)")
    add("--output", type=Path, required=True, metavar="DIR", help="feature directory to create or continue")
    add("--batch-size", type=positive, default=256, metavar="N", help="inputs per batch (default 256)")
    workers = min(4, os.cpu_count() or 1)
    add("--workers", type=count, default=workers, metavar="N", help=f"processes that decode (default {workers})")
    add("--device", help="for example cpu or cuda:1 (default: a GPU if there is one)")
    add("--dtype", choices=COMPUTE, default="float32", help="compute in (default float32; the others need a GPU)")
    add("--store-dtype", choices=DTYPES, default="float16", help="store as (default float16)")
    add("--shard-rows", type=positive, default=65536, metavar="N", help="inputs per shard (default 65536)")
    add("--machines", type=positive, default=1, metavar="N", help="machines that share the work (default 1)")
    add("--machine", type=count, default=0, metavar="I", help="index of this machine, from 0 (default 0)")
    hashed = "notice changed images by the hashes of their files (default: by size and time of change)"
    add("--hash-images", action="store_true", help=hashed)
    hidden = "also take hidden images, and those of recycle bins and thumbnail folders"
    add("--hidden", action="store_true", help=hidden)
    add("--normalize", action="store_true", help="store L2-normalised features")
    add(
        "--space",
        choices=SPACES,
        default="joint",
        help="joint (default): features whose cosines compare images and texts; pooled: the states before the model's "
        "projection, which is stored beside them (for altclip)",
    )
    add(
        "--text-layers",
        default="",
        metavar="N,N",
        help="also the states of texts after these layers of a CLIP, 0 for the embeddings (for mla --distill-layers)",
    )
    add("--max-pixels", type=positive, default=MAX_PIXELS, metavar="N", help=f"per image (default {MAX_PIXELS})")
    add("--skip-budget", type=count, metavar="N", help="skip up to N unreadable inputs, listed in skipped.tsv")
    return parser


if __name__ == "__main__":
    sys.exit(main())
