#!/usr/bin/env python3
"""Train a small SentencePiece model in XLM-R's layout: `sentencepiece.bpe.model` and the `dict.txt` that goes with it.

For experiments too small for XLM-R's 250,000 pieces; with the real XLM-R, use the files of its release.
"""

import argparse
import io
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import sentencepiece
from corpora.command import guarded
from corpora.files import numbered_lines, plain_files
from corpora.output import keep_sources, make_folder

from mclip_fairseq.data.tokenizer import SENTENCEPIECE, write_dictionary
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import first_line


def check_text(files: Sequence[Path]) -> None:
    """Refuse files that the trainer would take for text, or fail on.

    Raises:
        UserError: a file is missing or not UTF-8, or all are empty.
    """
    plain_files(files)
    empty = True
    for path in files:
        for place, line in numbered_lines(path):
            if "\0" in line:
                raise UserError(f"{place}: holds a null character, as UTF-16 does; convert the file to UTF-8")
            empty = empty and not line.strip()
    if empty:
        raise UserError(f"{files[0]}: holds no text, nor do the other files, if there are any; give one with sentences")


def train(files: Sequence[Path], output: Path, vocabulary: int, model_type: str) -> str:
    """Train on all lines of all files and write both files; returns what to tell the user.

    Raises:
        UserError: a file cannot be used or would be overwritten, or the trainer refuses.
    """
    check_text(files)
    make_folder(output)
    names = (SENTENCEPIECE, "dict.txt")
    keep_sources(files, [output / name for name in names])
    model = io.BytesIO()
    try:
        # The trainer shuffles only when it samples; it reads every line here, so the result depends on the input alone.
        sentencepiece.SentencePieceTrainer.train(
            input=list(map(str, files)),
            model_writer=model,
            vocab_size=vocabulary,
            model_type=model_type,
            character_coverage=0.9999,
            hard_vocab_limit=False,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        raise UserError(f"--vocabulary {vocabulary}: cannot be made of {files[0]} ({first_line(error)})") from error
    with tempfile.TemporaryDirectory(dir=output, prefix=".tokenizer-") as scratch:
        (Path(scratch) / SENTENCEPIECE).write_bytes(model.getvalue())
        write_dictionary(Path(scratch))
        for name in names:
            (Path(scratch) / name).replace(output / name)
    return f"{output}: {', '.join(names)}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="directory for the two files")
    parser.add_argument("--vocabulary", type=int, default=8000, help="pieces, at most")
    parser.add_argument("--model-type", choices=["unigram", "bpe"], default="unigram", help="XLM-R's is unigram")
    parser.add_argument("files", type=Path, nargs="+", help="UTF-8 text, one sentence per line")
    args = parser.parse_args(argv)
    return guarded("train_tokenizer.py", lambda: train(args.files, args.output, args.vocabulary, args.model_type))


if __name__ == "__main__":
    sys.exit(main())
