"""Convert published checkpoints to directories that this project, fairseq or transformers reads."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from mclip_fairseq.cli.main import Parser, run_main
from mclip_fairseq.storage.staging import make_new, staged

PROGRAM = "mclip-convert"
EPILOG = """\
examples:
  mclip-convert released mclip_plus_base.pt --xlmr xlmr.base --output mclip-plus
  mclip-convert encoder mte_mclip_plus.pt --xlmr xlmr.base --output mte-plus
  mclip-convert m-clip M-CLIP/M-BERT-Distil-40 --head head.npz --output m-bert-distil-40
  mclip-convert altclip BAAI/AltCLIP --output altclip
  mclip-convert clip ViT-B-32.pt --trust --tokenizer openai/clip-vit-base-patch32 --output clip-b32
  mclip-convert mla finetune.bin.4 --acquirers le.bin.1 --vocabulary vocab.txt --bpe clip-tokenizer --output mla
  mclip-convert ccrk ccrk_3m_10lan_epoch_29.th --text-encoder xlmr.large --output ccrk
  mclip-convert ccrk-to-released ccrk --output released
  mclip-convert xlmr-to-transformers mte --output mte-transformers
  mclip-convert xlmr-to-fairseq xlm-roberta-base --output xlmr.base
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = _parser().parse_args(argv)
    return run_main(PROGRAM, lambda: run(options))


def run(options: argparse.Namespace) -> None:
    """Convert into a new directory, and say where it is."""
    written = make_new(
        options.output, lambda output: options.convert(argparse.Namespace(**{**vars(options), "output": output}))
    )
    print(f"Written: {options.output}" if written else f"{options.output}: holds this already")


def released(options: argparse.Namespace) -> None:
    """A checkpoint of the released mCLIP to a directory for MultilingualCLIP.from_pretrained."""
    from mclip_fairseq.export.conversions import convert_released

    convert_released(options.checkpoint, options.xlmr, options.output, options.resize, options.tokenizer)


def altclip(options: argparse.Namespace) -> None:
    """A published AltCLIP, Hub name or transformers directory, to a directory for MultilingualCLIP.from_pretrained."""
    from mclip_fairseq.export.conversions import convert_altclip

    convert_altclip(options.source, options.output)


def m_clip(options: argparse.Namespace) -> None:
    """A legacy M-CLIP, an encoder with a linear layer apart, to a directory in M-CLIP's later layout."""
    from mclip_fairseq.formats.m_clip import write_legacy_m_clip

    write_legacy_m_clip(options.encoder, options.head, options.output)


def translation(options: argparse.Namespace) -> None:
    """A translation model of the released mCLIP to a checkpoint for fairseq-generate --task mte."""
    from mclip_fairseq.export.conversions import convert_translation

    convert_translation(options.checkpoint, options.xlmr, options.output)


def encoder(options: argparse.Namespace) -> None:
    """An enhanced encoder (mte_mclip.pt) to an XLM-R archive that fairseq reads too."""
    from mclip_fairseq.export.conversions import convert_encoder

    convert_encoder(options.checkpoint, options.xlmr, options.output)


def clip(options: argparse.Namespace) -> None:
    """A CLIP state dict under OpenAI's names to a transformers directory."""
    from mclip_fairseq.export.conversions import CLIPOptions, convert_clip

    reading = CLIPOptions(
        options.trust, options.activation, options.head_width, options.resize, tokenizer=options.tokenizer
    )
    convert_clip(options.checkpoint, options.output, reading)


def mla(options: argparse.Namespace) -> None:
    """Published MLA files to a directory for MultilingualCLIP.from_pretrained."""
    from mclip_fairseq.export.mla import load_published, save_directory

    tower = load_published(
        options.checkpoint,
        options.acquirers,
        options.vocabulary,
        options.bpe,
        options.resize,
        options.released_rounding,
        options.trust,
    )
    save_directory(tower, options.output)


def mla_to_published(options: argparse.Namespace) -> None:
    """An mla, checkpoint or directory, to a state dict that the released code of MLA reads."""
    from mclip_fairseq.export.mla import save_published
    from mclip_fairseq.inference import MultilingualCLIP

    model = MultilingualCLIP.from_pretrained(
        options.source, "cpu", text_encoder=options.text_encoder, teacher=options.teacher
    )
    with staged(options.output) as staging:
        save_published(model.tower, staging / "pytorch_model.bin")


def ccrk(options: argparse.Namespace) -> None:
    """A checkpoint of CCRK or CCLM to a directory for MultilingualCLIP.from_pretrained."""
    from mclip_fairseq.export.ccrk import convert_ccrk

    convert_ccrk(options.checkpoint, options.text_encoder, options.output, options.head_dim)


def ccrk_to_released(options: argparse.Namespace) -> None:
    """A ccrk model to checkpoint_best.pth, which CCRK's own retrieval scripts read."""
    from mclip_fairseq.export.ccrk import write_released_ccrk

    write_released_ccrk(options.model, options.text_encoder, options.output)


def xlmr_to_transformers(options: argparse.Namespace) -> None:
    """A fairseq XLM-R archive to a transformers directory with the same token ids."""
    from mclip_fairseq.formats.xlmr import write_transformers

    write_transformers(options.archive, options.output)


def xlmr_to_fairseq(options: argparse.Namespace) -> None:
    """An XLM-R of transformers, Hub name or directory, to a fairseq archive with the same token ids."""
    from mclip_fairseq.formats.xlmr import write_fairseq

    write_fairseq(options.source, options.output, options.revision or None)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=PROGRAM, description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, convert: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=convert.__doc__, description=convert.__doc__)
        added.add_argument("--output", type=Path, required=True, metavar="DIR", help="directory to make")
        added.set_defaults(convert=convert)
        return added

    from_released, from_clip = command("released", released), command("clip", clip)
    from_translation, from_encoder = command("translation", translation), command("encoder", encoder)
    _add_released_options(from_released, from_translation, from_encoder)
    _add_clip_options(from_clip)
    _add_preparation(from_released, "default: CLIP's resolution; the released code used 248")
    _add_preparation(from_clip, "default: CLIP's resolution")
    _add_mla_options(command("mla", mla))
    to_published = command("mla-to-published", mla_to_published)
    to_published.add_argument("source", help="training checkpoint (.pt), or directory of mclip-convert mla")
    to_published.add_argument("--text-encoder", metavar="NAME", help="a checkpoint's tokenizer, if it is not found")
    to_published.add_argument("--teacher", metavar="NAME", help="a checkpoint's CLIP, if it is not found")
    _add_ccrk_options(command("ccrk", ccrk), command("ccrk-to-released", ccrk_to_released))
    command("altclip", altclip).add_argument("source", help="Hub name or transformers directory")
    _add_m_clip_options(command("m-clip", m_clip))
    to_transformers = command("xlmr-to-transformers", xlmr_to_transformers)
    to_transformers.add_argument(
        "archive", type=Path, help="directory with model.pt, dict.txt and sentencepiece.bpe.model"
    )
    to_fairseq = command("xlmr-to-fairseq", xlmr_to_fairseq)
    to_fairseq.add_argument("source", help="Hub name or transformers directory")
    to_fairseq.add_argument("--revision", default="", help="branch, tag or commit on the Hub")
    return parser


def _add_released_options(
    model: argparse.ArgumentParser,
    translation_model: argparse.ArgumentParser,
    enhanced: argparse.ArgumentParser,
) -> None:
    model.add_argument("checkpoint", type=Path, help="mclip_base.pt or mclip_plus_base.pt")
    translation_model.add_argument("checkpoint", type=Path, help="translation model of the released code, stage 1 or 2")
    enhanced.add_argument("checkpoint", type=Path, help="mte_mclip.pt or mte_mclip_plus.pt")
    for parser in (model, translation_model, enhanced):
        parser.add_argument(
            "--xlmr",
            type=Path,
            required=True,
            metavar="DIR",
            help="XLM-R archive that the training started from: model.pt, dict.txt, sentencepiece.bpe.model",
        )


def _add_preparation(parser: argparse.ArgumentParser, default: str) -> None:
    """Add the options of how English text and images are prepared for CLIP."""
    parser.add_argument(
        "--tokenizer", default="", help="Hub name or directory of CLIP's tokenizer, to encode English text with CLIP"
    )
    parser.add_argument(
        "--resize",
        type=int,
        default=0,
        metavar="PIXELS",
        help=f"resize an image's shorter edge to this before the crop ({default})",
    )


def _add_m_clip_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("encoder", help="Hub name or transformers directory of the encoder, with its tokenizer")
    parser.add_argument(
        "--head",
        type=Path,
        required=True,
        metavar="FILE",
        help=".npz or .safetensors with W (encoder columns, dimensions) and b; a pickle is never read",
    )


def _add_mla_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, help="pytorch_model.bin.N of MLA, or OpenAI's CLIP with --acquirers")
    parser.add_argument(
        "--acquirers", type=Path, metavar="FILE", help="take acquirers, table and linear map from this file instead"
    )
    parser.add_argument(
        "--vocabulary",
        type=Path,
        required=True,
        metavar="VOCAB.txt",
        help="mBERT's vocab.txt (cased), or its directory",
    )
    parser.add_argument(
        "--bpe", default="", metavar="DIR", help="CLIP's tokenizer, Hub name or directory, to encode English text"
    )
    parser.add_argument(
        "--resize",
        type=int,
        default=0,
        metavar="PIXELS",
        help="shorter edge before the crop (default: CLIP's resolution)",
    )
    parser.add_argument(
        "--released-rounding",
        action="store_true",
        help="round the layers of CHECKPOINT to half, as the released code does when it loads one as clip_ckpt",
    )
    parser.add_argument("--trust", action="store_true", help="read a TorchScript archive, which can run code")


def _add_ccrk_options(reader: argparse.ArgumentParser, writer: argparse.ArgumentParser) -> None:
    reader.add_argument(
        "checkpoint", type=Path, help="model_state_epoch_N.th, a file of the Hub, or checkpoint_best.pth"
    )
    files = "directory with XLM-R's dict.txt and sentencepiece.bpe.model"
    reader.add_argument("--text-encoder", type=Path, required=True, metavar="DIR", help=files)
    reader.add_argument(
        "--head-dim", type=int, default=64, metavar="N", help="columns of an attention head of the text layers (64)"
    )
    writer.add_argument("model", help="training checkpoint or exported directory of a ccrk model")
    writer.add_argument("--text-encoder", default="", metavar="DIR", help=f"{files}, if they have moved")


def _add_clip_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint", type=Path, help="OpenAI's .pt, or a state dict of open_clip (.pt, .bin, .safetensors)"
    )
    parser.add_argument("--trust", action="store_true", help="read a TorchScript archive, which can run code")
    parser.add_argument(
        "--activation",
        choices=["quick_gelu", "gelu"],
        default="",
        help="default: that of open_clip_config.json beside the checkpoint, or OpenAI's quick_gelu",
    )
    parser.add_argument(
        "--head-width",
        type=int,
        default=0,
        metavar="N",
        help="columns of an attention head (default: that of open_clip_config.json, or 64)",
    )


if __name__ == "__main__":
    sys.exit(main())
