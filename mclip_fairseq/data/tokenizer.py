"""XLM-R's tokenizer as fairseq ships it: a SentencePiece model and a dictionary."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from fairseq.data import Dictionary
from torch import Tensor

from mclip_fairseq.data.tokens import FlatTokens, load_dictionary
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.pieces import SENTENCEPIECE, load_sentencepiece, piece_list
from mclip_fairseq.storage.texts import without_splitters

# A dictionary counted from a corpus also has characters that are not pieces of the model. The dictionary of another
# text encoder shares far fewer entries.
SHARED_ENTRIES = 0.8


class XLMRTokenizer:
    """Text to ids, as in the training data (`preprocess/encode.py`, then `fairseq-preprocess`).

    Args:
        directory: holds `sentencepiece.bpe.model` and `dict.txt`.
        max_tokens: texts are cut to this many tokens, `<s>` and `</s>` included.

    Raises:
        UserError: a file is missing, or the two do not belong together.
    """

    def __init__(self, directory: str | Path, max_tokens: int = 512) -> None:
        model = Path(directory) / SENTENCEPIECE
        if not model.is_file():
            raise UserError(f"{model}: not found; copy the text encoder's SentencePiece model to this path")
        self.directory = Path(directory)
        self.processor = load_sentencepiece(model)
        self.dictionary: Dictionary = load_dictionary(directory)
        self._check_dictionary()
        self.max_tokens = max_tokens

    def write(self, output: Path) -> list[str]:
        """Copy its files into a directory; returns their names."""
        names = [SENTENCEPIECE, "dict.txt"]
        for name in names:
            shutil.copyfile(self.directory / name, output / name)
        return names

    def _check_dictionary(self) -> None:
        entries = self.dictionary.symbols[self.dictionary.nspecial :]
        shared = len(set(entries).intersection(piece_list(self.processor)))
        if shared < SHARED_ENTRIES * len(entries):
            raise UserError(
                f"{self.directory}: only {shared} of the {len(entries)} entries of dict.txt are pieces of "
                f"{SENTENCEPIECE}; one of the two belongs to another text encoder"
            )

    def flat(self, texts: Sequence[str]) -> FlatTokens:
        """Tokenise without padding.

        Args:
            texts: any number of texts, which may be empty; line breaks count as spaces.
        """
        pieces = self.processor.encode([" ".join(without_splitters(text).split()) for text in texts], out_type=str)
        eos, index = self.dictionary.eos(), self.dictionary.index
        ids = [[*(index(piece) for piece in sentence), eos] for sentence in pieces]
        values = np.fromiter((i for sentence in ids for i in sentence), dtype=np.int64)
        sizes = np.array([len(sentence) for sentence in ids], dtype=np.int64)
        return FlatTokens(values, sizes, self.dictionary, self.max_tokens)

    def __call__(self, texts: str | Sequence[str]) -> Tensor:
        """Ids `<s> ... </s>`, right-padded; texts longer than `max_tokens` are cut.

        Args:
            texts: one text or several.

        Returns:
            (texts, longest) int64.
        """
        flat = self.flat([texts] if isinstance(texts, str) else texts)
        return flat.batch(np.arange(len(flat))) if len(flat) else torch.zeros(0, 2, dtype=torch.int64)
