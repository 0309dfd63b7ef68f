"""Captions with some of their words hidden, as BERT and XLM-R were trained (Devlin et al., NAACL 2019)."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from mclip_fairseq.data.columns import Column, Rows
from mclip_fairseq.data.masking import HIDDEN, NO_LABEL, REPLACED
from mclip_fairseq.data.tokens import FlatTokens


class HiddenWordColumn(Column):
    """Copies of the captions in which each word is chosen with one probability; `<s>` and `</s>` never are.

    Of the chosen words, 80 percent become `<mask>`, 10 percent any word of the dictionary, and 10 percent stay. A
    caption's words depend on the seed, the epoch and its number alone.

    Args:
        tokens: the captions.
        share: probability of a word.
        mask: id of `<mask>`, the last of the dictionary.
        specials: ids below this are not words.
        seed: of the draws.
        fixed: hide the same words in every epoch, for validation.
    """

    names = ("masked_tokens", "masked_labels")
    options: ClassVar = dict.fromkeys(names, "--hide-words")

    def __init__(
        self, tokens: FlatTokens, share: float, mask: int, specials: int, seed: int, fixed: bool = False
    ) -> None:
        self.tokens = tokens
        self.share = share
        self.mask = mask
        self.specials = specials
        self.seed = seed
        self.fixed = fixed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Hide other words from now on."""
        self.epoch = 0 if self.fixed else epoch

    def batch(self, rows: Rows) -> dict[str, Tensor]:
        """`masked_tokens` and `masked_labels`, (batch, length) int64; labels are -100 where no word is chosen."""
        ids = self.tokens.batch(rows).numpy()
        masked, labels = ids.copy(), np.full_like(ids, NO_LABEL)
        # As many draws as the caption has tokens, not as many as the batch has columns.
        for number, (row, length) in enumerate(zip(rows.tolist(), self.tokens.sizes[rows].tolist(), strict=True)):
            words, rng = ids[number, :length], np.random.default_rng([self.seed, self.epoch, row])
            chosen = (rng.random(length) < self.share) & (words >= self.specials)
            labels[number, :length][chosen] = words[chosen]
            hidden = chosen & (rng.random(length) < HIDDEN)
            replaced = chosen & ~hidden & (rng.random(length) < REPLACED)
            masked[number, :length][hidden] = self.mask
            masked[number, :length][replaced] = rng.integers(self.specials, self.mask, int(replaced.sum()))
        return {"masked_tokens": torch.from_numpy(masked), "masked_labels": torch.from_numpy(labels)}
