"""A Hugging Face tokenizer whose special tokens only we write: CLIP's for English, mBERT's for other languages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mclip_fairseq.compat import shield_torchaudio
from mclip_fairseq.data.tokens import FlatTokens
from mclip_fairseq.data.vocabulary import TokenizerDictionary
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import first_line
from mclip_fairseq.storage.self_contained import check_self_contained

# Folder of such a tokenizer in a directory that also holds a model or data.
PIECES = "tokenizer"


class PieceTokenizer:
    """Text to ids, in the data directories and at inference alike.

    Args:
        tokenizer: of `transformers`, with a token that starts and one that ends a text.
        name: for messages.
        max_tokens: texts are cut to this many tokens, both of these included.

    Raises:
        UserError: the tokenizer has no such tokens.
    """

    def __init__(self, tokenizer: Any, name: str, max_tokens: int = 77) -> None:
        self.tokenizer = tokenizer
        self.name = name
        self.max_tokens = max_tokens
        self.dictionary = dictionary_of(tokenizer, name)

    @classmethod
    def from_pretrained(cls, source: str | Path, max_tokens: int = 77) -> PieceTokenizer:
        """Load the tokenizer of a Hub name, of a directory, or a WordPiece `vocab.txt` in mBERT's way (cased).

        Raises:
            UserError: it cannot be loaded, or its source names something outside it.
        """
        shield_torchaudio()
        from transformers import AutoTokenizer, BertTokenizer

        check_self_contained(source)
        try:
            if Path(source).is_file():
                tokenizer: Any = BertTokenizer(vocab=str(source), do_lower_case=False)
            else:
                tokenizer = AutoTokenizer.from_pretrained(str(source), trust_remote_code=False)
        except Exception as error:  # its loaders raise whatever broken files lead them to
            raise UserError(f"{source}: cannot be loaded as a tokenizer: {first_line(error)}") from error
        return cls(tokenizer, str(source), max_tokens)

    def flat(self, texts: Sequence[str]) -> FlatTokens:
        """Tokenise without padding.

        Args:
            texts: any number of texts, empty ones included; line breaks count as spaces.
        """
        ids = self.pieces(texts)
        values = np.fromiter((i for sentence in ids for i in sentence), dtype=np.int64)
        sizes = np.array([len(sentence) for sentence in ids], dtype=np.int64)
        return FlatTokens(values, sizes, self.dictionary, self.max_tokens)

    def pieces(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of texts, each ended by the end token.

        What looks like a special token in a caption is split like any other text: `[SEP]` would otherwise become the
        id at which texts end, and be pooled there.
        """
        lines = [" ".join(text.split()) for text in texts]
        encoded = self.tokenizer(lines, add_special_tokens=False, split_special_tokens=True) if lines else {}
        eos = self.dictionary.eos()
        return [[*sentence, eos] for sentence in encoded.get("input_ids", [])]

    def __call__(self, texts: str | Sequence[str]) -> Tensor:
        """Right-padded ids from the start to the end token, over-long texts cut.

        Args:
            texts: one text or several.

        Returns:
            (texts, longest) int64.
        """
        flat = self.flat([texts] if isinstance(texts, str) else texts)
        return flat.batch(np.arange(len(flat))) if len(flat) else torch.zeros(0, 2, dtype=torch.int64)

    def write(self, output: Path) -> list[str]:
        """Write its files into a folder of a directory; returns their names, from the directory."""
        self.save(output / PIECES)
        return sorted(str(file.relative_to(output)) for file in (output / PIECES).iterdir())

    def save(self, path: Path) -> None:
        """Write the tokenizer as `transformers` does."""
        self.tokenizer.save_pretrained(path)


def dictionary_of(tokenizer: Any, name: str) -> TokenizerDictionary:
    """The vocabulary of a `transformers` tokenizer, with the ids of its special tokens.

    Raises:
        UserError: no token starts or ends a text.
    """
    start = tokenizer.cls_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    end = tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id
    if start is None or end is None:
        raise UserError(f"{name}: its tokenizer has no token that starts, or none that ends a text; give another one")
    by_id = {number: symbol for symbol, number in tokenizer.get_vocab().items()}
    symbols = [by_id.get(number, f"<id {number}>") for number in range(max(by_id) + 1)]
    pad = end if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    unknown = end if tokenizer.unk_token_id is None else tokenizer.unk_token_id
    return TokenizerDictionary(symbols, start, pad, end, unknown)
