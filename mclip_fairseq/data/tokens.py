"""Tokenised sentences as one flat array: whole batches are built by indexing, never sentence by sentence."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from fairseq.data import Dictionary
from torch import Tensor

from mclip_fairseq.data.vocabulary import VOCABULARY, TokenizerDictionary
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import first_line
from mclip_fairseq.storage.indexed import MappedValues, read_indexed

MASK = "<mask>"


def load_dictionary(path: str | Path) -> Dictionary:
    """XLM-R's dictionary: fairseq's four specials, the lines of `dict.txt`, and `<mask>` last.

    Args:
        path: a `dict.txt`, or a directory that holds one.

    Returns:
        The dictionary; its size is the number of rows of the text encoder's embedding table.

    Raises:
        UserError: the file is missing, or is not a dictionary.
    """
    path = Path(path)
    file = path / "dict.txt" if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"{file}: no dictionary here; copy the text encoder's dict.txt to it")
    try:
        dictionary = Dictionary.load(str(file))
    except Exception as error:  # fairseq raises plain Exceptions and RuntimeErrors here
        raise UserError(
            f"{file}: is not a dictionary ({first_line(error)}); copy the text encoder's dict.txt to this path"
        ) from error
    dictionary.add_symbol(MASK)
    return dictionary


def data_dictionary(data: str | Path) -> Dictionary:
    """The one dictionary of a data directory: of `fairseq-preprocess`, or of a Hugging Face tokenizer.

    fairseq writes a copy per language (`dict.de.txt`); since all languages share the text encoder's table, the
    copies must be equal.

    Args:
        data: the directory.

    Raises:
        UserError: no dictionary, or two that differ.
    """
    if (Path(data) / VOCABULARY).is_file():
        return TokenizerDictionary.load_vocabulary(Path(data) / VOCABULARY)
    files = sorted(Path(data).glob("dict*.txt"))
    if not files:
        raise UserError(f"{data}: no dict*.txt; make this directory with fairseq-preprocess --srcdict dict.txt")
    first = files[0].read_bytes()
    for file in files[1:]:
        if file.read_bytes() != first:
            raise UserError(f"{file}: differs from {files[0].name}; preprocess every language with one dictionary")
    return load_dictionary(files[0])


class FlatTokens(MappedValues):
    """Sentences stored back to back.

    Args:
        values: (total tokens,) integer array; each sentence ends with `</s>`, as `fairseq-preprocess` writes it.
        sizes: (sentences,) tokens per sentence, `</s>` included.
        dictionary: gives the ids of `<s>`, `<pad>` and `</s>`.
        max_tokens: sentences are cut to this many tokens, `<s>` and `</s>` included.
    """

    def __init__(
        self,
        values: npt.NDArray[np.integer],
        sizes: npt.NDArray[np.integer],
        dictionary: Dictionary,
        max_tokens: int | None = None,
    ) -> None:
        self.values = values
        self.lengths = np.asarray(sizes, dtype=np.int64) - 1
        self.offsets = np.concatenate([[0], np.cumsum(self.lengths + 1)])[:-1]
        self.bos, self.pad, self.eos = dictionary.bos(), dictionary.pad(), dictionary.eos()
        self.truncated = 0
        if max_tokens is not None:
            self.truncated = int((self.lengths > max_tokens - 2).sum())
            self.lengths = np.minimum(self.lengths, max_tokens - 2)

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def empty(self) -> npt.NDArray[np.int64]:
        """Numbers of the sentences without a token."""
        return np.flatnonzero(self.lengths == 0)

    @property
    def sizes(self) -> npt.NDArray[np.int64]:
        """(sentences,) tokens per sentence as the encoder sees it, `<s>` and `</s>` included."""
        return self.lengths + 2

    @classmethod
    def from_prefix(cls, prefix: str | Path, dictionary: Dictionary, max_tokens: int | None = None) -> "FlatTokens":
        """Read `PREFIX.bin` and `PREFIX.idx`, memory-mapped where fairseq's format allows.

        Args:
            prefix: path without the suffix.
            dictionary: the text encoder's dictionary.
            max_tokens: see the class.

        Raises:
            UserError: the files are missing or damaged, or hold ids that the dictionary does not have.
        """
        values, sizes = read_indexed(prefix)
        if len(values):
            least, most = int(values.min()), int(values.max())
            if not 0 <= least <= most < len(dictionary):
                raise UserError(
                    f"{prefix}.bin: holds id {most if least >= 0 else least} but the dictionary has {len(dictionary)} "
                    "entries; preprocess with the text encoder's dict.txt"
                )
            unended = np.flatnonzero(values[np.cumsum(sizes, dtype=np.int64) - 1] != dictionary.eos())
            if len(unended):
                raise UserError(
                    f"{prefix}.bin: sentence {unended[0] + 1} does not end with </s>; make it again with "
                    "fairseq-preprocess"
                )
        return cls(values, sizes, dictionary, max_tokens)

    @classmethod
    def from_sentences(
        cls, sentences: Sequence[Tensor], dictionary: Dictionary, max_tokens: int | None = None
    ) -> "FlatTokens":
        """Hold sentences given as 1-d id tensors that end with `</s>`."""
        values = torch.cat(list(sentences)).numpy() if sentences else np.zeros(0, np.int64)
        return cls(values, np.array([len(s) for s in sentences], dtype=np.int64), dictionary, max_tokens)

    def select(self, rows: npt.NDArray[np.integer]) -> "FlatTokens":
        """Some of the sentences, over the same array."""
        selected = object.__new__(FlatTokens)
        selected.__dict__.update(self.__dict__)
        selected.lengths, selected.offsets = self.lengths[rows], self.offsets[rows]
        return selected

    def batch(self, rows: npt.NDArray[np.integer], bos: bool = True) -> Tensor:
        """Right-padded ids of some sentences.

        Args:
            rows: (batch,) sentence numbers.
            bos: start each with `<s>`, as XLM-R was trained.

        Returns:
            (batch, longest) int64.
        """
        lengths = self.lengths[rows][:, None]
        start = int(bos)
        # Column 0 is the sentence's first token; -1 is <s>, if asked for, and `lengths` is </s>.
        column = np.arange(int(lengths.max(initial=0)) + 1 + start)[None, :] - start
        inside = (column >= 0) & (column < lengths)
        # Outside positions read the sentence's first token and are overwritten below.
        ids = self.values[self.offsets[rows][:, None] + np.where(inside, column, 0)].astype(np.int64)
        ids = np.where(inside, ids, self.pad)
        ids[column.repeat(len(rows), 0) == lengths] = self.eos
        if bos:
            ids[:, 0] = self.bos
        return torch.from_numpy(ids)
