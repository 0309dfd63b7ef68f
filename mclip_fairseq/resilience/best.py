"""Best checkpoints stay comparable: a best value that was measured with something else is dropped, with a sentence."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fairseq import checkpoint_utils
from omegaconf import OmegaConf

from mclip_fairseq.resilience.checking import changes_in
from mclip_fairseq.resilience.preflight import RECALL, SIMILARITY
from mclip_fairseq.resilience.program import early_stopping
from mclip_fairseq.resilience.unsaved import watching_schedule
from mclip_fairseq.storage.checkpoints import StoredCheckpoint

logger = logging.getLogger(__name__)

ALWAYS = (
    "checkpoint.best_checkpoint_metric",
    "checkpoint.maximize_best_checkpoint_metric",
    "dataset.valid_subset",
)
# A loss over in-batch negatives grows with the batch; what is measured over the whole set does not know of batches.
OF_LOSSES = (
    "dataset.batch_size_valid",
    "dataset.max_tokens_valid",
    "dataset.required_batch_size_multiple",
    "dataset.max_valid_steps",
    "distributed_training.distributed_world_size",
)


def changed_measurement(stored: StoredCheckpoint, trainer: Any) -> list[str]:
    """What a checkpoint's best value was measured with, where that is not what this run measures with.

    Args:
        stored: the checkpoint.
        trainer: fairseq's trainer, whose task has loaded its validation data.

    Returns:
        `option then (now value)`, and a phrase about the data; empty where the values can be compared.
    """
    options, cfg = stored.state.get("cfg"), trainer.cfg
    if not isinstance(options, Mapping) or cfg.dataset.disable_validation:
        return []
    names = list(ALWAYS)
    if not cfg.checkpoint.best_checkpoint_metric.startswith((RECALL, SIMILARITY)):
        criterion = OmegaConf.select(cfg, "criterion")
        names += [*OF_LOSSES, *(f"criterion.{name}" for name in (criterion or {}))]
    changed = changes_in(names, options, cfg)
    state = stored.extra_state.get(type(trainer.task).__name__)
    then = state.get("validation") if isinstance(state, Mapping) else None
    # A run without validation has nothing to say of the data, and no best value either.
    if then and then != trainer.task.validation_identity():
        changed.append("other validation data")
    return changed


def forget_best(cfg: Any, trainer: Any, extra_state: dict[str, Any], changed: list[str]) -> None:
    """Start comparing from scratch, on all ranks: best value, --patience, a schedule that watches, and kept files.

    Args:
        cfg: fairseq's checkpoint options.
        trainer: fairseq's trainer, which has loaded the checkpoint.
        extra_state: of the checkpoint; its validation loss is taken out.
        changed: what `changed_measurement` found.
    """
    extra_state.pop("val_loss", None)
    early_stopping().clear()
    trainer.lr_scheduler.best = None
    watching = watching_schedule(trainer)
    if watching is not None:
        watching.best, watching.num_bad_epochs = watching.mode_worse, 0
    best = vars(checkpoint_utils.save_checkpoint).pop("best", None)
    if best is None:
        return
    kept = set_aside(Path(cfg.save_dir)) if trainer.should_save_checkpoint_on_current_rank else []
    logger.warning(
        "the best value so far, %.4g, is dropped, because it was measured with %s: the next validation begins a new "
        "comparison and replaces checkpoint_best.pt%s",
        *(best, "; ".join(changed), f"; renamed to earlier.*: {', '.join(kept)}" if kept else ""),
    )


def set_aside(folder: Path) -> list[str]:
    """Rename the files of --keep-best-checkpoints, whose names hold values to compare with."""
    files = [path for path in sorted(folder.glob("checkpoint.best_*.pt")) if re.search(r"_\d+\.?\d*\.pt", path.name)]
    for path in files:
        path.rename(path.with_name(f"earlier.{path.name}"))
    return [path.name for path in files]
