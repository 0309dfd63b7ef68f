#!/usr/bin/env python3
"""Train a small SentencePiece model in XLM-R's layout: `sentencepiece.bpe.model` and the `dict.txt` that goes with it.

For experiments too small for XLM-R's 250,000 pieces; with the real XLM-R, use the files of its release.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import sentencepiece

from mclip_fairseq.data.tokenizer import write_dictionary


def train(files: Sequence[Path], output: Path, vocabulary: int, model_type: str) -> None:
    """Train on all lines of all files and write both files."""
    output.mkdir(parents=True, exist_ok=True)
    prefix = output / "sentencepiece.bpe"
    # The trainer shuffles only when it samples; it reads every line here, so the result depends on the input alone.
    sentencepiece.SentencePieceTrainer.train(
        input=",".join(map(str, files)),
        model_prefix=str(prefix),
        vocab_size=vocabulary,
        model_type=model_type,
        character_coverage=0.9999,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    write_dictionary(output)
    prefix.with_suffix(".bpe.vocab").unlink()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="directory for the two files")
    parser.add_argument("--vocabulary", type=int, default=8000, help="pieces, at most")
    parser.add_argument("--model-type", choices=["unigram", "bpe"], default="unigram", help="XLM-R's is unigram")
    parser.add_argument("files", type=Path, nargs="+", help="UTF-8 text, one sentence per line")
    args = parser.parse_args(argv)
    missing = [str(path) for path in args.files if not path.is_file()]
    if missing:
        print(f"train_tokenizer.py: {', '.join(missing)}: not found", file=sys.stderr)
        return 2
    train(args.files, args.output, args.vocabulary, args.model_type)
    return 0


if __name__ == "__main__":
    sys.exit(main())
