#!/usr/bin/env python3
"""Train a small SentencePiece model in XLM-R's layout: `sentencepiece.bpe.model` and its `dict.txt`.

For experiments too small for XLM-R's 250,000 pieces. With the real XLM-R, use the files of its release.
"""

import io
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from corpora.files import check_plain_files, numbered_lines
from corpora.output import check_not_overwritten, make_folder

from mclip_fairseq.cli.main import Parser, run_main
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import first_line


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


def train(files: Sequence[Path], output: Path, vocabulary: int, model_type: str, ignore_case: bool = False) -> str:
    """Train on all lines of all files and write both files; returns a summary for the user.

    Raises:
        UserError: a file cannot be used or would be overwritten, or the training fails.
    """
    check_text(files)
    make_folder(output)
    import sentencepiece

    from mclip_fairseq.storage.pieces import SENTENCEPIECE, write_dictionary

    names = (SENTENCEPIECE, "dict.txt")
    check_not_overwritten(files, [output / name for name in names])
    model = io.BytesIO()
    try:
        # The trainer shuffles only when it samples; it reads every line here, so the result depends on the input alone.
        sentencepiece.SentencePieceTrainer.train(
            input=list(map(str, files)),
            model_writer=model,
            vocab_size=vocabulary,
            model_type=model_type,
            character_coverage=0.9999,
            normalization_rule_name="nmt_nfkc_cf" if ignore_case else "nmt_nfkc",
            hard_vocab_limit=False,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        raise UserError(
            f"--vocabulary {vocabulary}: training on {files[0]} failed ({first_line(error)}); give another size or "
            "more text"
        ) from error
    with tempfile.TemporaryDirectory(dir=output, prefix=".tokenizer-") as scratch:
        (Path(scratch) / SENTENCEPIECE).write_bytes(model.getvalue())
        write_dictionary(Path(scratch))
        for name in names:
            (Path(scratch) / name).replace(output / name)
    return f"{output}: {', '.join(names)}"


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
    parser.add_argument("files", type=Path, nargs="+", help="UTF-8 text, one sentence per line")
    args = parser.parse_args(argv)
    return run_main(
        "train_tokenizer.py",
        lambda: print(train(args.files, args.output, args.vocabulary, args.model_type, args.ignore_case)),
    )


if __name__ == "__main__":
    sys.exit(main())
