#!/usr/bin/env python3
"""Encode text files into SentencePiece pieces, line by line, for `fairseq-preprocess`.

Every input line, even an empty one, gives exactly one output line, so that ids and translations stay aligned. Uses all
cores.
"""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from corpora.files import RawChunk, check_plain_files, raw_chunks
from corpora.output import check_not_overwritten, make_folder, written_whole
from corpora.pool import in_order
from tqdm import tqdm

from mclip_fairseq.cli.main import Parser, run_main
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.machine import cores
from mclip_fairseq.storage.texts import without_splitters

if TYPE_CHECKING:
    import sentencepiece

CHUNK = 4096


def encode_chunk(chunk: RawChunk, processor: "sentencepiece.SentencePieceProcessor") -> str:
    """The pieces of each line, one line of text each."""
    # Other line breaks (U+2028 ...) would end the output line early, so all white space becomes one space.
    texts = [" ".join(without_splitters(text).split()) for text in chunk.texts()]
    return "".join(" ".join(pieces) + "\n" for pieces in processor.encode(texts, out_type=str, num_threads=1))


def encode_file(processor: "sentencepiece.SentencePieceProcessor", source: Path, target: Path, workers: int) -> int:
    """Encode one file; returns the number of lines.

    Raises:
        UserError: a line is not UTF-8.
    """
    lines = 0
    with written_whole(target) as writer, tqdm(desc=source.name, unit="line") as progress:
        for text in in_order(partial(encode_chunk, processor=processor), raw_chunks(source, CHUNK), workers):
            writer.write(text)
            count = text.count("\n")
            lines += count
            progress.update(count)
    return lines


def encode(model: Path, output: Path, files: Sequence[Path], workers: int) -> str:
    """Encode all files into a directory; returns a summary for the user.

    Raises:
        UserError: a file cannot be read, two have the same name, or an input would be overwritten.
    """
    if not model.is_file():
        raise UserError(f"{model}: not found; give the text encoder's sentencepiece.bpe.model")
    if workers < 1:
        raise UserError(f"--workers {workers}: give at least 1")
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
    lines = sum(encode_file(processor, path, target, workers) for target, path in targets.items())
    return f"{output}: {lines} lines in {len(targets)} files"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = Parser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="sentencepiece.bpe.model")
    parser.add_argument(
        "--output", type=Path, required=True, help="directory for the encoded files, which keep their names"
    )
    parser.add_argument("--workers", type=int, default=cores(), help=f"processes (default: all cores, {cores()})")
    parser.add_argument("files", type=Path, nargs="+", help="UTF-8 text, one sentence per line")
    args = parser.parse_args(argv)
    return run_main("encode.py", lambda: print(encode(args.model, args.output, args.files, args.workers)))


if __name__ == "__main__":
    sys.exit(main())
