"""Masked words: which tokens of a caption are hidden, and behind what (CCRK)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from fairseq.data import Dictionary
from torch import Tensor

from mclip_fairseq.data.columns import Column, Rows
from mclip_fairseq.data.tokens import MASK, FlatTokens

NO_LABEL = -100
# Of the chosen tokens, the share behind <mask>, and of the others the share behind any token; the rest stays visible.
HIDDEN, REPLACED = 0.8, 0.5
Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class WordMasking:
    """How much is masked.

    Attributes:
        mask: id of `<mask>`.
        words: entries of the dictionary; a token may be replaced by any of them.
        share: of a caption's tokens, `<s>` and `</s>` counted.
        most: tokens of one caption.
        span_share: how often two or more neighbours are masked together.
        longest_span: tokens of such a span at most.
        keep_end: never mask `</s>`. The released code masks it like a word.
    """

    mask: int
    words: int
    share: float = 0.4
    most: int = 12
    span_share: float = 0.2
    longest_span: int = 3
    keep_end: bool = False

    @classmethod
    def of(cls, dictionary: Dictionary, **options: float | bool) -> WordMasking:
        """Settings for the tokens of a dictionary."""
        return cls(mask=dictionary.index(MASK), words=len(dictionary), **options)  # type: ignore[arg-type]

    def count(self, length: int) -> int:
        """How many tokens of a caption are masked.

        Args:
            length: tokens, `<s>` and `</s>` counted.
        """
        last = length - 2 if self.keep_end else length - 1
        return min(self.most, max(1, round(self.share * length)), last)

    def positions(self, length: int, rng: np.random.Generator) -> list[int]:
        """Which tokens of a caption are masked, in ascending order; never the first.

        Args:
            length: tokens, `<s>` and `</s>` counted; at least 2.
            rng: draws.
        """
        last = length - 2 if self.keep_end else length - 1
        wanted = self.count(length)
        chosen: set[int] = set()
        for start in rng.permutation(np.arange(1, last + 1)).tolist():
            if len(chosen) >= wanted:
                break
            if start in chosen:
                continue
            span = int(rng.integers(2, self.longest_span + 1)) if rng.random() < self.span_share else 1
            chosen.update(range(start, min(start + span, last + 1)))
        kept = list(chosen)
        if len(kept) > wanted:  # the last span went beyond what was wanted
            kept = rng.permutation(kept).tolist()[:wanted]
        return sorted(kept)

    def hide(self, ids: Ids, positions: list[int], rng: np.random.Generator) -> Ids:
        """Token ids with some of them hidden.

        Args:
            ids: (length,) of one caption.
            positions: of the chosen tokens.
            rng: draws.
        """
        hidden = ids.copy()
        for position in positions:
            if rng.random() < HIDDEN:
                hidden[position] = self.mask
            elif rng.random() < REPLACED:
                hidden[position] = rng.integers(0, self.words)
        return hidden


def mask_batch(
    tokens: Tensor, lengths: Ids, masking: WordMasking, generators: list[np.random.Generator]
) -> dict[str, Tensor]:
    """Masked copies of a batch of captions.

    Args:
        tokens: (batch, length) right-padded ids.
        lengths: (batch,) tokens of each caption.
        masking: settings.
        generators: one for each caption, so that a caption's masks do not depend on its batch.

    Returns:
        `masked_tokens` (batch, length), `masked_positions` (batch, slots), 0 where unused, and `masked_labels` (batch,
        slots), -100 there.
    """
    ids = tokens.numpy()
    masked = ids.copy()
    positions = np.zeros((len(ids), masking.most), dtype=np.int64)
    labels = np.full((len(ids), masking.most), NO_LABEL, dtype=np.int64)
    for row, (length, rng) in enumerate(zip(lengths.tolist(), generators, strict=True)):
        if length < 2 or (masking.keep_end and length < 3):
            continue
        chosen = masking.positions(length, rng)
        masked[row, :length] = masking.hide(ids[row, :length], chosen, rng)
        positions[row, : len(chosen)] = chosen
        labels[row, : len(chosen)] = ids[row, chosen]
    arrays = {"masked_tokens": masked, "masked_positions": positions, "masked_labels": labels}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


class MaskedColumn(Column):
    """Masked copies of captions for validation: the same ones every time.

    Args:
        tokens: the captions.
        masking: settings.
        seed: of the draws.
    """

    names = ("masked_tokens", "masked_positions", "masked_labels")

    def __init__(self, tokens: FlatTokens, masking: WordMasking, seed: int) -> None:
        self.tokens = tokens
        self.masking = masking
        self.seed = seed

    def batch(self, rows: Rows) -> dict[str, Tensor]:
        """See `mask_batch`."""
        generators = [np.random.default_rng([self.seed, row]) for row in rows.tolist()]
        return mask_batch(self.tokens.batch(rows), self.tokens.sizes[rows], self.masking, generators)
