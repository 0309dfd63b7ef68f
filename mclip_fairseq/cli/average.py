"""Average the parameters of checkpoints: the last ones of a training, or two models that began from one start."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mclip_fairseq.cli.main import Parser, run_main

PROGRAM = "mclip-average"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = _parser().parse_args(argv)
    return run_main(PROGRAM, lambda: run(options))


def run(options: argparse.Namespace) -> None:
    """Average, and say what was written."""
    from mclip_fairseq.export.averaging import average_checkpoints

    average_checkpoints(options.checkpoints, options.output, options.weights)
    print(f"Written: {options.output} (the mean of {len(options.checkpoints)} checkpoints)")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog=PROGRAM, description=__doc__)
    parser.add_argument(
        "checkpoints", type=Path, nargs="+", metavar="CHECKPOINT", help="two or more, of models of one kind"
    )
    parser.add_argument(
        "--weights",
        type=float,
        nargs="+",
        metavar="W",
        help="one number per checkpoint; they are divided by their sum (default: equal)",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="checkpoint to write")
    return parser


if __name__ == "__main__":
    sys.exit(main())
