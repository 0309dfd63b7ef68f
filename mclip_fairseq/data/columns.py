"""What a batch of captions holds besides the captions: one column each.

| column | batch entry | shape | option that gives it |
|---|---|---|---|
| `TokenColumn` | `text_tokens` | (batch, length) int64 | the data directory |
| `TranslationColumn` | `translation_tokens` | (batch, length) int64 | `--pair-language` |
| `LanguageColumn` | `language` | str | `--langs`, for models with a text path per language |
| `StateColumn` | `text_states`, `text_padding` | (tokens, dim) as stored, (batch, length) bool | `--text-state-cache` |
| | | (tokens,) int64 places instead of the states | `--keep-text-states` |
| `FeatureColumn` | `image_features` | (batch, teacher dim) float32 | `--image-features` |
| `FeatureColumn` | `teacher_text` | (batch, teacher dim) float32 | `--text-features` |
| `PixelColumn` | `pixel_values` | (readable, channels, height, width) float32 | `--image-root` |
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mclip_fairseq.data.states import TokenStates
from mclip_fairseq.data.tokens import FlatTokens
from mclip_fairseq.storage.features import FeatureStore

BLOCK = 4096  # rows that are read at once
Rows = npt.NDArray[np.int64]
# Image ids -> the positions of those that could be read, and their (readable, channels, height, width) pixels.
Pixels = Callable[[Sequence[str]], tuple[list[int], Tensor]]


class Column(ABC):
    """Something that every row of a dataset has.

    Attributes:
        names: the entries of `net_input` that it fills.
        options: entry that such a column can fill -> the option that gives it, for messages.
    """

    names: tuple[str, ...]
    options: ClassVar[Mapping[str, str]] = {}

    @abstractmethod
    def batch(self, rows: Rows) -> Mapping[str, Tensor | str]:
        """The entries of these rows, built without a loop over them."""

    def set_epoch(self, epoch: int) -> None:  # noqa: B027 (most columns are the same in every epoch)
        """Change with the epoch, where anything is drawn."""


class TokenColumn(Column):
    """Token ids of the captions."""

    names = ("text_tokens",)

    def __init__(self, tokens: FlatTokens) -> None:
        self.tokens = tokens

    def batch(self, rows: Rows) -> dict[str, Tensor]:
        """`text_tokens`, right-padded."""
        return {"text_tokens": self.tokens.batch(rows)}


class TranslationColumn(Column):
    """Token ids of another language's caption with the same teacher text.

    Args:
        tokens: captions of that language.
        numbers: (captions,) for each caption, the number of its translation.
    """

    names = ("translation_tokens",)
    options: ClassVar = {"translation_tokens": "--pair-language"}

    def __init__(self, tokens: FlatTokens, numbers: Rows) -> None:
        self.tokens = tokens
        self.numbers = numbers

    def batch(self, rows: Rows) -> dict[str, Tensor]:
        """`translation_tokens`, right-padded."""
        return {"translation_tokens": self.tokens.batch(self.numbers[rows])}


class LanguageColumn(Column):
    """The language of all captions of a dataset, by which a model chooses its text path."""

    names = ("language",)

    def __init__(self, language: str) -> None:
        self.language = language

    def batch(self, rows: Rows) -> dict[str, str]:
        """`language`, one for the batch."""
        return {"language": self.language}


class StateColumn(Column):
    """Cached token states of the frozen text encoder, instead of token ids."""

    names = ("text_states", "text_padding")
    options: ClassVar = dict.fromkeys(names, "--text-state-cache")

    def __init__(self, states: TokenStates) -> None:
        self.states = states

    def batch(self, rows: Rows) -> dict[str, Tensor]:
        """`text_states`, back to back without pads, or their places, and `text_padding`, True at pads."""
        states, padding = self.states.batch(rows)
        return {"text_states": states, "text_padding": padding}


class FeatureColumn(Column):
    """Rows of a feature directory.

    Args:
        name: of the entry: `image_features` or `teacher_text`.
        store: the feature directories.
        ids: id of each caption's row.

    Raises:
        UserError: an id that the features do not have.
    """

    options: ClassVar = {"image_features": "--image-features", "teacher_text": "--text-features"}

    def __init__(self, name: str, store: FeatureStore, ids: Sequence[str]) -> None:
        self.names = (name,)
        self.store = store
        self.store_rows = store.rows(ids)

    def batch(self, rows: Rows) -> dict[str, Tensor]:
        """The features as float32."""
        features = self.store.take(self.store_rows[rows])
        return {self.names[0]: torch.from_numpy(np.asarray(features, dtype=np.float32))}

    def content(self) -> Iterator[bytes]:
        """All its features, each once, in the order of the table."""
        rows = np.unique(self.store_rows)
        for start in range(0, len(rows), BLOCK):
            yield self.store.take(rows[start : start + BLOCK]).tobytes()


class PixelColumn:
    """Images that are decoded for each batch; some of them may turn out to be unreadable.

    Args:
        ids: image id of each caption.
        pixels: decodes and prepares images by their ids; where it can read none, it gives one blank image.
    """

    names = ("pixel_values",)
    options: ClassVar = {"pixel_values": "--image-root"}

    def __init__(self, ids: Sequence[str], pixels: Pixels) -> None:
        self.ids = np.asarray(ids)
        self.pixels = pixels

    def read(self, rows: Rows) -> tuple[list[int], Tensor]:
        """Positions in `rows` whose image could be read, and their pixels; see `Pixels`."""
        return self.pixels(self.ids[rows].tolist())

    def set_epoch(self, epoch: int) -> None:
        """Images look the same in every epoch, unless a subclass augments them."""


def option_of(name: str) -> str:
    """The option that gives a batch entry, for messages; every column names its own."""
    options: dict[str, str] = dict(PixelColumn.options)
    for kind in Column.__subclasses__():
        options |= kind.options
    return options.get(name, f"data with {name}")
