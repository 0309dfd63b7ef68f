"""Write the text encoder of a trained model as an ordinary fairseq XLM-R archive."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mclip_fairseq.cli.main import Parser, run_main

PROGRAM = "mclip-extract-mte"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = _parser().parse_args(argv)
    return run_main(PROGRAM, lambda: run(options))


def run(options: argparse.Namespace) -> None:
    """Extract, and say what was written."""
    from mclip_fairseq.export.xlmr_archive import extract_text_encoder

    extract_text_encoder(options.checkpoint, options.tokenizer, options.output)
    print(f"Written: {options.output} (model.pt, dict.txt, sentencepiece.bpe.model)")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog=PROGRAM, description=__doc__)
    parser.add_argument(
        "checkpoint", type=Path, help="checkpoint of the model mte, or of another one that trained its text encoder"
    )
    parser.add_argument(
        "--tokenizer",
        type=Path,
        required=True,
        metavar="DIR",
        help="directory with the text encoder's dict.txt and sentencepiece.bpe.model",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="XLM-R archive to write")
    return parser


if __name__ == "__main__":
    sys.exit(main())
