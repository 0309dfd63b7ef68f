#!/usr/bin/env python3
"""Encode text files into SentencePiece pieces, line by line, for `fairseq-preprocess`.

Every input line, even an empty one, gives exactly one output line, so that ids and translations stay aligned.
"""

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from corpora.files import check_plain_files, numbered_lines
from corpora.output import check_not_overwritten, make_folder, written_whole
from tqdm import tqdm

from mclip_fairseq.cli.main import Parser, run_main
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.texts import without_splitters

if TYPE_CHECKING:
    import sentencepiece

CHUNK = 65536


def encode_file(processor: "sentencepiece.SentencePieceProcessor", source: Path, target: Path) -> int:
    """Encode one file; returns the number of lines.

    Raises:
        UserError: a line is not UTF-8.
    """
    lines = 0
    # Other line breaks (U+2028 ...) would end the output line early, so all white space becomes one space.
    texts = (" ".join(without_splitters(line).split()) for _, line in numbered_lines(source))
    with written_whole(target) as writer, tqdm(desc=source.name, unit="line") as progress:
        while chunk := list(itertools.islice(texts, CHUNK)):
            for pieces in processor.encode(chunk, out_type=str):
                writer.write(" ".join(pieces) + "\n")
            lines += len(chunk)
            progress.update(len(chunk))
    return lines


def encode(model: Path, output: Path, files: Sequence[Path]) -> str:
    """Encode all files into a directory; returns a summary for the user.

    Raises:
        UserError: a file cannot be read, two have the same name, or an input would be overwritten.
    """
    if not model.is_file():
        raise UserError(f"{model}: not found; give the text encoder's sentencepiece.bpe.model")
    check_plain_files(files)
    targets: dict[Path, Path] = {}
    for path in files:
        first = targets.setdefault(output / path.name, path)
        if first is not path:
            raise UserError(
                f"{path}: has the same name as {first}, whose pieces it would replace; encode it into another --output"
            )
    make_folder(output)
    check_not_overwritten([model, *files], targets)
    from mclip_fairseq.storage.pieces import load_sentencepiece

    processor = load_sentencepiece(model)
    lines = sum(encode_file(processor, path, target) for target, path in targets.items())
    return f"{output}: {lines} lines in {len(targets)} files"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = Parser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="sentencepiece.bpe.model")
    parser.add_argument(
        "--output", type=Path, required=True, help="directory for the encoded files, which keep their names"
    )
    parser.add_argument("files", type=Path, nargs="+", help="UTF-8 text, one sentence per line")
    args = parser.parse_args(argv)
    return run_main("encode.py", lambda: print(encode(args.model, args.output, args.files)))


if __name__ == "__main__":
    sys.exit(main())
