"""The vocabulary of a Hugging Face tokenizer as a fairseq dictionary, with the tokenizer's own ids."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from fairseq.data import Dictionary

from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.fields import check_fields
from mclip_fairseq.storage.files import read_json, write_bytes

VOCABULARY = "vocabulary.json"
FIELDS = {"symbols": list, "bos": int, "pad": int, "eos": int, "unk": int}
REMEDY = "make the data directory again with preprocess/binarise.py --tokenizer"


class TokenizerDictionary(Dictionary):
    """A fairseq dictionary without fairseq's own four symbols, which would shift every id.

    Args:
        symbols: the pieces, in the order of their ids.
        bos: id that starts a text.
        pad: id that fills up a batch.
        eos: id that ends a text.
        unk: id of a piece that is not in the vocabulary.
    """

    def __init__(self, symbols: Sequence[str], bos: int, pad: int, eos: int, unk: int) -> None:
        super().__init__(
            bos=symbols[bos], pad=symbols[pad], eos=symbols[eos], unk=symbols[unk], add_special_symbols=False
        )
        self.symbols = list(symbols)
        self.count = [1] * len(self.symbols)
        self.indices = {symbol: number for number, symbol in enumerate(self.symbols)}
        self.bos_index, self.pad_index, self.eos_index, self.unk_index = bos, pad, eos, unk
        self.nspecial = 0

    @classmethod
    def load_vocabulary(cls, file: Path) -> TokenizerDictionary:
        """Read what `save_vocabulary` wrote.

        Raises:
            UserError: the file is damaged.
        """
        stored = check_fields(file, read_json(file), FIELDS, REMEDY)
        symbols, ids = stored["symbols"], {name: stored[name] for name in ("bos", "pad", "eos", "unk")}
        if not all(isinstance(symbol, str) for symbol in symbols) or len(set(symbols)) < len(symbols):
            raise UserError(f"{file}: its symbols are not distinct strings; {REMEDY}")
        for name, number in ids.items():
            if not 0 <= number < len(symbols):
                raise UserError(f"{file}: {name} is {number}, but there are {len(symbols)} symbols; {REMEDY}")
        return cls(symbols, **ids)

    def save_vocabulary(self, file: Path) -> None:
        """Write the symbols and the four ids."""
        ids = {"bos": self.bos(), "pad": self.pad(), "eos": self.eos(), "unk": self.unk()}
        write_bytes(file, (json.dumps({**ids, "symbols": self.symbols}, ensure_ascii=False) + "\n").encode())
