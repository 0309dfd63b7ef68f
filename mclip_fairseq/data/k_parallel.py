"""Images with the same caption in several languages, of which every epoch draws some (CCRK)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mclip_fairseq.data.columns import PixelColumn, Rows
from mclip_fairseq.data.masking import Ids, WordMasking, mask_batch
from mclip_fairseq.data.tokens import FlatTokens


class ParallelCaptions:
    """Rows of one image and K captions of it.

    Args:
        captions: language -> captions; row n of every language describes image n.
        pixels: the images.
        groups: (images,) int64, equal for rows of one image.
        count: K, how many languages are drawn for each image and epoch; they keep the order of `captions`.
        seed: of the draws.
        masking: what is masked; None masks nothing.
    """

    def __init__(
        self,
        captions: Mapping[str, FlatTokens],
        pixels: PixelColumn,
        groups: npt.NDArray[np.int64],
        count: int,
        seed: int,
        masking: WordMasking | None,
    ) -> None:
        self.languages = list(captions)
        self.captions = list(captions.values())
        self.pixels = pixels
        self.groups = groups
        self.count = count
        self.seed = seed
        self.masking = masking
        self.epoch = 1
        # The longest, whichever is drawn: then a batch keeps to --max-tokens in every epoch.
        self.sizes = np.stack([tokens.sizes for tokens in self.captions]).max(axis=0)

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def names(self) -> set[str]:
        """The entries of `net_input` that a batch has."""
        masked = set() if self.masking is None else {"masked_tokens", "masked_positions", "masked_labels"}
        return {"text_tokens", *self.pixels.names, *masked}

    def set_epoch(self, epoch: int) -> None:
        """Change the draws."""
        self.epoch = epoch
        self.pixels.set_epoch(epoch)

    def draw(self, row: int) -> tuple[Ids, np.random.Generator]:
        """The languages of a row in this epoch, and the generator of what else is drawn for it."""
        # The third number keeps these draws apart from those of the row's augmentation.
        rng = np.random.default_rng([self.seed, self.epoch, row, 1])
        return np.sort(rng.permutation(len(self.languages))[: self.count]), rng

    def rows(self, rows: Rows) -> dict[str, Any]:
        """A batch, without the images that cannot be read.

        Returns:
            `net_input` with `pixel_values` (B, ...), `text_tokens` (B K, length), image by image, and the entries of
            `mask_batch`; `captions`, K; `languages` (B, K) int64, numbers of the drawn languages; `group` (B,); `id`,
            `nsentences` (images), `ntokens` (of all captions). Where no image can be read, one row with a blank image,
            marked `is_dummy`.
        """
        readable, pixels = self.pixels.read(rows)
        dummy = not readable
        rows = rows[readable or [0]]
        drawn = [self.draw(row) for row in rows.tolist()]
        languages = np.stack([language for language, _ in drawn])
        tokens, lengths = self.text(rows.repeat(self.count), languages.ravel())
        net_input = {"text_tokens": tokens, "pixel_values": pixels}
        if self.masking is not None:
            generators = [rng for _, rng in drawn for _ in range(self.count)]
            net_input |= mask_batch(tokens, lengths, self.masking, generators)
        return {
            "id": torch.from_numpy(rows),
            "nsentences": len(rows),
            "ntokens": int(lengths.sum()),
            "net_input": net_input,
            "group": torch.from_numpy(self.groups[rows]),
            "captions": self.count,
            "languages": torch.from_numpy(languages),
            **({"is_dummy": True} if dummy else {}),
        }

    def text(self, rows: Rows, languages: Ids) -> tuple[Tensor, Ids]:
        """Captions of several languages in one matrix.

        Args:
            rows: (n,) their rows.
            languages: (n,) numbers of their languages.

        Returns:
            (n, longest) right-padded ids, and (n,) lengths.
        """
        lengths = np.zeros(len(rows), dtype=np.int64)
        parts = {}
        for language in np.unique(languages).tolist():
            at = np.flatnonzero(languages == language)
            lengths[at] = self.captions[language].sizes[rows[at]]
            parts[language] = (at, self.captions[language].batch(rows[at]))
        ids = torch.full((len(rows), int(lengths.max())), self.captions[0].pad)
        for at, part in parts.values():
            ids[torch.from_numpy(at), : part.shape[1]] = part
        return ids, lengths
