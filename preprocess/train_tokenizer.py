#!/usr/bin/env python3
"""Train a small SentencePiece model in XLM-R's layout: `sentencepiece.bpe.model` and its `dict.txt`.

For experiments too small for XLM-R's 250,000 pieces. With the real XLM-R, use the files of its release.
"""

import io
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from math import exp
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corpora.files import check_plain_files, numbered_lines
from corpora.output import check_not_overwritten, make_folder

from mclip_fairseq.cli.main import Parser, run_main
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import first_line
from mclip_fairseq.storage.pieces import (
    CONTROL_PIECES,
    SENTENCEPIECE,
    TOKENIZER_FILES,
    WORD_START,
    piece_list,
    write_dictionary,
)

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

LONGEST_PIECE = 16  # characters, WORD_START included


def check_text(files: Sequence[Path]) -> None:
    """Check that the files are text.

    Raises:
        UserError: a file is missing or not UTF-8, or all are empty.
    """
    check_plain_files(files)
    empty = True
    for path in files:
        for place, line in numbered_lines(path):
            if "\0" in line:
                raise UserError(f"{place}: holds a null character, as UTF-16 does; convert the file to UTF-8")
            empty = empty and not line.strip()
    if empty:
        raise UserError(f"{files[0]}: holds no text, nor does any other file; give a file with sentences")


def seed_pieces(processor: "SentencePieceProcessor", files: Sequence[Path]) -> str:
    """Lines of piece, tab and count: the pieces of a first model, and every word of the files.

    SentencePiece itself begins with strings that occur in several words, so a word of its own could not be a piece.
    """
    words: Counter[str] = Counter()
    for path in files:
        for _, line in numbered_lines(path):
            words.update(WORD_START + word for word in processor.normalize(line).split(WORD_START) if word)
    total = words.total()
    first = {
        piece: round(total * exp(processor.get_score(CONTROL_PIECES + n))) or 1
        for n, piece in enumerate(piece_list(processor))
    }
    return "".join(f"{piece}\t{count}\n" for piece, count in {**first, **words}.items() if len(piece) <= LONGEST_PIECE)


def fit(options: Mapping[str, Any]) -> bytes:
    """A SentencePiece model, serialised."""
    import sentencepiece

    model = io.BytesIO()
    # The trainer shuffles only when it samples; it reads every line here, so the result depends on the input alone.
    sentencepiece.SentencePieceTrainer.train(model_writer=model, **options)
    return model.getvalue()


def train(
    files: Sequence[Path],
    output: Path,
    vocabulary: int,
    model_type: str,
    ignore_case: bool = False,
    whole_words: bool = False,
) -> str:
    """Train on all lines of all files and write both files; returns a summary for the user.

    Raises:
        UserError: a file cannot be used or would be overwritten, or the training fails.
    """
    if whole_words and model_type != "unigram":
        raise UserError("--whole-words is for --model-type unigram; drop one of the two")
    check_text(files)
    make_folder(output)
    from sentencepiece import SentencePieceProcessor

    check_not_overwritten(files, [output / name for name in TOKENIZER_FILES])
    options = {
        "input": list(map(str, files)),
        "vocab_size": vocabulary,
        "model_type": model_type,
        "character_coverage": 0.9999,
        "normalization_rule_name": "nmt_nfkc_cf" if ignore_case else "nmt_nfkc",
        "max_sentencepiece_length": LONGEST_PIECE,
        "hard_vocab_limit": False,
        "minloglevel": 2,
    }
    with tempfile.TemporaryDirectory(dir=output, prefix=".tokenizer-") as scratch:
        try:
            model = fit(options)
            if whole_words:
                seeds = Path(scratch) / "seeds.tsv"
                seeds.write_text(seed_pieces(SentencePieceProcessor(model_proto=model), files), encoding="utf-8")
                model = fit(options | {"seed_sentencepieces_file": str(seeds)})
        except (RuntimeError, OSError) as error:
            raise UserError(
                f"--vocabulary {vocabulary}: training on {files[0]} failed ({first_line(error)}); give another size or "
                "more text"
            ) from error
        (Path(scratch) / SENTENCEPIECE).write_bytes(model)
        write_dictionary(Path(scratch))
        for name in TOKENIZER_FILES:
            (Path(scratch) / name).replace(output / name)
    return f"{output}: {', '.join(TOKENIZER_FILES)}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = Parser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="directory for the two files")
    parser.add_argument("--vocabulary", type=int, default=8000, help="largest number of pieces (default: 8000)")
    parser.add_argument(
        "--model-type",
        choices=["unigram", "bpe"],
        default="unigram",
        help="kind of model (default: unigram, as in XLM-R)",
    )
    parser.add_argument(
        "--ignore-case",
        action="store_true",
        help="fold upper and lower case, in every text that the model encodes (XLM-R keeps them apart)",
    )
    parser.add_argument(
        "--whole-words",
        action="store_true",
        help=f"let every word of up to {LONGEST_PIECE - 1} characters be a piece, even one that occurs once, as far as "
        "--vocabulary allows; for a small encoder that shall learn all words of its training data",
    )
    parser.add_argument("files", type=Path, nargs="+", help="UTF-8 text, one sentence per line")
    args = parser.parse_args(argv)
    return run_main(
        "train_tokenizer.py",
        lambda: print(
            train(args.files, args.output, args.vocabulary, args.model_type, args.ignore_case, args.whole_words)
        ),
    )


if __name__ == "__main__":
    sys.exit(main())
