"""Resuming: a run continues from its newest sound checkpoint, exactly, or says why it cannot."""

from __future__ import annotations

import logging
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fairseq.file_io import PathManager
from fairseq.logging import metrics

from mclip_fairseq.resilience.best import changed_measurement, forget_best
from mclip_fairseq.resilience.checking import (
    check_components,
    check_data,
    check_optimizer,
    check_position_options,
    check_same_dictionary,
    check_seen_by_all,
    log_changed_steps,
)
from mclip_fairseq.resilience.choosing import LAST, choose_checkpoint, remove_leftovers
from mclip_fairseq.resilience.holding import decided_by_rank_zero
from mclip_fairseq.resilience.program import early_stopping
from mclip_fairseq.resilience.saving import options_changed
from mclip_fairseq.resilience.stopping import listen_for
from mclip_fairseq.resilience.unsaved import KEY, restore
from mclip_fairseq.storage.checkpoints import StoredCheckpoint
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import first_line
from mclip_fairseq.storage.places import PARTS, StoredParts, options_of

logger = logging.getLogger(__name__)
# Checkpoints that were checked when one was chosen, for `read_safely`, which fairseq calls with a path alone.
_checked: dict[str, StoredCheckpoint] = {}


def load_newest_sound(original: Callable[..., Any], cfg: Any, trainer: Any, **passthrough: Any) -> tuple[Any, Any]:
    """Resume from the newest checkpoint that verifies, with all that the next step depends on.

    A run begins here, with or without a checkpoint: signals are noted from here on.

    Args:
        original: fairseq's `load_checkpoint`.
        cfg: fairseq's checkpoint options.
        trainer: fairseq's trainer.
        **passthrough: for the data iterator.

    Raises:
        UserError: no checkpoint verifies, or the options give its position in the data a different meaning.
    """
    from mclip_fairseq.resilience.install import install_for_run  # its table of patches lists this function

    install_for_run()
    listen_for(trainer)
    path, changed = None, list[str]()
    # fairseq adds a suffix of its own where each rank has its own checkpoint (FSDP); these are left to fairseq.
    if trainer.checkpoint_suffix == (cfg.checkpoint_suffix or ""):
        path, changed = decided_by_rank_zero(lambda: find_checkpoint(cfg, trainer), trainer.data_parallel_rank)
    changes: dict[str, Any] = {}
    if path is not None:
        changes = {"restore_file": path, "finetune_from_model": None}
    check_seen_by_all(trainer, path or cfg.restore_file)
    if trainer.data_parallel_world_size > 1:
        # Otherwise fairseq broadcasts rank 0's checkpoint by a pickle, which torch's safe loading refuses.
        changes["load_checkpoint_on_all_dp_ranks"] = True
    try:
        with options_changed(cfg, changes):
            extra_state, epoch_itr = original(cfg, trainer, **passthrough)
    finally:
        _checked.clear()
    if extra_state is not None:
        restore_state(cfg, trainer, extra_state, resumed=path is not None)
        if changed:
            forget_best(cfg, trainer, extra_state, changed)
    if path is not None:
        replay_validation_loss(trainer, extra_state)
        end_if_complete(trainer)
    return extra_state, epoch_itr


def restore_state(cfg: Any, trainer: Any, extra_state: dict[str, Any], resumed: bool) -> None:
    """Bring back what fairseq does not restore by itself.

    Args:
        cfg: fairseq's checkpoint options.
        trainer: fairseq's trainer, which has loaded the checkpoint.
        extra_state: of the checkpoint; the entry `unsaved.KEY` is taken out.
        resumed: whether the checkpoint is this run's own.

    Raises:
        UserError: the training data have changed.
    """
    if resumed and not cfg.reset_meters:
        restore_inner_metrics(extra_state)
    if not cfg.reset_dataloader and (resumed or not cfg.finetune_from_model):
        check_data(trainer.task, extra_state)
    kept = extra_state.pop(KEY, {})
    restore(trainer, {} if cfg.reset_optimizer else kept)
    warn_of_annealing(trainer, extra_state)


def find_checkpoint(cfg: Any, trainer: Any) -> tuple[str | None, list[str]]:
    """Find the checkpoint in this run's own directory to continue from.

    Returns:
        its path, None where the choice is fairseq's; and what its best value was measured with, where that has changed.

    Raises:
        UserError: see `load_newest_sound`.
    """
    if cfg.restore_file == LAST and not PathManager.path_requires_pathmanager(cfg.save_dir):
        suffix = cfg.checkpoint_suffix or ""
        # With --no-save, this run does not hold the folder: they may be of one that does, on another machine.
        for name in [] if cfg.no_save else remove_leftovers(cfg.save_dir, suffix):
            logger.warning("%s/%s: removed, left over from an interrupted save", cfg.save_dir, name)
        path, skipped = choose_checkpoint(cfg.save_dir, suffix)
        for reason in skipped:
            logger.warning("skipped checkpoint %s", reason)
        if path is not None:
            if skipped:
                logger.warning("continuing from %s", path)
            stored = _checked[str(path)] = StoredCheckpoint(path, verified=True)
            if not cfg.reset_dataloader:
                check_position_options(stored, trainer.cfg)
            check_optimizer(stored, cfg.reset_optimizer)
            check_components(stored, trainer.cfg)
            check_same_dictionary(stored, trainer.task)
            log_changed_steps(stored, trainer.cfg)
            resumed = str(path.with_name(f"{path.name.removesuffix(f'{suffix}.pt')}.pt"))  # fairseq adds it again
            return resumed, changed_measurement(stored, trainer)
    given = cfg.restore_file if cfg.restore_file != LAST else cfg.finetune_from_model
    if given and PathManager.isfile(given) and not PathManager.path_requires_pathmanager(given):
        stored = _checked[given] = StoredCheckpoint(given)
        stored.check()
        if given == cfg.restore_file:
            check_optimizer(stored, cfg.reset_optimizer)
            check_components(stored, trainer.cfg)
            if not cfg.reset_dataloader:
                check_position_options(stored, trainer.cfg)
        check_same_dictionary(stored, trainer.task)
        if given == cfg.restore_file:
            log_changed_steps(stored, trainer.cfg)
            return None, changed_measurement(stored, trainer)
    return None, []


def read_safely(
    original: Callable[..., Any], path: str, arg_overrides: Any = None, load_on_all_ranks: bool = False
) -> Any:
    """Read a checkpoint; one sentence refuses what is not a checkpoint or would run code.

    Args:
        original: fairseq's `load_checkpoint_to_cpu`.
        path: of the file.
        arg_overrides: options to change in it.
        load_on_all_ranks: fairseq's option.

    Raises:
        UserError: naming the file.
    """
    if PathManager.path_requires_pathmanager(path):
        return original(path, arg_overrides, load_on_all_ranks)
    (_checked.get(str(path)) or StoredCheckpoint(path)).check()
    try:
        state = original(path, arg_overrides, load_on_all_ranks)
    except Exception as error:  # fairseq converts old formats, and foreign contents can make that raise anything
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"{path}: is not a checkpoint of fairseq, or is damaged ({reason})") from error
    point_to_parts(Path(path), state, arg_overrides or {})
    return state


def point_to_parts(path: Path, state: Any, overrides: Mapping[str, Any]) -> None:
    """Put the places that the training had back into a checkpoint's options.

    A part that is nowhere gets a name that nothing has: a model that does not need it is built without it, and the
    loader of one that does says what is missing. A checkpoint that came from elsewhere chooses neither parts nor data.

    Args:
        path: of the checkpoint.
        state: its content, which is changed.
        overrides: options that the caller gives instead of the stored ones.
    """
    cfg = state.get("cfg") or {}
    parts = StoredParts.of(path, state)
    for group in ("task", "model", "criterion"):
        options = cfg.get(group)
        for name, value in list(options_of(options)):
            if name in overrides or not isinstance(value, str) or not value:
                continue
            if group == "model" and name in PARTS:
                place = find_or_nothing(parts, name, value)
            elif parts.known is not None:
                place = parts.known.get(f"{group}.{name}", value)
            else:
                place = f".../{Path(value).name}" if "/" in value and group == "task" else value
            set_option(options, name, place)


def find_or_nothing(parts: StoredParts, name: str, stored: str) -> str:
    """A part of a checkpoint, or a name that nothing on this machine and on the Hub has."""
    try:
        return parts.find(name, stored)
    except UserError:
        return f".../{Path(stored).name}"


def set_option(options: Any, name: str, value: str) -> None:
    """Change an option in a group, of whichever kind fairseq keeps it."""
    if isinstance(options, Namespace):
        setattr(options, name, value)
    else:
        options[name] = value


def restore_inner_metrics(extra_state: dict[str, Any]) -> None:
    """Bring back the averages since the last log line.

    fairseq drops them where it resumes at the start of an epoch, although they continue across its end.
    """
    state = (extra_state.get("metrics") or {}).get("train_inner")
    if state and extra_state["train_iterator"].get("iterations_in_epoch") == 0:
        metrics.load_state_dict({"train_inner": state})
        for meter in metrics.get_meters("train_inner").values():
            if hasattr(meter, "elapsed_time"):
                meter.reset()


def replay_validation_loss(trainer: Any, extra_state: dict[str, Any] | None) -> None:
    """Pass the last validation loss to the schedule, which keeps the best one: fairseq does so only after saving."""
    state = extra_state or {}
    position = state.get("train_iterator") or {}
    loss = state.get("val_loss")
    if loss is not None and position.get("iterations_in_epoch") == 0:
        trainer.lr_step(position["epoch"] - 1, loss)


def warn_of_annealing(trainer: Any, extra_state: dict[str, Any]) -> None:
    """Warn where the schedule depends on the learning rate at the start of the epoch, which no checkpoint holds."""
    schedule, position = trainer.cfg.lr_scheduler, extra_state.get("train_iterator") or {}
    after = getattr(schedule, "force_anneal", None)
    annealing = schedule._name == "polynomial_decay" and after and position.get("epoch", 0) >= after
    if annealing and position.get("iterations_in_epoch"):
        logger.warning(
            "--force-anneal %d: the rest of epoch %d is annealed from the learning rate of its stop, not of its "
            "start; stop at the end of an epoch to resume exactly",
            *(after, position["epoch"]),
        )


def end_if_complete(trainer: Any) -> None:
    """End a resumed run that is already complete; fairseq would take one more update or epoch."""
    updates, options = trainer.get_num_updates(), trainer.cfg.optimization
    patience, hours = trainer.cfg.checkpoint.patience, options.stop_time_hours
    if options.max_update and updates >= options.max_update:
        reason = f"has all its {updates} updates already (--max-update {options.max_update})"
    elif 0 < patience <= early_stopping().get("num_runs", 0):
        reason = f"has ended already, after {updates} updates, by --patience {patience}"
    elif 0 < hours < trainer.cumulative_training_time() / 3600:
        reason = f"has ended already, after {updates} updates, by --stop-time-hours {hours}"
    else:
        return
    logger.info("the run %s", reason)
    raise SystemExit(0)
