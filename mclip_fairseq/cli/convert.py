"""``mclip-convert``: published checkpoints in, from the formats they were published in."""

import argparse
import dataclasses
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mclip_fairseq.compat import shield_torchaudio
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import first_line

PROGRAM = "mclip-convert"
EPILOG = """\
examples:
  mclip-convert released mclip_plus_base.pt --xlmr xlmr.base --output mclip-plus
  mclip-convert encoder mte_mclip_plus.pt --xlmr xlmr.base --output mte-plus
  mclip-convert clip ViT-B-32.pt --trust --tokenizer openai/clip-vit-base-patch32 --output clip-b32
  mclip-convert xlmr-to-transformers mte --output mte-transformers
  mclip-convert xlmr-to-fairseq xlm-roberta-base --output xlmr.base
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns 0, or 2 after one sentence on stderr when something cannot be used."""
    options = _parser().parse_args(argv)
    try:
        if options.output.exists() and any(options.output.iterdir()):
            raise UserError(f"{options.output}: is not empty; give a new directory")
        options.run(options)
    except (ValueError, OSError) as error:
        print(f"{PROGRAM}: error: {error}", file=sys.stderr)
        return 2
    print(f"Written: {options.output}")
    return 0


def convert_released(options: argparse.Namespace) -> None:
    """A checkpoint of the released mCLIP to a directory for `MultilingualCLIP.from_pretrained`."""
    from mclip_fairseq.export.directory import save_directory
    from mclip_fairseq.formats.released import load_released

    tower = load_released(options.checkpoint, options.xlmr, options.resize, load_tokenizer(options.tokenizer))
    save_directory(tower, options.output)


def convert_translation(options: argparse.Namespace) -> None:
    """A translation model of the released mCLIP to a checkpoint for `fairseq-generate --task mte`."""
    import torch

    from mclip_fairseq.formats.released import load_released_mte, mte_checkpoint

    model, cfg = load_released_mte(options.checkpoint, options.xlmr)
    options.output.mkdir(parents=True, exist_ok=True)
    torch.save(mte_checkpoint(model, cfg), options.output / "checkpoint.pt")
    copy_text_files(options.xlmr, options.output)


def convert_encoder(options: argparse.Namespace) -> None:
    """An enhanced encoder alone (`mte_mclip.pt`) to an XLM-R archive that fairseq reads too."""
    import torch

    from mclip_fairseq.data.tokenizer import XLMRTokenizer
    from mclip_fairseq.models.xlmr_encoder import XLMREncoder

    encoder = XLMREncoder.from_checkpoint(options.checkpoint, XLMRTokenizer(options.xlmr).dictionary)
    options.output.mkdir(parents=True, exist_ok=True)
    torch.save(encoder.checkpoint(), options.output / "model.pt")
    copy_text_files(options.xlmr, options.output)


def copy_text_files(source: Path, output: Path) -> None:
    """Dictionary and SentencePiece model."""
    from mclip_fairseq.data.tokenizer import SENTENCEPIECE

    for name in ("dict.txt", SENTENCEPIECE):
        shutil.copyfile(source / name, output / name)


def convert_clip(options: argparse.Namespace) -> None:
    """A CLIP state dict under OpenAI's names to a `transformers` directory."""
    from mclip_fairseq.formats.openai_clip import (
        Preprocessing,
        image_processor,
        open_clip_settings,
        pixels_along_an_edge,
        read_state_dict,
        to_clip_model,
    )
    from mclip_fairseq.models.teacher import DualEncoderTeacher

    state = read_state_dict(options.checkpoint, options.trust)
    settings, pixels = open_clip_settings(options.checkpoint) or ({}, Preprocessing())
    settings |= {"activation": options.activation} if options.activation else {}
    settings |= {"head_width": options.head_width} if options.head_width else {}
    model = to_clip_model(state, str(options.checkpoint), **settings)
    pixels = dataclasses.replace(pixels, resize=options.resize)
    processor = image_processor(pixels_along_an_edge(model), pixels)
    tokenizer = load_tokenizer(options.tokenizer)
    DualEncoderTeacher(model, processor, tokenizer, options.checkpoint.stem, None).save(options.output)


def convert_xlmr_to_transformers(options: argparse.Namespace) -> None:
    """A fairseq XLM-R archive to a `transformers` directory."""
    from mclip_fairseq.formats.xlmr import write_transformers

    write_transformers(options.archive, options.output)


def convert_xlmr_to_fairseq(options: argparse.Namespace) -> None:
    """A Hub name or `transformers` directory to a fairseq XLM-R archive."""
    from mclip_fairseq.formats.xlmr import write_fairseq

    write_fairseq(options.source, options.output, options.revision or None)


def load_tokenizer(name: str) -> Any:
    """CLIP's tokenizer by Hub name or directory; None for an empty name."""
    if not name:
        return None
    shield_torchaudio()
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # its loaders raise whatever broken files lead them to
        raise UserError(f"{name}: cannot be loaded as a tokenizer: {first_line(error)}") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=run.__doc__, description=run.__doc__)
        added.add_argument("--output", type=Path, required=True, help="directory to make")
        added.set_defaults(run=run)
        return added

    released = command("released", convert_released)
    released.add_argument("checkpoint", type=Path, help="mclip_base.pt or mclip_plus_base.pt")
    released.add_argument(
        "--xlmr", type=Path, required=True, help="the XLM-R archive: model.pt, dict.txt, SentencePiece"
    )
    translation = command("translation", convert_translation)
    translation.add_argument("checkpoint", type=Path, help="a translation model of the released code, stage 1 or 2")
    encoder = command("encoder", convert_encoder)
    encoder.add_argument("checkpoint", type=Path, help="mte_mclip.pt or mte_mclip_plus.pt")
    for converter in (translation, encoder):
        converter.add_argument(
            "--xlmr", type=Path, required=True, help="the XLM-R archive that the training began from"
        )
    clip = command("clip", convert_clip)
    clip.add_argument(
        "checkpoint", type=Path, help="OpenAI's .pt, or an open_clip state dict (.pt, .bin, .safetensors)"
    )
    clip.add_argument("--trust", action="store_true", help="read a TorchScript archive, which can run code")
    clip.add_argument(
        "--activation",
        choices=["quick_gelu", "gelu"],
        default="",
        help="default: what open_clip_config.json beside the checkpoint says, else OpenAI's quick_gelu",
    )
    clip.add_argument(
        "--head-width", type=int, default=0, help="columns of an attention head (open_clip's file, or 64)"
    )
    for converter in (released, clip):
        converter.add_argument(
            "--tokenizer",
            default="",
            help="CLIP's tokenizer, Hub name or directory; without it English text is refused",
        )
        converter.add_argument(
            "--resize",
            type=int,
            default=0,
            help="pixels of the shorter edge before the crop (0: CLIP's; released: 248)",
        )
    to_transformers = command("xlmr-to-transformers", convert_xlmr_to_transformers)
    to_transformers.add_argument("archive", type=Path, help="directory with model.pt, dict.txt and SentencePiece model")
    to_fairseq = command("xlmr-to-fairseq", convert_xlmr_to_fairseq)
    to_fairseq.add_argument("source", help="Hub name or transformers directory")
    to_fairseq.add_argument("--revision", default="", help="branch, tag or commit on the Hub")
    return parser


if __name__ == "__main__":
    sys.exit(main())
