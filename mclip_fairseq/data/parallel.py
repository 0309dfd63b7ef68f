"""Translation pairs of one direction."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mclip_fairseq.data.tokens import FlatTokens
from mclip_fairseq.storage.errors import UserError

# Enough lines for a stable mean, few enough that checking a corpus takes milliseconds.
BLOCK_LINES, BLOCKS = 200, 20
SHIFTS = (-3, -2, -1, 1, 2, 3)
# Aligned blocks are far from this threshold: the lengths of their neighbours fit about twice as badly.
BETTER_FIT = 0.8


class ParallelDataset:
    """Aligned sentences of one direction.

    | batch entry | shape | present |
    |---|---|---|
    | `net_input.src_tokens`, `src_lengths` | (batch, length), (batch,) int64: `<s> ... </s>` | always |
    | `net_input.src_lang_id`, `tgt_lang_id` | (batch,) int64 | always |
    | `net_input.tgt_lang` | int, the same language | always |
    | `net_input.prev_output_tokens` | (batch, length) int64: `</s> ...` | with a target |
    | `target` | (batch, length) int64: `... </s>`; None without a target | always |
    | `id` | (batch,) int64, rows of this dataset | always |
    | `nsentences`, `ntokens` | int; tokens of the target, else of the source | always |

    Args:
        source: source sentences.
        target: their translations, or None at inference.
        source_lang: language id of the source (0 is unknown).
        target_lang: language id of the target; the encoder's language projection is chosen by it.

    Raises:
        UserError: the two sides differ in length.
    """

    def __init__(self, source: FlatTokens, target: FlatTokens | None, source_lang: int, target_lang: int) -> None:
        if target is not None and len(source) != len(target):
            raise UserError(
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
        """A translation batch, right-padded, with the entries of the class's table."""
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
                "tgt_lang": self.target_lang,
            },
            "target": None,
        }
        if self.target is not None:
            target = self.target.batch(rows, bos=False)
            # Teacher forcing as in fairseq: the decoder reads `</s> w1 ... wn` and is to say `w1 ... wn </s>`.
            previous = torch.full_like(target, self.target.pad)
            previous[:, 0] = self.target.eos
            shifted = target[:, :-1]
            previous[:, 1:] = torch.where(shifted == self.target.eos, self.target.pad, shifted)
            batch["target"] = target
            batch["ntokens"] = int((self.target.lengths[rows] + 1).sum())
            batch["net_input"]["prev_output_tokens"] = previous
        return batch


def unusable_pairs(sides: Mapping[str, FlatTokens], limits: Mapping[str, tuple[int, str]]) -> dict[int, str]:
    """Pairs of which a side is empty or too long.

    Args:
        sides: language -> its sentences.
        limits: language -> most tokens, `<s>` and `</s>` included, and what sets this limit.

    Returns:
        row -> what is wrong with it, in order.
    """
    unusable: dict[int, str] = {}
    for lang, tokens in sides.items():
        sizes, (limit, source) = tokens.sizes, limits[lang]
        unusable |= dict.fromkeys(tokens.empty.tolist(), f"{lang} is empty")
        for row in np.flatnonzero(sizes > limit).tolist():
            unusable[row] = f"{lang} has {sizes[row]} tokens, more than the {limit} {source}"
    return dict(sorted(unusable.items()))


def shifted_blocks(
    source_sizes: npt.NDArray[np.integer], target_sizes: npt.NDArray[np.integer]
) -> list[tuple[int, int, int]]:
    """Where parallel text seems to be off by some lines, judged by the lengths of sentences alone.

    Blocks of lines are sampled evenly over the corpus. A sentence and its translation have lengths in a stable ratio;
    in a block that is off, the ratio is stable for another pairing. Blocks with little variety in length say nothing,
    and are skipped.

    Args:
        source_sizes: (pairs,) lengths of the sources.
        target_sizes: (pairs,) lengths of their targets.

    Returns:
        (first line from 0, line behind the last, lines by which the target must be moved) of each such block.
    """
    edge, pairs = max(SHIFTS), len(source_sizes)
    room = pairs - 2 * edge
    if room < BLOCK_LINES // 4:
        return []
    lines = min(BLOCK_LINES, room)
    starts = np.unique(np.linspace(edge, pairs - edge - lines, BLOCKS).astype(np.int64))
    shifted = []
    for start in starts.tolist():
        block = np.log(source_sizes[start : start + lines].astype(np.float64))

        def misfit(shift: int, start: int = start, block: npt.NDArray[np.float64] = block) -> float:
            ratios = block - np.log(target_sizes[start + shift : start + shift + lines].astype(np.float64))
            return float(np.abs(ratios - np.median(ratios)).mean())

        best = min(SHIFTS, key=misfit)
        if misfit(best) < BETTER_FIT * misfit(0):
            shifted.append((start, start + lines, -best))
    return shifted
