"""`mclip-features`: encode images or captions with a CLIP-like dual encoder into a feature directory."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mclip_fairseq.cli.features_units import is_of_parts, make_by_units
from mclip_fairseq.cli.main import Parser, run_main
from mclip_fairseq.cli.options import add_workers, count, pick_device, positive
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.feature_files import DTYPES
from mclip_fairseq.storage.feature_parquet import import_arrow, write_parquet
from mclip_fairseq.storage.files import check_folder
from mclip_fairseq.storage.images import MAX_PIXELS, check_max_pixels, find_images
from mclip_fairseq.storage.projection import SPACES

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mclip_fairseq.encoding.bulk import BulkSettings, Source
    from mclip_fairseq.models.teacher import DualEncoderTeacher
    from mclip_fairseq.storage.feature_writer import FeatureWriter

PROGRAM = "mclip-features"
# `tf32` is float32 whose products have 10 bits of mantissa.
COMPUTE = ("float32", "tf32", "float16", "bfloat16")
SHARD_ROWS = 65536
# Captions are sorted by length within a batch, and encoded as many tokens at a time as suit the device.
IMAGES_AT_ONCE, CAPTIONS_AT_ONCE = 256, 4096
DRAFT_SIDES = 2  # --draft leaves at least this many times the side of the model's input
PARTS = (".tar", ".parquet")  # endings of files that hold many inputs
PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "pillow")
EPILOG = """\
ids:
  --images FOLDER   the path below the folder
  --images LIST     each line is 'id, tab, path', or a path, which is then also the id
  --captions FILE   the line number, from 0: row n of the features is line n of the file (.gz works too)
  --captions X.tsv  each line is 'id, tab, caption' (.tsv.gz works too)
  tars (webdataset) the key: KEY.jpg or KEY.txt
  Parquet files     the column id or key, --id-column, or the file's name and the number of the row

Run the same command again to continue a run that was stopped: finished shards are kept. If captions, images or the
model have changed since, the command is refused: old and new rows are never mixed. Machines that share the
output directory can share the work: give --machines 4 to all four, --machine 0 to the first, ... --machine 3 to the
last. The one that finishes last writes the manifest.

examples:
  mclip-features --model openai/clip-vit-base-patch32 --images photos --output features/image --dtype bfloat16
  mclip-features --model openai/clip-vit-base-patch32 --images 's3://bucket/{00000..00999}.tar' --engine ray \\
      --output features/image
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
    if options.engine == "ray" or is_of_parts(options):
        return make_by_units(options, command)
    from mclip_fairseq.encoding.bulk import compute, read_caption_list
    from mclip_fairseq.storage.feature_writer import FeatureWriter

    device = pick_device(options.device, options.dtype)
    # Inputs are listed before the model is loaded, so that a wrong list fails at once.
    inputs, skip_budget = (
        listed_images(options) if options.images else (read_caption_list(options.captions), options.skip_budget)
    )
    teacher = load_teacher(options).to(device)
    encoder, dim = encoder_of(options, teacher)
    source = open_source(options, teacher, inputs, encoder)
    plan = plan_of(options, teacher, dim, source, source.content)
    writer = FeatureWriter(options.output, source.ids, shard_rows=shard_rows(options), **plan)
    compute(source, writer, bulk_settings(options, skip_budget), device)
    return finished(options, writer, command, device_name(device))


def load_teacher(options: argparse.Namespace) -> DualEncoderTeacher:
    """The model, on the CPU."""
    import torch

    from mclip_fairseq.models.teacher import DualEncoderTeacher

    if options.dtype == "tf32":
        torch.set_float32_matmul_precision("high")
    return DualEncoderTeacher.from_pretrained(options.model, options.revision)


def bulk_settings(options: argparse.Namespace, skip_budget: int | None) -> BulkSettings:
    """How inputs are encoded."""
    from mclip_fairseq.encoding.bulk import BulkSettings

    return BulkSettings(
        options.batch_size or (CAPTIONS_AT_ONCE if options.captions else IMAGES_AT_ONCE),
        "float32" if options.dtype == "tf32" else options.dtype,
        options.normalize,
        skip_budget,
        options.machine,
        options.machines,
    )


def shard_rows(options: argparse.Namespace) -> int:
    """Inputs per shard."""
    return options.shard_rows or SHARD_ROWS


def plan_of(
    options: argparse.Namespace, teacher: DualEncoderTeacher, dim: int, source: Source, content: str
) -> dict[str, Any]:
    """What a feature directory is started with, besides its inputs.

    Args:
        options: of the command line.
        teacher: the model.
        dim: columns.
        source: says what is done to the inputs.
        content: hash of the inputs.
    """
    from mclip_fairseq.models.settings import digest

    settings = {
        "compute_dtype": options.dtype,
        "inputs_content": content,
        "model_settings": digest(teacher.text_settings if options.captions else teacher.image_settings),
    }
    return {
        "teacher": teacher.identity,
        "dim": dim,
        "modality": source.modality,
        "normalized": options.normalize,
        "preprocessing": source.preprocessing,
        "dtype": options.store_dtype,
        "settings": settings | ({"text_layers": options.text_layers} if options.text_layers else {}),
        "projection": teacher.projection(source.modality) if options.space == "pooled" else None,
    }


def finished(options: argparse.Namespace, writer: FeatureWriter, command: Sequence[str], device: str) -> str:
    """Finish the directory if nothing is missing; returns what to tell the user."""
    if not writer.finalize(made_by(command, device)):
        missing = len(writer.pending())
        return f"{options.output}: {missing} of {writer.shards} shards are left to other machines"
    from mclip_fairseq.storage.feature_files import read_manifest

    manifest = read_manifest(writer.path)
    summary = f"{manifest['count']} rows of {manifest['dim']} columns, {len(writer.skipped())} skipped"
    if options.parquet is None:
        return f"{options.output}: {summary}"
    return f"{options.output}: {summary}; {write_parquet(writer.path, options.parquet)} files in {options.parquet}"


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
    inputs: Sequence[tuple[str, Any]],
    encoder: Callable[..., Tensor],
    first: int = 1,
) -> Source:
    """The images or captions of the command line, with the teacher's encoder for them.

    Args:
        options: of the command line.
        teacher: the model.
        inputs: (id, place) of images or (id, caption).
        encoder: of `encoder_of`.
        first: number of the first caption, for messages.
    """
    from mclip_fairseq.encoding.bulk import CaptionSource
    from mclip_fairseq.encoding.images import ImageSource

    if options.images:
        near = DRAFT_SIDES * teacher.image_size if options.draft else None
        pixels, hashed = options.max_pixels, options.hash_images
        return ImageSource(inputs, teacher.transform, encoder, options.workers, pixels, hashed, near)
    preprocessing = f"{type(teacher.tokenizer).__name__}, at most {teacher.max_tokens} tokens"
    return CaptionSource(
        *(inputs, options.captions, teacher.tokenize, teacher.token_mask),
        *(encoder, preprocessing, first),
    )


def device_name(device: torch.device) -> str:
    """The kind of a device."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def made_by(command: Sequence[str], device: str) -> dict[str, object]:
    """How features are made, for their manifest: command, versions and kind of device."""
    import importlib.metadata
    import platform

    import mclip_fairseq
    from mclip_fairseq.storage.provenance import shareable

    versions = {"mclip_fairseq": mclip_fairseq.__version__, "python": platform.python_version()}
    versions |= {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"command": [shareable(word) for word in command], "versions": versions, "device": device}


def check_options(options: argparse.Namespace) -> None:
    """Refuse options that contradict each other."""
    if options.machine >= options.machines:
        raise UserError(f"--machine must be 0 to {options.machines - 1} with --machines {options.machines}")
    check_max_pixels(options.max_pixels)
    check_folder("--output", options.output)
    check_folder("--parquet", options.parquet)
    if options.parquet is not None:
        import_arrow()  # before anything is encoded
    if is_of_parts(options):
        check_options_of_parts(options)
    elif options.column or options.id_column:
        raise UserError("--column and --id-column are for Parquet files; leave them out")
    if options.engine == "ray" and options.machines > 1:
        raise UserError("--machines is for commands that you start yourself; leave it out with --engine ray")
    if options.engine == "ray" and (options.device or "").startswith("cuda:"):
        raise UserError(f"--device {options.device}: Ray gives each worker a GPU of its own; give --device cuda")
    if options.hash_images and options.images is None:
        raise UserError("--hash-images is for images, texts are always compared by their hash; leave it out")
    if options.draft and options.images is None:
        raise UserError("--draft is for images; leave it out")
    if options.text_layers and (options.captions is None or options.space != "joint"):
        raise UserError("--text-layers is for --captions, and comes with features of the joint space; leave it out")
    if options.root is not None and (options.images is None or os.path.isdir(options.images)):
        raise UserError("--root is the folder of a list's relative paths; give it with --images LIST only")


def check_options_of_parts(options: argparse.Namespace) -> None:
    """Refuse options that are not for tars and Parquet files."""
    of_lists = {
        "--root": options.root is not None,
        "--hidden": options.hidden,
        "--hash-images": options.hash_images,
        "--shard-rows": options.shard_rows is not None,
    }
    for name, given in of_lists.items():
        if given:
            raise UserError(f"{name} is for folders and lists, not for tars or Parquet files; leave it out")
    if (options.column or options.id_column) and not (options.images or options.captions).endswith(".parquet"):
        raise UserError("--column and --id-column are for Parquet files; leave them out")


def images_or_parts(text: str) -> Path | str:
    """An option's path; addresses and patterns of tars and Parquet files stay as they are."""
    return text if text.endswith(PARTS) else Path(text)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = Parser(
        prog=PROGRAM, description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", required=True, help="transformers dual encoder: Hub name or directory")
    add("--revision", help="branch, tag or commit of a Hub name")
    inputs = parser.add_mutually_exclusive_group(required=True)
    images = "folder (searched recursively) or list of images; or tars or Parquet files, as a path, address or pattern"
    inputs.add_argument("--images", type=images_or_parts, metavar="PATH", help=images)
    captions = "captions, one per line, or .tsv with ids; or tars or Parquet files, as for --images"
    inputs.add_argument("--captions", type=images_or_parts, metavar="FILE", help=captions)
    add("--column", default="", metavar="NAME", help="of Parquet files: images or captions (default: the usual names)")
    add("--id-column", default="", metavar="NAME", help="of Parquet files: ids (default: id, key, or the row's number)")
    engine = "local: this process (default); ray: all cores or GPUs of this machine, or of the cluster of RAY_ADDRESS"
    add("--engine", choices=("local", "ray"), default="local", help=engine)
    add("--root", type=Path, metavar="DIR", help="folder of a list's relative paths (default: the list's folder)")
    add("--output", type=Path, required=True, metavar="DIR", help="feature directory to create or continue")
    add("--parquet", type=Path, metavar="DIR", help="also write the rows to DIR as Parquet files, one per shard")
    sizes = f"{IMAGES_AT_ONCE} images; {CAPTIONS_AT_ONCE} captions, encoded in smaller batches of similar length"
    add("--batch-size", type=positive, metavar="N", help=f"inputs per batch (default: {sizes})")
    add_workers(parser)
    add("--device", help="for example cpu or cuda:1 (default: a GPU if there is one)")
    add("--dtype", choices=COMPUTE, default="float32", help="compute in (default float32; the others need a GPU)")
    add("--store-dtype", choices=DTYPES, default="float16", help="store as (default float16)")
    add(
        "--shard-rows", type=positive, metavar="N", help=f"inputs per shard (default {SHARD_ROWS}); a part is one shard"
    )
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
    draft = (
        "decode large JPEGs at 1/2, 1/4 or 1/8 of their size, such that both sides stay at least twice the model's "
        "input: faster, and features differ a little (default: whole)"
    )
    add("--draft", action="store_true", help=draft)
    add("--skip-budget", type=count, metavar="N", help="skip up to N unreadable inputs, listed in skipped.tsv")
    return parser


if __name__ == "__main__":
    sys.exit(main())
