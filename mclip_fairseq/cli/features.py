"""`mclip-features`: images or captions through a CLIP-like dual encoder into an indexed feature directory."""

from __future__ import annotations

import argparse
import importlib.metadata
import logging
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

import mclip_fairseq
from mclip_fairseq.models.teacher import DualEncoderTeacher, ImageTransform
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.feature_files import DTYPES, is_usable_id
from mclip_fairseq.storage.feature_writer import FeatureWriter
from mclip_fairseq.storage.files import read_lines, shown
from mclip_fairseq.storage.images import MAX_PIXELS, ImageError, check_max_pixels, load_image, resolve_images

PROGRAM = "mclip-features"
PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "pillow")
EPILOG = """\
ids:
  --images FOLDER   the path below the folder, as it is
  --images LIST     per line 'id, tab, path', or a path, which is the id as well
  --captions FILE   the line number, from 0 (row n of the features is line n of the file); .gz is read too
  --captions X.tsv  per line 'id, tab, caption' (.tsv.gz as well)

A run that was stopped continues when the same command is given again: finished shards stay as they are. Several
machines that see the same output directory share the work: --machines 4 --machine 0 on the first, ... --machine 3 on
the fourth. The one that finishes last writes the manifest.

example:
  mclip-features --model openai/clip-vit-base-patch32 --images photos --output features/image --dtype bfloat16
"""


@dataclass(frozen=True)
class Batch:
    """Some inputs of one shard, ready for the model.

    Attributes:
        count: inputs it was made from.
        inputs: keyword arguments of the encoder; empty when nothing could be read.
        unreadable: (id, reason) of inputs without features.
    """

    count: int
    inputs: dict[str, Tensor]
    unreadable: list[tuple[str, str]] = field(default_factory=list)


class Source(Protocol):
    """Where the inputs come from; `place` says it in messages."""

    ids: list[str]
    modality: str
    preprocessing: str
    place: str

    def batches(self, numbers: list[list[int]]) -> Iterator[Batch]:
        """Prepare the inputs with these numbers, batch by batch, in order."""

    def encode(self, inputs: dict[str, Tensor]) -> Tensor:
        """Inputs of a batch -> (n, dim)."""


class Decoded(Dataset[tuple[str, Tensor | str]]):
    """Decoded and transformed images, or why they cannot be read; made for worker processes."""

    def __init__(self, images: Sequence[tuple[str, Path]], transform: ImageTransform, max_pixels: int) -> None:
        self.images = images
        self.transform = transform
        self.max_pixels = max_pixels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: int) -> tuple[str, Tensor | str]:
        """(id, (channels, height, width) pixels), or (id, reason)."""
        name, path = self.images[number]
        try:
            return name, self.transform([load_image(path, self.max_pixels)])[0]
        except ImageError as error:
            return name, error.reason


def collate(items: Sequence[tuple[str, Tensor | str]]) -> Batch:
    """Stack what could be read."""
    pixels = [item for _, item in items if isinstance(item, Tensor)]
    unreadable = [(name, item) for name, item in items if isinstance(item, str)]
    return Batch(len(items), {"pixel_values": torch.stack(pixels)} if pixels else {}, unreadable)


class ImageSource:
    """Images from a folder or a list, decoded by worker processes."""

    modality = "image"
    place = ""

    def __init__(
        self, teacher: DualEncoderTeacher, images: list[tuple[str, Path]], workers: int, max_pixels: int = MAX_PIXELS
    ) -> None:
        self.ids = [name for name, _ in images]
        self.preprocessing = teacher.transform.description
        self.encode_image = teacher.encode_image
        self.images = Decoded(images, teacher.transform, max_pixels)
        self.workers = workers

    def batches(self, numbers: list[list[int]]) -> Iterator[Batch]:
        """See `Source`."""
        workers = min(self.workers, len(numbers))
        loader: Any = DataLoader(self.images, batch_sampler=numbers, collate_fn=collate, num_workers=workers)
        yield from loader

    def encode(self, inputs: dict[str, Tensor]) -> Tensor:
        """See `Source`."""
        return self.encode_image(**inputs)


class CaptionSource:
    """Captions of a file; an empty one cannot be read."""

    modality = "text"

    def __init__(self, teacher: DualEncoderTeacher, captions: list[tuple[str, str]], file: Path) -> None:
        self.place = f" of {shown(file)}"
        self.ids = [name for name, _ in captions]
        self.captions = captions
        self.preprocessing = f"{type(teacher.tokenizer).__name__}, at most {teacher.max_tokens} tokens"
        self.tokenize, self.encode_text = teacher.tokenize, teacher.encode_text

    def batches(self, numbers: list[list[int]]) -> Iterator[Batch]:
        """See `Source`."""
        for batch in numbers:
            chosen = [self.captions[number] for number in batch]
            texts = [text for _, text in chosen if text.strip()]
            empty = [
                (self.captions[number][0], f"line {number + 1}: the caption is empty")
                for number in batch
                if not self.captions[number][1].strip()
            ]
            yield Batch(len(batch), self.tokenize(texts) if texts else {}, empty)

    def encode(self, inputs: dict[str, Tensor]) -> Tensor:
        """See `Source`."""
        return self.encode_text(**inputs)


def read_captions(path: Path) -> list[tuple[str, str]]:
    """(id, caption) of a text file (the id is the line number, from 0) or a `.tsv` file; either may end in `.gz`.

    Raises:
        UserError: unreadable, empty, a line without id, or an id that appears twice, naming both lines.
    """
    lines = read_lines(path)
    if not lines:
        raise UserError(f"{path}: holds no captions")
    if not path.name.endswith((".tsv", ".tsv.gz")):
        return [(str(number), line) for number, line in enumerate(lines)]
    captions: list[tuple[str, str]] = []
    first: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        name, tab, caption = line.partition("\t")
        if not (name.strip() and tab):
            raise UserError(f"{path}, line {number}: write it as 'id, tab, caption'")
        if not is_usable_id(name):
            raise UserError(f"{path}, line {number}: the id {name!r} has a line break or outer spaces; mend it")
        if first.setdefault(name, number) != number:
            raise UserError(
                f"{path}, line {number}: the id {name!r} is already on line {first[name]}; give every caption its own"
            )
        captions.append((name, caption))
    return captions


def compute(
    source: Source,
    writer: FeatureWriter,
    options: argparse.Namespace,
    device: torch.device,
) -> None:
    """Write the shards of this machine that are not there yet.

    Raises:
        UserError: inputs that cannot be read, more than the budget allows; all of them are listed.
    """
    budget, known = options.skip_budget or 0, len(writer.skipped())
    if known > budget:
        raise UserError(f"{writer.path}: {known} inputs were left out before, so it needs --skip-budget {known}")
    pending = writer.pending(options.machine, options.machines)
    plan = [(shard, split(writer.inputs(shard), options.batch_size)) for shard in pending]
    batches = source.batches([batch for _, parts in plan for batch in parts])
    total = sum(len(writer.inputs(shard)) for shard in pending)
    unreadable: list[tuple[str, str]] = []
    with tqdm(total=total, unit=source.modality, disable=None) as progress:
        for shard, parts in plan:
            features: list[np.ndarray] = [np.zeros((0, writer.plan["dim"]), dtype=np.float32)]
            before = len(unreadable)
            for batch in (next(batches) for _ in parts):
                unreadable += batch.unreadable
                # Past the budget nothing will be written: the rest is only read, to list all at once.
                if batch.inputs and known + len(unreadable) <= budget:
                    features.append(encode(source, batch.inputs, options, device))
                progress.update(batch.count)
            if known + len(unreadable) <= budget:
                writer.write(shard, np.concatenate(features), unreadable[before:])
            elif options.skip_budget is not None:
                break
    if known + len(unreadable) > budget:
        raise UserError(complaint(source, unreadable, known, options.skip_budget))


def encode(source: Source, inputs: dict[str, Tensor], options: argparse.Namespace, device: torch.device) -> np.ndarray:
    """One batch -> (n, dim) float32."""
    dtype = getattr(torch, options.dtype)
    on_device = {name: tensor.to(device, non_blocking=True) for name, tensor in inputs.items()}
    with torch.inference_mode(), torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
        features = source.encode(on_device).float()
    result: np.ndarray = (F.normalize(features, dim=1) if options.normalize else features).cpu().numpy()
    return result


def split(numbers: range, size: int) -> list[list[int]]:
    """Batches that never cross a shard, so that a restart computes the same ones."""
    return [list(numbers[start : start + size]) for start in range(0, len(numbers), size)]


def complaint(source: Source, unreadable: list[tuple[str, str]], known: int, budget: int | None) -> str:
    """What cannot be read, in full."""
    lines = "".join(f"\n  {shown(name)}: {reason}" for name, reason in unreadable)
    if budget is not None:
        return (
            f"more than --skip-budget {budget} inputs{source.place} cannot be read ({known} were left out before), "
            f"stopped at:{lines}"
        )
    return (
        f"{len(unreadable)} of {len(source.ids)} inputs{source.place} cannot be read; mend them, take them out, or "
        f"leave them out with --skip-budget {len(unreadable)}:{lines}"
    )


def make_features(options: argparse.Namespace, command: Sequence[str]) -> str:
    """Run the command; returns what to tell the user."""
    check_options(options)
    device = pick_device(options)
    # Inputs are read before the model is: a wrong list fails at once.
    captions = read_captions(options.captions) if options.captions else []
    images = list_images(options.images, options.root) if options.images else []
    teacher = DualEncoderTeacher.from_pretrained(options.model, options.revision).to(device)
    source: Source = (
        CaptionSource(teacher, captions, options.captions)
        if captions
        else ImageSource(teacher, images, options.workers, options.max_pixels)
    )
    writer = FeatureWriter(
        options.output,
        source.ids,
        teacher=teacher.identity,
        dim=teacher.dim,
        modality=source.modality,
        normalized=options.normalize,
        preprocessing=source.preprocessing,
        dtype=options.store_dtype,
        shard_rows=options.shard_rows,
        settings={"compute_dtype": options.dtype},
    )
    compute(source, writer, options, device)
    versions = {"mclip_fairseq": mclip_fairseq.__version__, "python": platform.python_version()}
    versions |= {name: importlib.metadata.version(name) for name in PACKAGES}
    made_by = {"command": list(command), "versions": versions, "device": describe(device)}
    if not writer.finalize(made_by):
        left = len(writer.pending())
        return f"{options.output}: {left} of {writer.shards} shards are left to other machines"
    skipped = len(writer.skipped())
    return f"{options.output}: {len(source.ids) - skipped} rows of {teacher.dim} columns, {skipped} skipped"


def pick_device(options: argparse.Namespace) -> torch.device:
    """The device asked for, or a GPU when there is one."""
    try:
        device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if device.type == "cuda" and not torch.cuda.is_available():
            raise UserError(f"--device {options.device}: torch finds no GPU here; mclip-doctor says why")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # no such name, not built in, or no such number
        raise UserError(f"--device {options.device}: torch knows no such device") from error
    if device.type == "cpu" and options.dtype != "float32":
        raise UserError(f"--dtype {options.dtype} needs a GPU; compute in float32 on the CPU")
    return device


def list_images(images: Path, root: Path | None) -> list[tuple[str, Path]]:
    """(id, file) of a folder or a list file."""
    return resolve_images(images) if images.is_dir() else resolve_images(root, images)


def describe(device: torch.device) -> str:
    """The kind of device, without its number."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def check_options(options: argparse.Namespace) -> None:
    """Refuse options that contradict each other."""
    if not 0 <= options.machine < options.machines:
        raise UserError(f"--machine counts from 0 to {options.machines - 1} with --machines {options.machines}")
    check_max_pixels(options.max_pixels)
    if options.root is not None and (options.images is None or options.images.is_dir()):
        raise UserError("--root is what the paths of an image list are relative to: give it with --images LIST only")


def count(text: str) -> int:
    """A number that is not negative."""
    number = int(text)
    if number < 0:
        raise ValueError
    return number


def positive(text: str) -> int:
    """A number above zero."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", required=True, help="transformers dual encoder: Hub name or directory")
    add("--revision", help="branch, tag or commit of a Hub name")
    inputs = parser.add_mutually_exclusive_group(required=True)
    inputs.add_argument("--images", type=Path, metavar="PATH", help="folder of images (searched below), or a list file")
    inputs.add_argument("--captions", type=Path, metavar="FILE", help="captions, one per line, or .tsv with ids")
    add("--root", type=Path, metavar="DIR", help="what a list's paths are relative to (default: the list's folder)")
    add("--output", type=Path, required=True, metavar="DIR", help="feature directory to make or continue")
    add("--batch-size", type=positive, default=256, metavar="N", help="inputs at once (default 256)")
    workers = min(4, os.cpu_count() or 1)
    add("--workers", type=count, default=workers, metavar="N", help=f"processes that decode (default {workers})")
    add("--device", help="for example cpu or cuda:1 (default: a GPU when there is one)")
    add("--dtype", choices=("float32", "float16", "bfloat16"), default="float32", help="computed in (default float32)")
    add("--store-dtype", choices=DTYPES, default="float16", help="stored in (default float16)")
    add("--shard-rows", type=positive, default=65536, metavar="N", help="inputs per shard (default 65536)")
    add("--machines", type=positive, default=1, metavar="N", help="machines that share the work (default 1)")
    add("--machine", type=count, default=0, metavar="I", help="which of them this is, from 0 (default 0)")
    add("--normalize", action="store_true", help="store L2-normalised features")
    add("--max-pixels", type=positive, default=MAX_PIXELS, metavar="N", help=f"per image (default {MAX_PIXELS})")
    add("--skip-budget", type=count, metavar="N", help="leave out up to N unreadable inputs, listed in skipped.tsv")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run `mclip-features`; returns 0, or 2 after a sentence on stderr when something cannot be used."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = build_parser().parse_args(arguments)
    logging.getLogger("PIL").setLevel(logging.INFO)  # fairseq opens the root logger for debugging
    if not sys.stderr.isatty():  # read when transformers is imported
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # Decoding processes are forked after the tokenizer was used.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false" if options.images else "true")
    try:
        print(make_features(options, [PROGRAM, *arguments]))
    except (ValueError, OSError) as error:
        print(f"{PROGRAM}: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
