"""Translation pairs of one direction."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mclip_fairseq.data.tokens import FlatTokens


class ParallelDataset:
    """Aligned sentences of one direction.

    Args:
        source: source sentences.
        target: their translations, or None at inference.
        source_lang: language id of the source (0 is unknown).
        target_lang: language id of the target; the encoder's language projection is chosen by it.

    Raises:
        ValueError: the two sides differ in length.
    """

    def __init__(self, source: FlatTokens, target: FlatTokens | None, source_lang: int, target_lang: int) -> None:
        if target is not None and len(source) != len(target):
            raise ValueError(
                f"{len(source)} source and {len(target)} target sentences; parallel files must have equally many lines"
            )
        self.source = source
        self.target = target
        self.source_lang = source_lang
        self.target_lang = target_lang

    def __len__(self) -> int:
        return len(self.source)

    @property
    def sizes(self) -> npt.NDArray[np.int64]:
        """(pairs, 2) source and target lengths."""
        target = self.source if self.target is None else self.target
        return np.stack([self.source.sizes, target.sizes], axis=1)

    def rows(self, rows: npt.NDArray[np.int64]) -> dict[str, Any]:
        """A translation batch, right-padded, sources and targets as `<s> ... </s>` and `... </s>`.

        Returns:
            fairseq's usual keys; `net_input` also carries `src_lang_id` and `tgt_lang_id`, (batch,) int64.
        """
        source = self.source.batch(rows)
        batch: dict[str, Any] = {
            "id": torch.from_numpy(rows),
            "nsentences": len(rows),
            "ntokens": int(self.source.sizes[rows].sum()),
            "net_input": {
                "src_tokens": source,
                "src_lengths": torch.from_numpy(self.source.sizes[rows]),
                "src_lang_id": torch.full((len(rows),), self.source_lang),
                "tgt_lang_id": torch.full((len(rows),), self.target_lang),
            },
            "target": None,
        }
        if self.target is not None:
            target = self.target.batch(rows, bos=False)
            previous = torch.full_like(target, self.target.pad)
            previous[:, 0] = self.target.eos
            shifted = target[:, :-1]
            previous[:, 1:] = torch.where(shifted == self.target.eos, self.target.pad, shifted)
            batch["target"] = target
            batch["ntokens"] = int((self.target.lengths[rows] + 1).sum())
            batch["net_input"]["prev_output_tokens"] = previous
        return batch
