"""Whether a run may continue from a checkpoint: same meaning of its position, same data, an optimizer's state."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from fairseq.file_io import PathManager
from fairseq.tasks import TASK_DATACLASS_REGISTRY
from omegaconf import OmegaConf

from mclip_fairseq.losses.gather import sum_over_ranks
from mclip_fairseq.resilience.choosing import LAST
from mclip_fairseq.storage.checkpoints import StoredCheckpoint
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.fields import check_fields
from mclip_fairseq.storage.places import without_folders

logger = logging.getLogger(__name__)

# The position in an epoch is a number of batches. With a different value of one of fairseq's options, it would point to
# other samples. A task marks options of its own by `metadata={"data_position": True}` in its dataclass.
POSITION_OPTIONS = (
    "distributed_training.distributed_world_size",
    "dataset.batch_size",
    "dataset.max_tokens",
    "dataset.required_batch_size_multiple",
    "dataset.train_subset",
    "dataset.grouped_shuffling",
    "dataset.update_ordered_indices_seed",
    "optimization.update_freq",
    "optimization.skip_remainder_batch",
    "common.seed",
    "task._name",
)
# What a step depends on besides its data. A run may change these at any time, but never silently.
STEP_OPTIONS = ("optimization.lr", "optimization.clip_norm", "optimization.sentence_avg", "optimization.stop_min_lr")
STEP_GROUPS = ("optimizer", "lr_scheduler", "criterion")


def check_position_options(stored: StoredCheckpoint, cfg: Any) -> None:
    """Refuse to continue in the middle of an epoch with options that give the position a different meaning.

    At the start of an epoch, they are logged.

    Args:
        stored: the checkpoint.
        cfg: fairseq's configuration of this run.

    Raises:
        UserError: naming the options, with both values.
    """
    if not isinstance(stored.state.get("cfg"), dict) or not stored.position:
        return
    changed = changed_options(stored.state["cfg"], cfg)
    if changed and stored.position.get("iterations_in_epoch", 0):
        raise UserError(
            f"{stored.path}: was written in the middle of epoch {stored.position.get('epoch')} with "
            f"{'; '.join(changed)}, so its position in the data has no meaning here; resume with the options it was "
            "written with, or pass --reset-dataloader to keep its parameters and restart the data"
        )
    if changed:
        logger.warning(
            "%s was written at the end of an epoch with %s: the run continues, but with different steps",
            stored.path.name,
            "; ".join(changed),
        )


def position_options(cfg: Any) -> tuple[str, ...]:
    """The options, as `group.name`, on which the meaning of a position in the data depends."""
    kind = TASK_DATACLASS_REGISTRY.get(OmegaConf.select(cfg, "task._name"))
    fields = dataclasses.fields(kind) if kind is not None else ()
    return (*POSITION_OPTIONS, *(f"task.{field.name}" for field in fields if field.metadata.get("data_position")))


def changed_options(stored: Mapping[str, Any], cfg: Any) -> list[str]:
    """The `position_options` that differ from the stored configuration, as `changes_in` writes them."""
    return changes_in(position_options(cfg), stored, cfg)


def changes_in(names: Iterable[str], stored: Mapping[str, Any], cfg: Any) -> list[str]:
    """Options that differ from a stored configuration.

    Args:
        names: of the options, as `group.name`.
        stored: configuration of a checkpoint; an option that it does not have has not changed.
        cfg: fairseq's configuration of this run.

    Returns:
        `--option then (now value)` for each.
    """
    changed = []
    for name in names:
        group, option = name.split(".")
        values = stored.get(group)
        if not isinstance(values, Mapping) or option not in values:
            continue
        new = OmegaConf.select(cfg, name)
        old, new = plain(values[option]), plain(OmegaConf.to_container(new) if OmegaConf.is_config(new) else new)
        if without_folders(old) != without_folders(new):  # a checkpoint names no absolute path
            label = group.replace("_", "-") if option == "_name" else option.replace("_", "-")
            changed.append(f"--{label} {old} (now {new})")
    return changed


def plain(value: Any) -> Any:
    """An option's value as it is written into a checkpoint: a choice by its name."""
    return value.value if isinstance(value, Enum) else value


def log_changed_steps(stored: StoredCheckpoint, cfg: Any) -> None:
    """Log which options of the optimizer, the schedule and the loss are not those of the checkpoint.

    Args:
        stored: the checkpoint.
        cfg: fairseq's configuration of this run.
    """
    options = stored.state.get("cfg")
    if not isinstance(options, Mapping):
        return
    groups = {group: OmegaConf.select(cfg, group) for group in STEP_GROUPS}
    described = {group: values for group, values in groups.items() if isinstance(values, Mapping)}  # not a Namespace
    names = [f"{group}.{name}" for group, values in described.items() for name in values if name != "lr"]
    changed = changes_in([*STEP_OPTIONS, *names], options, cfg)
    if changed:
        logger.warning(
            "%s was written with %s: the new values count from here on", stored.path.name, "; ".join(changed)
        )


def check_optimizer(stored: StoredCheckpoint, reset: bool) -> None:
    """Refuse to continue without the optimizer's state, because fairseq would restart it at update 0.

    Raises:
        UserError: naming the options that help.
    """
    if not reset and stored.state.get("last_optimizer_state") is None:
        raise UserError(
            f"{stored.path}: has no optimizer state (--no-save-optimizer-state), so its run cannot continue; start "
            "another with its parameters: --finetune-from-model, or --reset-optimizer --reset-lr-scheduler "
            "--reset-dataloader"
        )


def check_components(stored: StoredCheckpoint, cfg: Any) -> None:
    """Refuse another optimizer, loss or schedule, whose state a checkpoint does not hold, unless it begins afresh.

    Raises:
        UserError: naming the option that restarts it.
    """
    options, reset = stored.state.get("cfg"), cfg.checkpoint.reset_optimizer
    resets = {
        "criterion._name": ("--reset-optimizer", reset),
        "optimizer._name": ("--reset-optimizer", reset),
        "lr_scheduler._name": ("--reset-lr-scheduler", reset or cfg.checkpoint.reset_lr_scheduler),
    }
    for name, (option, is_reset) in resets.items():
        changed = [] if is_reset or not isinstance(options, Mapping) else changes_in([name], options, cfg)
        if changed:
            raise UserError(
                f"{stored.path}: was written with {changed[0]}, which does not read its state; go back to that, or "
                f"pass {option} to restart it"
            )


def check_same_dictionary(stored: StoredCheckpoint, task: Any) -> None:
    """Refuse a checkpoint whose embeddings belong to a different dictionary.

    Raises:
        UserError: with both sizes.
    """
    state = stored.extra_state.get(type(task).__name__)
    dictionary = state.get("dictionary") if isinstance(state, Mapping) else None
    if dictionary is None or dictionary == task.dictionary_identity():
        return
    check_fields(stored.path, dictionary, {"symbols": int}, "give another checkpoint")
    sizes = dictionary["symbols"], len(task.source_dictionary)
    now = f"has {sizes[1]}" if sizes[0] != sizes[1] else "has other symbols, or another order"
    raise UserError(
        f"{stored.path}: was trained with a dictionary of {sizes[0]} symbols, but that of the data {now}; make the "
        "data again with the dict.txt it was trained with"
    )


def check_data(task: Any, extra_state: Mapping[str, Any]) -> None:
    """Refuse to continue in the middle of an epoch with different training data; at the start of an epoch, log it.

    Args:
        task: whose `stored_parts`, of the checkpoint, are compared with `parts()`, of the data.
        extra_state: of the checkpoint.

    Raises:
        UserError: naming the parts.
    """
    stored = getattr(task, "stored_parts", None)
    now = task.parts() if stored else None
    if not stored or not now or stored == now:
        return
    counts = {name: (stored.get(name, [0])[0], now.get(name, [0])[0]) for name in {*stored, *now}}
    changed = [
        f"{name} ({counts[name][0]} samples then, {counts[name][1]} now)"
        for name in sorted(counts)
        if stored.get(name) != now.get(name)
    ]
    message = f"the training data have changed since the checkpoint was written: {', '.join(changed)}"
    if extra_state["train_iterator"].get("iterations_in_epoch", 0):
        raise UserError(
            f"{message}, so its position in them has no meaning now; put them back, or pass --reset-dataloader to keep "
            "the parameters and restart the data"
        )
    logger.warning("%s", message)


def check_seen_by_all(trainer: Any, path: str) -> None:
    """Refuse to continue where some ranks do not see the file: they would start from scratch while the others continue.

    Raises:
        UserError: on all ranks.
    """
    if trainer.data_parallel_world_size == 1 or PathManager.path_requires_pathmanager(path):
        return
    path = path if path != LAST else str(Path(trainer.cfg.checkpoint.save_dir) / LAST)
    path = f"{path.removesuffix('.pt')}{trainer.checkpoint_suffix}.pt"
    seen = int(sum_over_ranks(torch.tensor(float(PathManager.isfile(path)), device=trainer.device)))
    if 0 < seen < trainer.data_parallel_world_size:
        raise UserError(
            f"{path}: only {seen} of {trainer.data_parallel_world_size} ranks see this file; let --save-dir be a "
            "folder that all machines share"
        )
