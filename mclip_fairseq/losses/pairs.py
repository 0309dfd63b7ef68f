"""Encoded images and captions of one rank or of all ranks, and the states of the pairs among them to match (CCRK)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mclip_fairseq.losses.gather import gather_rows, gather_sizes
from mclip_fairseq.losses.matching import MatchingPairs


class Encoded(NamedTuple):
    """Images with K captions each, before anything looks at both.

    Attributes:
        image: (B, dim) features, L2-normalised.
        text: (B K, dim) likewise, image by image.
        scale: 0-d, factor of the cosine.
        image_states: (B, 1 + tokens, image dim).
        text_states: (B K, length, text dim).
        padding: (B K, length) bool, True at pads.
    """

    image: Tensor
    text: Tensor
    scale: Tensor
    image_states: Tensor
    text_states: Tensor
    padding: Tensor

    def of_all_ranks(self, rows: int) -> tuple[Encoded, int]:
        """The first rows of every rank in rank order; every rank must call it and run backward through it.

        Features carry no gradient, states do: what one rank's pairs say about another rank's states reaches them.

        Args:
            rows: images of this rank that count; 0 in a dummy batch. K is the same on all ranks.

        Returns:
            images and captions of all ranks, captions padded to the longest, and the number of the first own image.
        """
        captions = len(self.text) // len(self.image)
        sizes = gather_sizes(self.image[:rows])
        texts = [size * captions for size in sizes]
        longest = max(gather_sizes(self.padding.T))
        missing = longest - self.padding.shape[1]
        own = slice(rows * captions)
        padding = F.pad(self.padding[own], (0, missing), value=True).to(torch.uint8)  # not every backend sends bool
        image, offset = gather_rows(self.image[:rows].detach(), sizes=sizes)
        union = Encoded(
            image=image,
            text=gather_rows(self.text[own].detach(), sizes=texts)[0],
            scale=self.scale,
            image_states=gather_rows(self.image_states[:rows], sizes=sizes)[0],
            text_states=gather_rows(F.pad(self.text_states[own], (0, 0, 0, missing)), sizes=texts)[0],
            padding=gather_rows(padding, sizes=texts)[0].bool(),
        )
        return union, offset


class ChosenPairs(NamedTuple):
    """The states of pairs that are to be matched.

    Attributes:
        image_states: (pairs, 1 + tokens, image dim).
        text_states: (pairs, length, text dim).
        padding: (pairs, length) bool.
        labels: (pairs,) int64, 1 where both belong together.
        own: (B,) int64, the row of an own caption of each image among those of this rank.
    """

    image_states: Tensor
    text_states: Tensor
    padding: Tensor
    labels: Tensor
    own: Tensor

    @classmethod
    def of(cls, encoded: Encoded, pairs: MatchingPairs, own: Tensor) -> ChosenPairs:
        """The states of some pairs of rows."""
        return cls(
            encoded.image_states[pairs.image],
            encoded.text_states[pairs.text],
            encoded.padding[pairs.text],
            pairs.labels,
            own,
        )


ChoosePairs = Callable[[Encoded], ChosenPairs]
