"""Lines of pieces as ids of a `dict.txt`, as `fairseq-preprocess` stores them, without importing fairseq or torch."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy.typing as npt

from corpora.files import RawChunk
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.indexed import Flat, fitting_dtype, flat_ids

# fairseq puts these before the entries of every dictionary.
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
EOS, UNKNOWN = SPECIAL.index("</s>"), SPECIAL.index("<unk>")
OVERWRITE = " #fairseq:overwrite"


class PieceIds(dict[str, int]):
    """The id of each piece, and that of `<unk>` for any other."""

    def __missing__(self, piece: str) -> int:
        return UNKNOWN


@dataclass(frozen=True)
class PieceDictionary:
    """A `dict.txt`.

    Attributes:
        ids: of its pieces and of fairseq's special ones.
        text: the file as fairseq writes it.
        dtype: in which ids are stored.
    """

    ids: PieceIds
    text: str
    dtype: npt.DTypeLike

    @classmethod
    def read(cls, path: Path) -> "PieceDictionary":
        """Read a file, with the rules of fairseq.

        Raises:
            UserError: it is missing, is not a dictionary, or is empty.
        """
        if not path.is_file():
            raise UserError(f"{path}: not found; give the text encoder's dict.txt")
        try:
            with path.open(encoding="utf-8") as stream:
                dictionary = cls._parse(stream)
        except ValueError as error:
            reason = "Incorrect encoding" if isinstance(error, UnicodeError) else str(error)
            raise UserError(
                f"{path}: is not a dictionary ({reason}); copy the text encoder's dict.txt to this path"
            ) from error
        if not dictionary.text:
            raise UserError(f"{path}: has no entries; give the text encoder's dict.txt")
        return dictionary

    @classmethod
    def _parse(cls, lines: Iterable[str]) -> "PieceDictionary":
        ids = PieceIds({piece: number for number, piece in enumerate(SPECIAL)})
        entries: list[str] = []
        for number, line in enumerate(lines, 1):
            entry = line.rstrip().removesuffix(OVERWRITE)
            piece, space, count = entry.rpartition(" ")
            if not (space and count.removeprefix("-").isdecimal()):
                raise ValueError(f"Incorrect dictionary format in line {number}, write it as 'piece, space, count'")
            if piece in ids and not line.rstrip().endswith(OVERWRITE):
                raise ValueError(f"Duplicate word found in line {number}: {piece!r}")
            ids[piece] = len(SPECIAL) + len(entries)
            entries.append(f"{piece} {int(count)}\n")
        return cls(ids, "".join(entries), fitting_dtype(len(SPECIAL) + len(entries)))


def ids_of_lines(chunk: RawChunk, dictionary: PieceDictionary) -> Flat:
    """Ids of the pieces of each line, ended by `</s>`, back to back, and how many they are."""
    id_of = dictionary.ids.__getitem__
    return flat_ids([[*map(id_of, text.split()), EOS] for text in chunk.texts()], dictionary.dtype)


def ids_by(dictionary: PieceDictionary) -> "partial[Flat]":
    """`ids_of_lines` as a function of the chunk alone, for worker processes."""
    return partial(ids_of_lines, dictionary=dictionary)
