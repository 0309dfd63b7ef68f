"""Batches of several corpora in strict turns, as AltCLIP's code mixes a second corpus in."""

from typing import Any

import numpy as np
import numpy.typing as npt

from mclip_fairseq.data.sampling import TemperatureSampledDataset


class AlternatingDataset(TemperatureSampledDataset):
    """Parts named `language:corpus`; step after step, all ranks read the same corpus, then the next one.

    The order of the batches is drawn from (seed, epoch) here, because a shuffle afterwards would end the turns.

    Attributes:
        ranks: how many take a batch each in one step.
    """

    ranks = 1
    epoch = 1

    def set_epoch(self, epoch: int) -> None:
        """Draw the epoch's samples and the order of its batches."""
        self.epoch = epoch
        super().set_epoch(epoch)

    def batch_by_size(self, indices: npt.NDArray[np.int64], **limits: Any) -> list[npt.NDArray[np.int64]]:
        """Batches in turns: `ranks` of the first corpus, `ranks` of the second ..., until one has no more."""
        corpora: dict[str, list[npt.NDArray[np.int64]]] = {name.split(":")[1]: [] for name in self.names}
        for batch in super().batch_by_size(indices, **limits):
            corpora[self.names[self.part_of[batch[0]]].split(":")[1]].append(batch)
        rng = np.random.default_rng([self.seed, self.epoch, len(corpora)])
        orders = [[batches[i] for i in rng.permutation(len(batches))] for batches in corpora.values()]
        turns = min(len(order) for order in orders) // self.ranks or 1  # a corpus of fewer batches than ranks has one
        return [
            batch
            for turn in range(turns)
            for order in orders
            for batch in order[turn * self.ranks : (turn + 1) * self.ranks]
        ]
