"""Matching scores of many pairs: both sides are encoded once, and what looks at both runs in batches of pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

# Of one batch of states while both sides are encoded.
STATE_BATCH = 64


class Matcher(Protocol):
    """What re-ranking needs of a model, such as `MultilingualCLIP`."""

    @property
    def can_match(self) -> bool:
        """Whether it can look at a text and an image together."""

    def text_states(self, texts: Sequence[str] | Tensor) -> tuple[Tensor, Tensor]:
        """(n, length, dim) states of texts and (n, length) bool, True at pads, on its device."""

    def image_states(self, images: Sequence[Any] | Tensor) -> Tensor:
        """(n, tokens, dim) states of images, on its device."""

    def match_states(self, text: Tensor, padding: Tensor, image: Tensor) -> Tensor:
        """(n,) matching logits."""


def encode_image_states(model: Matcher, images: Sequence[Any]) -> Tensor:
    """(I, tokens, dim) float16 states of images on the CPU.

    Args:
        model: with `can_match`.
        images: (I,) files, PIL images or arrays.
    """
    starts = range(0, len(images), STATE_BATCH)
    parts = [model.image_states(images[start : start + STATE_BATCH]).half().cpu() for start in starts]
    return torch.cat(parts) if parts else torch.zeros(0)


class PairScorer:
    """Matching scores of pairs out of T texts and I images.

    States wait on the CPU in half precision: 80 MB for 1,000 texts of 40 tokens in 1,024 dimensions, 100 MB for 1,000
    images of 50 tokens. The scores are computed in the model's own type.

    Args:
        model: with `can_match`.
        texts: (T,) of them.
        image_states: (I, tokens, dim) of `encode_image_states`.
        batch_size: pairs at once.
    """

    def __init__(self, model: Matcher, texts: Sequence[str], image_states: Tensor, batch_size: int = 64) -> None:
        self.model = model
        self.batch_size = batch_size
        self.text: list[Tensor] = []
        for start in range(0, len(texts), STATE_BATCH):
            states, padding = model.text_states(texts[start : start + STATE_BATCH])
            # Each text keeps its own length, so that one long text costs nothing to the others.
            rows = zip(states.half().cpu(), padding.cpu(), strict=True)
            self.text += [row[~pads].clone() for row, pads in rows]
        self.image = image_states

    def __call__(self, texts: Tensor, images: Tensor) -> Tensor:
        """Scores of pairs.

        Args:
            texts: (n,) int64 rows of the texts.
            images: (n,) int64 rows of the images.

        Returns:
            (n,) float32 on the CPU, larger is better.
        """
        scores = []
        for text_rows, image_rows in zip(texts.split(self.batch_size), images.split(self.batch_size), strict=True):
            states = [self.text[row] for row in text_rows.tolist()]
            text = torch.nn.utils.rnn.pad_sequence(states, batch_first=True)
            lengths = torch.tensor([len(state) for state in states])
            padding = torch.arange(text.shape[1])[None] >= lengths[:, None]
            scores.append(self.model.match_states(text, padding, self.image[image_rows.cpu()]).float().cpu())
        return torch.cat(scores) if scores else torch.zeros(0)
