"""The files of XLM-R's tokenizer: a SentencePiece model, and the dictionary of its pieces."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import first_line

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

DICTIONARY, SENTENCEPIECE = "dict.txt", "sentencepiece.bpe.model"
TOKENIZER_FILES = (DICTIONARY, SENTENCEPIECE)
WORD_START = "\u2581"  # begins each piece that begins a word
# A model file begins with <unk> <s> </s>; fairseq adds four special entries to a dictionary instead.
CONTROL_PIECES = 3


def load_sentencepiece(file: Path) -> SentencePieceProcessor:
    """Read a SentencePiece model.

    Raises:
        UserError: the file is not a SentencePiece model.
    """
    from sentencepiece import SentencePieceProcessor

    try:
        return SentencePieceProcessor(model_file=str(file))
    except Exception as error:  # its parser is not written in Python
        raise UserError(
            f"{file}: is not a SentencePiece model ({first_line(error)}); copy the text encoder's to this path"
        ) from error


def piece_list(processor: SentencePieceProcessor) -> list[str]:
    """The pieces in the model's order, without the control pieces."""
    return [processor.id_to_piece(i) for i in range(CONTROL_PIECES, processor.get_piece_size())]


def write_dictionary(directory: Path) -> None:
    """Write the `dict.txt` of a SentencePiece model: its pieces in their order, as in XLM-R's."""
    lines = "".join(f"{piece} 1\n" for piece in piece_list(load_sentencepiece(directory / SENTENCEPIECE)))
    (directory / DICTIONARY).write_text(lines, encoding="utf-8")


def copy_tokenizer(source: Path, output: Path) -> None:
    """Copy dictionary and SentencePiece model into a directory, which may be the same one."""
    for name in TOKENIZER_FILES:
        if (source / name).resolve() != (output / name).resolve():
            shutil.copyfile(source / name, output / name)
