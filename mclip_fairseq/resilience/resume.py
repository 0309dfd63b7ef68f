"""Which checkpoint a run goes on from, and whether it may."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf

from mclip_fairseq.storage.checkpoints import read_lazily
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.sealed import TEMPORARY, damage, sealed_updates

logger = logging.getLogger(__name__)

LAST = "checkpoint_last.pt"
OF_A_RUN = re.compile(r"checkpoint(_last|_best|\d+|_\d+_\d+|\.best_.+)\.pt")
# What the position within an epoch is counted in: with another value it would point to other samples.
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
    "task.langs",
    "task.lang_pairs",
    "task.both_directions",
    "task.sampling_temperature",
    "task.truncate",
    "task.max_source_positions",
    "task.max_target_positions",
    "task.max_caption_tokens",
)


class Choice(NamedTuple):
    """What to go on from.

    Attributes:
        path: the checkpoint; None where there is none and the run begins.
        skipped: `name (why)` of each file that was passed over.
    """

    path: Path | None
    skipped: list[str]


def choose_checkpoint(folder: str | Path, suffix: str = "") -> Choice:
    """The newest checkpoint of a run that verifies.

    That is `checkpoint_last.pt`, or a file with more updates that was written after it (the run was killed between the
    two), or, where it is damaged or missing, the one with the most updates.

    Args:
        folder: of the run.
        suffix: of its files, before `.pt` (--checkpoint-suffix).

    Raises:
        UserError: there are checkpoints, and none of them verifies.
    """
    folder = Path(folder)
    skipped: list[str] = []
    updates: dict[Path, int] = {}
    found = [path for path in folder.glob(f"checkpoint*{suffix}.pt") if _of_a_run(path.name, suffix)]
    found = [path for path in found if path.is_file() or path.is_symlink()]
    for path in found:
        if not path.exists():
            skipped.append(f"{path.name} (is a link to a file that is not there)")
            continue
        known = sealed_updates(path)
        try:
            updates[path] = _updates_inside(path) if known is None else known
        except ValueError as error:
            skipped.append(f"{path.name} ({error})")
    for path in _in_order(updates, folder / f"{Path(LAST).stem}{suffix}.pt"):
        reason = damage(path)
        if not reason:
            return Choice(path, skipped)
        skipped.append(f"{path.name} ({reason})")
    if found:
        raise UserError(
            f"{folder}: no checkpoint verifies: {', '.join(skipped)}; bring one back from a copy, or move them away to "
            "start anew"
        )
    return Choice(None, [])


def _in_order(updates: Mapping[Path, int], last: Path) -> list[Path]:
    """Candidates, best first."""
    order = sorted(updates, key=lambda path: (updates[path], path.stat().st_mtime_ns), reverse=True)
    if last not in updates:
        return order
    # Whoever copies an older checkpoint to checkpoint_last.pt wants to go back: then it is the youngest file.
    newer = [
        path for path in order if updates[path] > updates[last] and path.stat().st_mtime_ns > last.stat().st_mtime_ns
    ]
    return [*newer, last, *(path for path in order if path != last and path not in newer)]


def _updates_inside(path: Path) -> int:
    """Updates of a checkpoint without a seal.

    Raises:
        UserError: why it is no checkpoint to go on from, in a few words.
    """
    reason = damage(path)
    if reason:
        raise UserError(reason)
    history = read_lazily(path).get("optimizer_history") or [{}]
    return int(history[-1].get("num_updates", 0))


def _of_a_run(name: str, suffix: str) -> bool:
    return OF_A_RUN.fullmatch(f"{name.removesuffix(f'{suffix}.pt')}.pt") is not None


def remove_leftovers(folder: str | Path, suffix: str = "") -> list[str]:
    """Remove the temporary files of a save that was cut short; returns their names."""
    removed = []
    for path in sorted(Path(folder).glob(f"*.pt{TEMPORARY}")):
        if _of_a_run(path.name.removesuffix(TEMPORARY), suffix):
            path.unlink(missing_ok=True)
            removed.append(path.name)
    return removed


def check_settings(path: Path, cfg: Any) -> None:
    """Refuse to go on in mid-epoch with options that give its position another meaning; at its start, say so.

    Args:
        path: a checkpoint.
        cfg: fairseq's configuration of this run.

    Raises:
        UserError: naming the options, then and now.
    """
    state = read_lazily(path)
    position = (state.get("extra_state") or {}).get("train_iterator") or {}
    if not isinstance(state.get("cfg"), dict) or not position:
        return
    changed = changed_options(state["cfg"], cfg)
    if changed and position.get("iterations_in_epoch", 0):
        raise UserError(
            f"{path}: was written in the middle of epoch {position.get('epoch')} with {'; '.join(changed)}; its place "
            "in the data has no meaning here: resume with the options it was written with, or pass --reset-dataloader "
            "to keep its parameters and begin the data anew"
        )
    if changed:
        logger.warning(
            "%s was written at the end of an epoch with %s: the run goes on, but not with the steps it had taken",
            path.name,
            "; ".join(changed),
        )


def check_optimizer(path: Path, reset: bool) -> None:
    """Refuse to go on without the state of the optimizer, which fairseq would begin anew, at update 0.

    Raises:
        UserError: naming the options that help.
    """
    if not reset and read_lazily(path).get("last_optimizer_state") is None:
        raise UserError(
            f"{path}: has no state of the optimizer (--no-save-optimizer-state), so its run cannot go on; begin "
            "another with its parameters: --finetune-from-model, or --reset-optimizer --reset-lr-scheduler "
            "--reset-dataloader"
        )


def check_dictionary(path: Path, task: Any) -> None:
    """Refuse a checkpoint whose embeddings are of another dictionary.

    Raises:
        UserError: with both sizes.
    """
    state = (read_lazily(path).get("extra_state") or {}).get(type(task).__name__) or {}
    stored = state.get("dictionary")
    if stored is None or stored == task.dictionary_identity():
        return
    sizes = stored["symbols"], len(task.source_dictionary)
    now = f"has {sizes[1]}" if sizes[0] != sizes[1] else "names others, or in another order"
    raise UserError(
        f"{path}: was trained with a dictionary of {sizes[0]} symbols, but that of the data {now}; make the data again "
        "with the dict.txt it was trained with"
    )


def changed_options(stored: Mapping[str, Any], cfg: Any) -> list[str]:
    """`option then (now: value)` for each of `POSITION_OPTIONS` that two configurations hold differently."""
    changed = []
    for name in POSITION_OPTIONS:
        group, option = name.split(".")
        if option not in (stored.get(group) or {}):
            continue
        new = OmegaConf.select(cfg, name)
        old, new = stored[group][option], OmegaConf.to_container(new) if OmegaConf.is_config(new) else new
        if old != new:
            shown = "task" if option == "_name" else option.replace("_", "-")
            changed.append(f"--{shown} {old} (now {new})")
    return changed
