"""Temperature sampling over parts (languages, directions) with batches that never mix two of them."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from fairseq.data import FairseqDataset

from mclip_fairseq.data.batches import Redrawn, RowDataset
from mclip_fairseq.resilience.workers import shield_worker
from mclip_fairseq.storage.errors import UserError

logger = logging.getLogger(__name__)
# What becomes of a short last batch of a part: it stays, and a warning names it; it is filled with samples of the
# batches before it, which the epoch then sees twice; or it is left out.
TAILS = ("warn", "fill", "drop")


def temperature_sizes(sizes: Sequence[int], temperature: float) -> npt.NDArray[np.int64]:
    """Samples per part and epoch: shares proportional to n^(1/T), the total unchanged (M2M, mCLIP: T = 5).

    Args:
        sizes: samples each part really has.
        temperature: 1 keeps the real proportions; larger values move towards equal shares.

    Returns:
        (parts,) samples to draw.

    Raises:
        UserError: the temperature is not positive.
    """
    if temperature <= 0:
        raise UserError(f"--sampling-temperature is {temperature}; give a positive number (1: real proportions)")
    counts = np.asarray(sizes, dtype=np.float64)
    # p_i ~ (n_i / N)^(1/T); an empty part stays empty, and no other part rounds down to nothing.
    weights = np.where(counts > 0, (counts / counts.sum()) ** (1.0 / temperature), 0.0)
    drawn = np.rint(weights / weights.sum() * counts.sum()).astype(np.int64)
    return np.where(counts > 0, np.maximum(drawn, 1), 0)


def draw_rows(size: int, count: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Draw rows by whole passes and one partial pass, so that no row is seen twice before another is seen once."""
    passes, partial = divmod(count, size)
    whole = np.tile(np.arange(size), passes)
    return np.concatenate([whole, rng.permutation(size)[:partial]])


def has_short_tail(batches: Sequence[npt.NDArray[np.int64]]) -> bool:
    """Whether the last batch has less than half of the samples of the batch before it."""
    return len(batches) > 1 and 2 * len(batches[-1]) < len(batches[-2])


class TemperatureSampledDataset(FairseqDataset):
    """Several row datasets as one, redrawn at every epoch from (seed, epoch) alone.

    | batch entry | shape | present |
    |---|---|---|
    | the entries of one part's dataset | see there | always |
    | `part` | str, the name of that part | always |
    | `id` | (batch,) int64, rows of the part; without `shuffle`, rows of the whole | always |

    Args:
        parts: name -> dataset; a batch holds samples of one part.
        temperature: see `temperature_sizes`.
        seed: of the draws and of the order within equal lengths.
        shuffle: False keeps every sample once and in order (validation, generation).
        tail: what becomes of short last batches while samples are shuffled; see `TAILS`.
    """

    def __init__(
        self,
        parts: Mapping[str, RowDataset],
        temperature: float = 1.0,
        seed: int = 1,
        shuffle: bool = True,
        tail: str = "warn",
    ) -> None:
        super().__init__()
        if not parts:
            raise UserError("there is nothing to train or evaluate on: no language or pair was given")
        self.names = list(parts)
        self.parts = list(parts.values())
        self.temperature = temperature
        self.seed = seed
        self.shuffle = shuffle
        self.tail = tail
        self.warned = False
        self.set_epoch(1)

    def set_epoch(self, epoch: int) -> None:
        """Draw the epoch's samples, and let the parts draw theirs."""
        for part in self.parts:
            if isinstance(part, Redrawn):
                part.set_epoch(epoch)
        sizes = [len(part) for part in self.parts]
        counts = temperature_sizes(sizes, self.temperature) if self.shuffle else np.asarray(sizes)
        rng = np.random.default_rng([self.seed, epoch])
        rows = [
            draw_rows(size, int(count), rng) if size else np.zeros(0, np.int64)
            for size, count in zip(sizes, counts, strict=True)
        ]
        # Sample number -> part and row in it: one flat index for fairseq, whatever the parts are.
        self.part_of = np.repeat(np.arange(len(rows)), [len(r) for r in rows])
        self.row_of = np.concatenate(rows)
        self.sizes = np.concatenate([part.sizes[r] for part, r in zip(self.parts, rows, strict=True)])

    def __len__(self) -> int:
        return len(self.row_of)

    def __getitem__(self, index: int) -> int:
        return index

    def collater(self, samples: Sequence[int]) -> dict[str, Any]:
        """Build the batch of some sample numbers, all of one part.

        Where the batches do not divide by the ranks, fairseq asks for an empty one. In training it is one sample that
        is marked as `is_dummy`: with --update-freq, fairseq's own dummy would drop the sample sizes of the
        rank's other batches in the same update.
        """
        shield_worker()
        index = np.asarray(samples, dtype=np.int64)
        if len(index) == 0:
            return {**self.collater([self.shortest]), "is_dummy": True} if self.shuffle and len(self) else {}
        part = int(self.part_of[index[0]])
        batch = self.parts[part].rows(self.row_of[index])
        batch["part"] = self.names[part]
        if not self.shuffle:
            # Consumers that put outputs back in order (fairseq-generate) need the number within the whole.
            batch["id"] = batch["id"].new_tensor(index)
        return batch

    @property
    def shortest(self) -> int:
        """Number of a sample that no limit of length leaves out."""
        return int(np.argmin(self.num_tokens_vec(np.arange(len(self)))))

    def num_tokens(self, index: int) -> int:
        """Length that --max-tokens counts: the longer side."""
        return int(np.max(self.sizes[index]))

    def num_tokens_vec(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The same for many samples."""
        sizes: npt.NDArray[np.int64] = self.sizes[indices]
        return sizes if sizes.ndim == 1 else sizes.max(axis=1)

    def size(self, index: int) -> Any:
        """Length, or (source, target) lengths."""
        size = self.sizes[index]
        return int(size) if np.ndim(size) == 0 else tuple(int(s) for s in size)

    def ordered_indices(self) -> npt.NDArray[np.int64]:
        """Samples by part, by length within it, at random within equal lengths (fairseq seeds numpy's generator)."""
        order = np.random.permutation(len(self)) if self.shuffle else np.arange(len(self))
        # lexsort is stable, so equal lengths keep the random order of the permutation.
        lengths = self.num_tokens_vec(order)
        return order[np.lexsort((lengths, self.part_of[order]))]

    def filter_indices_by_size(
        self, indices: npt.NDArray[np.int64], max_sizes: Any
    ) -> tuple[npt.NDArray[np.int64], list[int]]:
        """Drop samples longer than the model takes; batches are formed afterwards."""
        limit = np.asarray(max_sizes if max_sizes is not None else np.inf, dtype=np.float64)
        sizes = self.sizes[indices]
        fits = (sizes <= limit).all(axis=1) if sizes.ndim == 2 else sizes <= limit.min()
        return indices[fits], indices[~fits].tolist()

    def batch_by_size(self, indices: npt.NDArray[np.int64], **limits: Any) -> list[npt.NDArray[np.int64]]:
        """Batches of one part each; `indices` are already filtered by length."""
        part = self.part_of[indices]
        batches: list[npt.NDArray[np.int64]] = []
        short: list[str] = []
        for number in np.unique(part):
            own = indices[part == number]
            of_part = list(super().batch_by_size(own, **limits))
            # fairseq drops a last batch that is not a multiple of --required-batch-size-multiple, also in evaluation.
            left = own[sum(len(batch) for batch in of_part) :]
            if len(left):
                of_part.append(left)
            if self.shuffle and has_short_tail(of_part):
                short.append(f"{self.names[number]} {len(of_part[-1])} after {len(of_part[-2])}")
                of_part = self.without_short_tail(of_part, own, limits.get("max_tokens"))
            batches.extend(of_part)
        if self.shuffle and not self.warned:
            self.warn_of_poor_contrast(batches, short)
        return batches

    def warn_of_poor_contrast(self, batches: Sequence[npt.NDArray[np.int64]], short: Sequence[str]) -> None:
        """Warn of batches without negatives, or with few; a second call says nothing.

        Args:
            batches: of all parts.
            short: what is said of the parts with a short tail.
        """
        if batches and max(map(len, batches)) == 1:
            self.warned = True
            logger.warning(
                "every batch has one sample, so on one rank a contrastive loss is 0 whatever the model does; raise "
                "--batch-size or --max-tokens"
            )
        elif short and self.tail == "warn":
            self.warned = True
            logger.warning(
                "the last batch is less than half as large as the one before it: %s samples; a contrast over few "
                "samples says little: --tail-batches fill takes more samples, --tail-batches drop leaves it out",
                ", ".join(short),
            )

    def without_short_tail(
        self, batches: list[npt.NDArray[np.int64]], own: npt.NDArray[np.int64], max_tokens: int | None
    ) -> list[npt.NDArray[np.int64]]:
        """The batches of a part with their short tail kept, filled from the samples before it, or left out.

        Args:
            batches: of the part.
            own: its samples in order, by length.
            max_tokens: most tokens of a batch, padding included.
        """
        if self.tail == "warn":
            return batches
        if self.tail == "drop":
            return batches[:-1]
        longest = max(self.num_tokens(own[-1]), 1)
        room = len(batches[-2]) if max_tokens is None else min(len(batches[-2]), max_tokens // longest)
        return [*batches[:-1], own[-max(room, len(batches[-1])) :]]

    @property
    def can_reuse_epoch_itr_across_epochs(self) -> bool:
        """False while samples are redrawn."""
        return not self.shuffle
