"""Translate captions into further languages with a trained MTE."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mclip_fairseq.cli.main import Parser, run_main
from mclip_fairseq.cli.options import add_dtype, count, pick_device, positive
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import check_folder

PROGRAM = "mclip-translate"
EPILOG = """\
DIR/LANG.tsv has a line 'id, tab, translation' for every caption, with the ids of the input: mclip-features --captions,
preprocess/own.py --columns image caption and preprocess/ccrk.py --tables read it. Run the same command again to
continue a run that was stopped. Machines that share DIR share the work: give --machines 4 to all four, and --machine 0
to --machine 3.

example:
  mclip-translate mte2/checkpoint_best.pt captions.tsv --tokenizer xlmr.base --to de,fr --output data/translated
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = _parser().parse_args(argv)
    return run_main(PROGRAM, lambda: print(run(options)), when_interrupted="run the same command again to continue")


def run(options: argparse.Namespace) -> str:
    """Translate; returns the line to print."""
    targets = tuple(dict.fromkeys(name.strip() for name in options.to.split(",") if name.strip()))
    if not targets or options.source in targets:
        raise UserError(f"--to is {options.to!r}; name languages other than {options.source}, separated by commas")
    if options.machine >= options.machines:
        raise UserError(f"--machine must be 0 to {options.machines - 1} with --machines {options.machines}")
    check_folder("--output", options.output)
    from mclip_fairseq.encoding.bulk import read_caption_list
    from mclip_fairseq.translation import TranslationSettings, TranslationWriter, Translator, translate_captions

    device = pick_device(options.device, options.dtype)
    captions = read_caption_list(options.captions)
    settings = TranslationSettings(
        options.source,
        targets,
        options.beam,
        options.batch_size,
        options.shard_rows,
        options.skip_budget,
        options.machine,
        options.machines,
        options.dtype,
    )
    writer = TranslationWriter(options.output, captions, settings, options.checkpoint, options.tokenizer)
    if not writer.complete:
        translator = Translator(options.checkpoint, options.tokenizer, device, settings)
        if not translate_captions(captions, translator, writer, settings):
            return f"{options.output}: {len(writer.pending())} of {len(writer.shards())} shards are left"
    return f"{options.output}: {len(captions)} captions in {', '.join(targets)}"


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=PROGRAM, description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("checkpoint", type=Path, help="checkpoint of the task mte")
    add("captions", type=Path, help="captions: .tsv with 'id, tab, caption', or one per line; .gz works too")
    add("--to", required=True, metavar="LANG,LANG", help="languages to translate into, as in the training's --langs")
    add("--source", default="en", metavar="LANG", help="language of the captions (default en)")
    add(
        "--tokenizer",
        type=Path,
        required=True,
        metavar="DIR",
        help="directory with the text encoder's dict.txt and sentencepiece.bpe.model",
    )
    add("--output", type=Path, required=True, metavar="DIR", help="directory to create or continue")
    add("--beam", type=positive, default=5, metavar="N", help="hypotheses to follow (default 5)")
    add("--batch-size", type=positive, default=64, metavar="N", help="captions per batch (default 64)")
    add("--shard-rows", type=positive, default=4096, metavar="N", help="captions per shard (default 4096)")
    add("--skip-budget", type=count, default=0, metavar="N", help="leave out up to N empty captions or translations")
    add("--device", help="for example cpu or cuda:1 (default: a GPU if there is one)")
    add_dtype(parser, "compute")
    add("--machines", type=positive, default=1, metavar="N", help="machines that share the work (default 1)")
    add("--machine", type=count, default=0, metavar="I", help="index of this machine, from 0 (default 0)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
