"""Groups of sentence pairs for Contrastive Tension: one sentence with itself, and K pairs of different sentences."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mclip_fairseq.data.tokens import FlatTokens

PAIRINGS = ("authors", "consecutive")
Numbers = npt.NDArray[np.int64]


class SentenceGroups:
    """Groups over the sentences of one language, drawn from (seed, epoch) alone.

    - `authors`: group i has sentence i with itself; the K negative pairs are 2 K draws from all sentences, with
      replacement: the first K for the first encoder, the others for the second.
    - `consecutive`: the sentences are shuffled and used up in order, 2 K + 1 in each group: the first with itself,
      then the others in pairs (sentence-transformers). What is left over at the end waits for another epoch.

    Args:
        tokens: the sentences.
        negatives: K; 0 leaves the positives alone, for negatives from within the batch.
        pairing: one of `PAIRINGS`.
        seed: of the draws.
        redraw_equal: draw a negative pair again while it has one sentence twice; the published code keeps it.
        fixed: make the same groups in every epoch, for validation.
    """

    def __init__(
        self,
        tokens: FlatTokens,
        negatives: int,
        pairing: str,
        seed: int = 1,
        redraw_equal: bool = True,
        fixed: bool = False,
    ) -> None:
        self.tokens = tokens
        self.negatives = negatives
        self.pairing = pairing
        self.seed = seed
        self.redraw_equal = redraw_equal
        self.fixed = fixed
        self.groups = len(tokens) if pairing == "authors" else len(tokens) // (2 * negatives + 1)
        # A group's length is that of its positive; pairs are padded with the batch.
        self.sizes = tokens.sizes[: self.groups]
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch of other groups."""
        self.epoch = 0 if self.fixed else epoch
        order = np.arange(len(self.tokens))
        shuffled = self.pairing == "consecutive"
        self.order = np.random.default_rng([self.seed, self.epoch]).permutation(order) if shuffled else order

    def __len__(self) -> int:
        return self.groups

    def pairs(self, group: int) -> tuple[Numbers, Numbers]:
        """Sentence numbers of one group for both encoders, (1 + K,) each; the positive pair comes first."""
        count = self.negatives
        if self.pairing == "consecutive":
            own = self.order[group * (2 * count + 1) : (group + 1) * (2 * count + 1)]
            return np.concatenate([own[:1], own[1::2]]), np.concatenate([own[:1], own[2::2]])
        rng = np.random.default_rng([self.seed, self.epoch, group])
        drawn = rng.integers(0, len(self.tokens), (2, count))
        while self.redraw_equal and len(self.tokens) > 1 and (equal := drawn[0] == drawn[1]).any():
            drawn[:, equal] = rng.integers(0, len(self.tokens), (2, int(equal.sum())))
        return np.append(group, drawn[0]), np.append(group, drawn[1])

    def rows(self, rows: Numbers) -> dict[str, Any]:
        """The batch of some groups.

        Returns:
            `net_input` with `first_tokens` and `second_tokens`, (pairs, length) each; `labels`, (pairs,) float32, 1
            for positives; `id`, (groups,); `nsentences` (pairs) and `ntokens`.
        """
        sides = [np.concatenate(side) for side in zip(*(self.pairs(int(row)) for row in rows), strict=True)]
        first, second = (self.tokens.batch(side) for side in sides)
        labels = np.tile(np.arange(1 + self.negatives) == 0, len(rows))
        return {
            "id": torch.from_numpy(rows),
            "nsentences": len(labels),
            "ntokens": int(sum(self.tokens.sizes[side].sum() for side in sides)),
            "net_input": {"first_tokens": first, "second_tokens": second},
            "labels": torch.from_numpy(labels.astype(np.float32)),
        }
