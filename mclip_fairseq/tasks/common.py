"""What both tasks do alike: languages, batches of one part, and steps in which a rank has nothing to add."""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from fairseq.models import ARCH_MODEL_REGISTRY
from fairseq.tasks import FairseqTask
from torch import Tensor

from mclip_fairseq.data.sampling import TemperatureSampledDataset

logger = logging.getLogger(__name__)


def split_list(value: str, option: str) -> list[str]:
    """Split a comma-separated option.

    Raises:
        ValueError: the list is empty or names something twice.
    """
    items = [item.strip() for item in value.split(",") if item.strip()]
    if not items:
        raise ValueError(f"{option} is empty; give a comma-separated list")
    twice = sorted({item for item in items if items.count(item) > 1})
    if twice:
        raise ValueError(f"{option} names {', '.join(twice)} more than once")
    return items


class SampledTask(FairseqTask):
    """A task whose datasets are `TemperatureSampledDataset`s and whose losses look across ranks."""

    def train_step(
        self,
        sample: dict[str, Any],
        model: torch.nn.Module,
        criterion: torch.nn.Module,
        optimizer: Any,
        update_num: int,
        ignore_grad: bool = False,
    ) -> tuple[Tensor, Any, dict[str, Any]]:
        """Fairseq's step, except that a dummy batch says so.

        fairseq replays a rank's first batch where shards are uneven. Its loss is zeroed, but its rows would still be
        gathered as false negatives of the other ranks; the criterions leave the rows of a marked batch out, and so
        they do where the data say that nothing of it could be read.
        """
        sample = {**sample, "is_dummy": ignore_grad or sample.get("is_dummy", False)}
        step: tuple[Tensor, Any, dict[str, Any]] = super().train_step(
            sample, model, criterion, optimizer, update_num, ignore_grad
        )
        return step

    def build_model(self, cfg: Any, from_checkpoint: bool = False) -> torch.nn.Module:
        """Build the model; from a checkpoint, only one of this project.

        Others of fairseq evaluate strings of their options as Python, and a checkpoint may come from anywhere.
        """
        name = getattr(cfg, "_name", None) or getattr(cfg, "arch", None)
        kind = ARCH_MODEL_REGISTRY.get(name) if isinstance(name, str) else None
        if from_checkpoint and (kind is None or kind.__module__.split(".")[0] != __name__.split(".")[0]):
            raise ValueError(
                f"the checkpoint holds a model {name!r}, which is not of this project; options of other models can run "
                "code, so load it with the task it was trained with if you trust it"
            )
        model: torch.nn.Module = super().build_model(cfg, from_checkpoint)
        return model

    def can_reuse_epoch_itr(self, dataset: TemperatureSampledDataset) -> bool:
        """Only where samples are not redrawn."""
        return dataset.can_reuse_epoch_itr_across_epochs

    def filter_indices_by_size(
        self, indices: Any, dataset: Any, max_positions: Any = None, ignore_invalid_inputs: bool = False
    ) -> Any:
        """Say in one sentence which samples are too long and what helps."""
        kept, dropped = dataset.filter_indices_by_size(indices, max_positions)
        if dropped and not ignore_invalid_inputs:
            raise ValueError(
                f"{len(dropped)} samples are longer than {max_positions} tokens (the first has "
                f"{dataset.size(dropped[0])}); pass --truncate to cut them or "
                "--skip-invalid-size-inputs-valid-test to leave them out"
            )
        if dropped:
            self.report_dropped(len(dropped), len(indices), max_positions)
        return kept

    def report_dropped(self, dropped: int, total: int, max_positions: Any) -> None:
        """Log what the length filter left out."""
        logger.warning("%d of %d samples are longer than %s tokens and left out", dropped, total, max_positions)


def check_names(given: Sequence[str], known: Sequence[str], option: str) -> None:
    """Refuse names outside a list with a sentence."""
    unknown = [name for name in given if name not in known]
    if unknown:
        raise ValueError(f"{option}: {', '.join(unknown)} is not among {', '.join(known)}")
