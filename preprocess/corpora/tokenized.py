"""Captions as a data directory with the ids of a Hugging Face tokenizer, without `fairseq-preprocess`.

fairseq-preprocess puts its own four symbols before a dictionary's, so its ids are not those of the tokenizer.
"""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from tqdm import tqdm

from corpora.files import raw_chunks
from mclip_fairseq.data.hf_tokenizer import PIECES, PieceTokenizer
from mclip_fairseq.data.tokens import data_dictionary
from mclip_fairseq.data.vocabulary import VOCABULARY
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.indexed import Flat, flat_ids, write_indexed
from mclip_fairseq.storage.staging import staged

CHUNK = 8192


def binarise_captions(source: str, files: Mapping[str, Path], output: Path) -> int:
    """Write one data directory: a `.bin/.idx` pair per file, the vocabulary, and a copy of the tokenizer.

    Args:
        source: Hub name or directory of a tokenizer, or a WordPiece `vocab.txt` (mBERT's, cased).
        files: name of the pair, such as `train.de-None.de` -> text, a caption a line.
        output: directory; it may have captions of the same tokenizer already.

    Returns:
        how many captions there are.

    Raises:
        UserError: a file cannot be read, or the directory belongs to another tokenizer.
    """
    tokenizer = PieceTokenizer.from_pretrained(source)
    write_tokenizer(output, tokenizer)
    captions = 0
    for name, file in files.items():
        with pair_written_whole(output / name) as part:
            captions += write_indexed(part, ids_of(tokenizer, file), np.int32)
    return captions


def write_tokenizer(output: Path, tokenizer: PieceTokenizer) -> None:
    """Write the tokenizer and its vocabulary into a directory before the ids, which mean nothing without them.

    Raises:
        UserError: the directory has ids of another tokenizer.
    """
    if any(output.glob("*.idx")):
        check_same_vocabulary(output, tokenizer)
    else:  # an interrupted call may have left another tokenizer
        shutil.rmtree(output / PIECES, ignore_errors=True)
    if not (output / PIECES).exists():
        with staged(output / PIECES) as folder:
            tokenizer.save(folder)
    tokenizer.dictionary.save_vocabulary(output / VOCABULARY)


def check_same_vocabulary(output: Path, tokenizer: PieceTokenizer) -> None:
    """Refuse to add captions to a directory whose ids mean something else.

    Raises:
        UserError: naming the directory.
    """
    present = data_dictionary(output)
    own = tokenizer.dictionary
    if (present.symbols, present.bos(), present.eos()) != (own.symbols, own.bos(), own.eos()):
        raise UserError(
            f"{output}: holds captions with the ids of another tokenizer than {tokenizer.name}; give every tokenizer a "
            "directory of its own"
        )


@contextmanager
def pair_written_whole(prefix: Path) -> Iterator[Path]:
    """The prefix of a `.bin` and an `.idx` file, which get their names when both are complete."""
    part = prefix.with_name(f".{prefix.name}.part")
    suffixes = (".bin", ".idx")
    try:
        yield part
        for suffix in suffixes:
            Path(f"{part}{suffix}").replace(f"{prefix}{suffix}")
    finally:
        for suffix in suffixes:
            Path(f"{part}{suffix}").unlink(missing_ok=True)


def ids_of(tokenizer: PieceTokenizer, file: Path) -> Iterator[Flat]:
    """Ids of the lines of a file, chunk by chunk."""
    with tqdm(desc=file.name, unit="caption") as progress:
        for chunk in raw_chunks(file, CHUNK):
            yield flat_ids(tokenizer.pieces(chunk.texts()), np.int32)
            progress.update(len(chunk.lines))
