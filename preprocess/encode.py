#!/usr/bin/env python3
"""Encode text files into SentencePiece pieces, line by line, for `fairseq-preprocess`.

Every input line gives exactly one output line, empty ones included, so that ids and translations stay aligned.
"""

import argparse
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

import sentencepiece
from tqdm import tqdm

CHUNK = 65536


def encode_file(processor: sentencepiece.SentencePieceProcessor, source: Path, target: Path) -> int:
    """Encode one file; returns the number of lines."""
    lines = 0
    target.parent.mkdir(parents=True, exist_ok=True)
    with (
        source.open(encoding="utf-8", newline="\n") as reader,
        target.open("w", encoding="utf-8") as writer,
        tqdm(desc=source.name, unit="line") as progress,
    ):
        while chunk := list(itertools.islice(reader, CHUNK)):
            # Inner whitespace of any kind is one space: other line breaks would end the line early.
            for pieces in processor.encode([" ".join(line.split()) for line in chunk], out_type=str):
                writer.write(" ".join(pieces) + "\n")
            lines += len(chunk)
            progress.update(len(chunk))
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="sentencepiece.bpe.model")
    parser.add_argument("--output", type=Path, required=True, help="directory for the encoded files, of the same names")
    parser.add_argument("files", type=Path, nargs="+", help="UTF-8 text, one sentence per line")
    args = parser.parse_args(argv)
    missing = [str(path) for path in (args.model, *args.files) if not path.is_file()]
    if missing:
        print(f"encode.py: {', '.join(missing)}: not found", file=sys.stderr)
        return 2
    processor = sentencepiece.SentencePieceProcessor(model_file=str(args.model), num_threads=-1)
    for path in args.files:
        try:
            encode_file(processor, path, args.output / path.name)
        except UnicodeDecodeError as error:
            print(
                f"encode.py: {path}: is not UTF-8 ({error.reason} at byte {error.start}); convert it", file=sys.stderr
            )
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
