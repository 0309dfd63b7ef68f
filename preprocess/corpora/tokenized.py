"""Captions as a data directory with the ids of a Hugging Face tokenizer, without `fairseq-preprocess`.

fairseq-preprocess puts its own four symbols before a dictionary's, so its ids are not those of the tokenizer.
"""

import itertools
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from corpora.files import numbered_lines
from mclip_fairseq.data.hf_tokenizer import PIECES, PieceTokenizer
from mclip_fairseq.data.tokens import data_dictionary
from mclip_fairseq.data.vocabulary import VOCABULARY
from mclip_fairseq.storage.errors import UserError

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
    check_same_vocabulary(output, tokenizer)
    captions = 0
    for name, file in files.items():
        with pair_written_whole(output / name) as (data, index):
            captions += write_pair(tokenizer, file, data, index)
    if not (output / PIECES).exists():
        tokenizer.save(output / PIECES)
    tokenizer.dictionary.save_vocabulary(output / VOCABULARY)
    return captions


def check_same_vocabulary(output: Path, tokenizer: PieceTokenizer) -> None:
    """Refuse to add captions to a directory whose ids mean something else.

    Raises:
        UserError: naming the directory.
    """
    if not output.exists() or not any(output.glob("*.idx")):
        return
    present = data_dictionary(output)
    own = tokenizer.dictionary
    if (present.symbols, present.bos(), present.eos()) != (own.symbols, own.bos(), own.eos()):
        raise UserError(
            f"{output}: holds captions with the ids of another tokenizer than {tokenizer.name}; give every tokenizer a "
            "directory of its own"
        )


@contextmanager
def pair_written_whole(prefix: Path) -> Iterator[tuple[Path, Path]]:
    """Places for a `.bin` and an `.idx` file, which get their names when both are complete."""
    parts = [prefix.with_name(f".{prefix.name}{suffix}.part") for suffix in (".bin", ".idx")]
    try:
        yield parts[0], parts[1]
        for part, suffix in zip(parts, (".bin", ".idx"), strict=True):
            shutil.move(part, f"{prefix}{suffix}")
    finally:
        for part in parts:
            part.unlink(missing_ok=True)


def write_pair(tokenizer: PieceTokenizer, file: Path, data: Path, index: Path) -> int:
    """Write the ids of a file's lines as fairseq's memory-mapped dataset; returns the number of lines."""
    from fairseq.data.indexed_dataset import MMapIndexedDatasetBuilder

    lines = 0
    builder = MMapIndexedDatasetBuilder(str(data), dtype=np.int32)
    texts = (text for _, text in numbered_lines(file))
    with tqdm(desc=file.name, unit="caption") as progress:
        while chunk := list(itertools.islice(texts, CHUNK)):
            for ids in tokenizer.pieces(chunk):
                builder.add_item(torch.tensor(ids))
            lines += len(chunk)
            progress.update(len(chunk))
    builder.finalize(str(index))
    return lines
